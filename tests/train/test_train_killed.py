"""Runs that are killed at any moment: what was saved is whole, and leads to the same end.

VGG_FAST_FUZZ_KILLS=N kills N times instead of a few.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.zygote import Ended, Run, Zygote
from vgg_fast.train import checkpoint
from vgg_fast.train.folder import FILES, LOCK

KILLS = int(os.environ.get("VGG_FAST_FUZZ_KILLS", "3"))
SAMPLE = Path(__file__).parents[1] / "data"
TINY = [
    *("--preset", "fast", "--data-root", str(SAMPLE), "--device", "cpu", "--fused"),
    *("--arch", "1x8,1x16", "--width", "1", "--image-size", "28", "--classifier-width", "32"),
    *("--batch-size", "20", "--lr", "0.05", "--augment", "--epochs", "3"),
]
# A state after nearly every step, so that many kills meet one that is half written.
OFTEN = ["--save-every", "1e-9"]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(tmp_path_factory.mktemp("killed"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(zygote: Zygote) -> Any:
    """What a run that nobody disturbs comes to."""
    ended = zygote.run(*TINY, "--output-dir", "whole")
    assert ended.code == 0, ended.err
    return outcome(zygote.folder / "whole")


def outcome(folder: Path) -> Any:
    """The weights and the history of a run, without its times; metrics.json must agree."""
    state = checkpoint.load(folder)
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert metrics["history"] == state["history"]
    history = [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in state["history"]
    ]
    return history, {name: value.tolist() for name, value in state["model"].items()}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("how_often", [OFTEN, []], ids=["often", "each epoch"])
def test_killed_at_any_moment(zygote: Zygote, whole: Any, how_often: list[str]) -> None:
    started = time.monotonic()
    undisturbed = zygote.folder / f"undisturbed-{len(how_often)}"
    assert zygote.run(*TINY, *how_often, "--output-dir", str(undisturbed)).code == 0
    seconds = time.monotonic() - started
    assert outcome(undisturbed) == whole
    chance = random.Random(KILLS)
    kills = 0
    for attempt in itertools.count():
        folder = zygote.folder / f"parts-{len(how_often)}-{attempt}"
        while True:
            is_there = (folder / checkpoint.NAME).exists()
            start = ["--resume", str(folder)] if is_there else [*TINY, "--output-dir", str(folder)]
            run = zygote.start(*start, *how_often)
            if kills < KILLS:
                time.sleep(chance.uniform(0, seconds))
                os.kill(run.number, signal.SIGKILL)
            ended = run.wait()
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended.err
            kills += 1
            if (folder / checkpoint.NAME).exists():
                checkpoint.load(folder)
        # One more that has nothing left to do mends what a kill at the very end left.
        assert zygote.run("--resume", str(folder)).code == 0
        assert outcome(folder) == whole
        assert hidden(folder) == []
        if kills >= KILLS:
            break


def test_what_a_killed_run_left_is_removed(zygote: Zygote) -> None:
    folder = zygote.folder / "left"
    folder.mkdir()
    left = [f".{name}.abcd_123.tmp" for name in FILES]
    for name in [*left, LOCK, ".mine.abcd_123.tmp", "checkpoint.pt.tmp"]:
        (folder / name).touch()
    assert zygote.run(*TINY, "--steps", "1", "--output-dir", str(folder)).code == 0
    assert hidden(folder) == [".mine.abcd_123.tmp"]
    assert (folder / "checkpoint.pt.tmp").exists()


def test_metrics_that_a_kill_left_old_are_renewed(zygote: Zygote) -> None:
    folder = zygote.folder / "old"
    assert zygote.run(*TINY, "--output-dir", str(folder)).code == 0
    metrics = folder / "metrics.json"
    right = json.loads(metrics.read_text("utf-8"))
    metrics.write_text("{}")
    assert zygote.run("--resume", str(folder)).code == 0
    renewed = json.loads(metrics.read_text("utf-8"))
    assert renewed["history"] == right["history"] and renewed["result"] == right["result"]


def wait_for(run: Run, file: Path) -> None:
    """Until ``file`` is there; a test that waits long shows that it never comes."""
    for _ in range(6000):
        if file.exists():
            return
        time.sleep(0.01)
    os.kill(run.number, signal.SIGKILL)
    pytest.fail(f"{file} never came: {run.wait()}")


class TestTwoRuns:
    def test_the_second_is_refused(self, zygote: Zygote) -> None:
        folder = zygote.folder / "shared"
        first = zygote.start(*TINY, "--epochs", "100000", "--output-dir", str(folder))
        try:
            wait_for(first, folder / checkpoint.NAME)
            for other in ([*TINY, "--output-dir", str(folder)], ["--resume", str(folder)]):
                refused = zygote.run(*other)
                assert refused.code == 1 and refused.err.count("\n") == 1, refused.err
                assert f"process {first.number}" in refused.err
                assert "--output-dir" in refused.err
        finally:
            os.kill(first.number, signal.SIGKILL)
            first.wait()
        assert (folder / LOCK).exists(), "it was killed"
        assert zygote.run("--resume", str(folder), "--steps", "1").code == 0

    def test_without_a_name_each_has_its_folder(self, zygote: Zygote) -> None:
        runs = [zygote.start(*TINY, "--steps", "1") for _ in range(4)]
        for run in runs:
            assert run.wait().code == 0
        folders = [path for path in (zygote.folder / "runs").iterdir() if path.is_dir()]
        assert len([f for f in folders if (f / checkpoint.NAME).exists()]) == 4 == len(folders)


class TestOutputThatIsLost:
    def check(self, zygote: Zygote, whole: Any, folder: Path, ended: Ended) -> None:
        """The first epoch's row was lost, and not the epoch."""
        assert ended.err.count("\n") == 1 and "the state is saved" in ended.err, ended.err
        assert f"--resume {folder}" in ended.err
        assert len(checkpoint.load(folder)["history"]) == 1
        assert zygote.run("--resume", str(folder)).code == 0
        assert outcome(folder) == whole

    def test_closed_pipe(self, zygote: Zygote, whole: Any) -> None:
        pipe, folder = zygote.folder / "pipe", zygote.folder / "piped"
        os.mkfifo(pipe)
        run = zygote.start(*TINY, "--output-dir", str(folder), stdout=str(pipe))
        with open(pipe, encoding="utf-8") as reader:  # the introduction, as head -4 does
            assert "parameters" in reader.readline()
            for _ in range(2):
                reader.readline()
        ended = run.wait()
        assert ended.code == 128 + signal.SIGPIPE
        self.check(zygote, whole, folder, ended)

    def test_help(self, zygote: Zygote) -> None:
        ended = zygote.run("--help", stdout="/dev/full")
        assert ended.code == 1 and ended.err.count("\n") == 1 and "No space left" in ended.err

    def test_full(self, zygote: Zygote) -> None:
        folder = zygote.folder / "full-output"
        ended = zygote.run(*TINY, "--output-dir", str(folder), stdout="/dev/full")
        assert ended.code == 1 and ended.err.count("\n") == 1
        assert "No space left" in ended.err and not folder.exists(), "refused before the first step"

    def test_full_later(self, zygote: Zygote, whole: Any) -> None:
        """No file may pass a limit, which the output meets in its first row, and no other file."""
        introduction = zygote.folder / "full-never"
        shown = zygote.run(*TINY, "--steps", "1", "--output-dir", str(introduction)).out
        folder, out, limit = zygote.folder / "full-later", zygote.folder / "out", 1_000_000
        out.write_text((limit - shown.index("epoch  1") - 10) * " ")
        ended = zygote.run(*TINY, "--output-dir", str(folder), stdout=str(out), file_size=limit)
        assert ended.code == 1, ended
        self.check(zygote, whole, folder, ended)


class TestFullDisk:
    def test_the_state(self, zygote: Zygote) -> None:
        folder = zygote.folder / "full"
        assert zygote.run(*TINY, "--epochs", "2", "--steps", "4", "--output-dir", "full").code == 0
        before = (folder / checkpoint.NAME).read_bytes()
        size = len(before)
        for limit in (1000, size // 2, size - 80, size - 40, size - 1):
            ended = zygote.run("--resume", "full", "--steps", "8", file_size=limit)
            assert ended.code == 1 and ended.err.count("\n") == 1, ended.err
            assert "can't be written (File too large)" in ended.err
            assert (folder / checkpoint.NAME).read_bytes() == before
            assert hidden(folder) == []
        assert zygote.run("--resume", "full", "--steps", "8").code == 0


def test_a_state_is_saved_in_the_middle_of_an_epoch(zygote: Zygote) -> None:
    folder = zygote.folder / "middle"
    run = zygote.start(*TINY, *OFTEN, "--output-dir", "middle")
    wait_for(run, folder / checkpoint.NAME)
    os.kill(run.number, signal.SIGKILL)
    run.wait()
    state = checkpoint.load(folder)
    assert state["history"] == [] and 0 <= state["step"] <= 25
    assert torch.isfinite(state["epoch_sums"]["loss"])
