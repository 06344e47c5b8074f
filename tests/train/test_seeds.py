"""``--seeds``: every seed is the single run that it would be, and what was begun is continued."""

from __future__ import annotations

import json
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_train import Run, assert_same_run, digest, metrics, run
from vgg_fast.train import checkpoint, data, program
from vgg_fast.train.loop import Training
from vgg_fast.train.options import Config

__all__ = ["run"]


def summary(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "summary.json").read_text("utf-8"))


def interrupt(patch: pytest.MonkeyPatch, seed: int, at: int) -> None:
    """From now on, Ctrl-C comes before step ``at`` of ``seed``."""
    train_step = Training._train_step

    def cut(self: Training, *batch: torch.Tensor) -> None:
        train_step(self, *batch)
        if self.config.seed == seed and self.step + 1 == at:
            os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(Training, "_train_step", cut)


def test_each_is_a_single_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def of_run(config: Config) -> data.Dataset:
        loads.append(config)
        return data.of_run(config)

    monkeypatch.setattr(program, "of_run", of_run)
    common = ["--fused", "--epochs", "2", "--augment"]
    code, out, err = run(*common, "--seed", "3", "--seeds", "3", "--output-dir", "all")
    assert code == 0, err
    assert len(loads) == 1
    assert sorted(f.name for f in Path("all").iterdir()) == [
        *("seed-3", "seed-4", "seed-5", "summary.json"),
    ]
    for seed in (3, 5):
        run(*common, "--seed", str(seed), "--output-dir", f"single-{seed}")
        assert_same_run(f"all/seed-{seed}", f"single-{seed}")
    found = summary("all")
    assert found["config"]["seeds"] == 3
    for seed, entry in zip((3, 4, 5), found["runs"], strict=True):
        assert entry == {"seed": seed, **metrics(f"all/seed-{seed}")["result"]}
    accuracies = [entry["test_accuracy"] for entry in found["runs"]]
    spread = found["test_accuracy"]
    assert len(set(accuracies)) > 1
    assert spread["mean"] == pytest.approx(sum(accuracies) / 3)
    assert spread["deviation"] == pytest.approx(statistics.stdev(accuracies))
    assert (spread["least"], spread["largest"]) == (min(accuracies), max(accuracies))
    last = out.splitlines()[-1]
    assert last.startswith(f"3 seeds: test accuracy {spread['mean']:.4f} on average")
    assert f"deviation {spread['deviation']:.4f}" in last
    assert f"from {min(accuracies):.4f} to {max(accuracies):.4f}" in last
    assert f"{found['training_seconds']['mean']:.1f} s of training" in last


@pytest.mark.parametrize("at", [4, 13])
def test_goes_on_with_the_seed_that_was_cut(
    run: Run, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    common = ["--epochs", "2", "--seeds", "3"]
    run(*common, "--output-dir", "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, 1, at)
        code, _, err = run(*common, "--output-dir", "parts")
    assert code == 130 and f"after step {at} of 20" in err and "--resume parts " in err
    assert not Path("parts/seed-2").exists()
    assert [len(entry) > 1 for entry in summary("parts")["runs"]] == [True, False]
    first = digest(Path("parts/seed-0"))
    code, out, err = run("--resume", "parts")
    assert code == 0, err
    assert "seed 0," not in out and f"resumed after step {at}" in out and "seed 2, 3 of 3" in out
    assert digest(Path("parts/seed-0")) == first
    for seed in range(3):
        assert_same_run(f"whole/seed-{seed}", f"parts/seed-{seed}")
    before = digest(Path("parts"))
    code, again, _ = run("--resume", "parts")
    assert code == 0 and again.splitlines() == out.splitlines()[-1:]
    assert digest(Path("parts")) == before


def test_cut_before_the_first_checkpoint(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of an earlier run in the same folder isn't taken for this one's."""
    run("--epochs", "1", "--seeds", "2", "--lr", "0.01", "--output-dir", "run")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt  # as a kill does: nothing is saved

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_train_step", fail)
        assert run("--epochs", "1", "--seeds", "2", "--output-dir", "run")[0] == 130
    code, out, err = run("--resume", "run")
    assert code == 0 and "resumed after" not in out, err
    run("--epochs", "1", "--seeds", "2", "--output-dir", "whole")
    for seed in range(2):
        assert_same_run(f"whole/seed-{seed}", f"run/seed-{seed}")


def test_a_trial_of_every_seed_goes_on(run: Run) -> None:
    run("--epochs", "1", "--seeds", "2", "--output-dir", "whole")
    run("--epochs", "1", "--seeds", "2", "--steps", "4", "--output-dir", "parts")
    code, out, err = run("--resume", "parts")
    assert code == 0 and out.count("resumed after step 4 of 10") == 2, err
    for seed in range(2):
        assert_same_run(f"whole/seed-{seed}", f"parts/seed-{seed}")


def test_one_of_them_is_resumed_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 0, 5)
        assert run("--epochs", "1", "--seeds", "2", "--output-dir", "run")[0] == 130
    assert run("--resume", "run/seed-0")[0] == 0
    assert metrics("run/seed-0")["result"]["steps"] == 10
    code, out, _ = run("--resume", "run")
    assert code == 0 and "there is nothing left to do" in out
    assert [entry["steps"] for entry in summary("run")["runs"]] == [10, 10]


class TestRefused:
    @pytest.fixture
    def both(self, run: Run) -> dict[str, str]:
        """Several seeds in "all", a single run in "single"."""
        assert run("--steps", "2", "--seeds", "2", "--output-dir", "all")[0] == 0
        assert run("--steps", "2", "--output-dir", "single")[0] == 0
        return digest(Path("."))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--resume", "single", "--seeds", "2"], "--seeds can't change from 1 to 2"),
            (["--resume", "all", "--seeds", "3"], "--seeds can't change from 2 to 3"),
            (["--resume", "all", "--seed", "1"], "--seed can't change from 0 to 1"),
            (["--resume", "all", "--lr", "0.06"], "--lr can't change from 0.05 to 0.06"),
            (["--resume", "all", "--output-dir", "new"], "leave --output-dir out"),
            (["--output-dir", "all"], "all holds the runs of several seeds"),
            (["--output-dir", "single", "--seeds", "2"], "single holds a single run"),
            (["--seeds", "2", "--image-size", "3", "--output-dir", "new"], "too small"),
            (["--seeds", "2", "--data-root", "nowhere", "--output-dir", "new"], "nowhere lacks"),
        ],
    )
    def test_and_nothing_changes(
        self, run: Run, both: dict[str, str], arguments: list[str], words: str
    ) -> None:
        code, _, err = run(*arguments, "--steps", "3")
        assert code == 1 and words in err and err.count("\n") == 1
        assert digest(Path(".")) == both and not Path("new").exists()

    def test_a_broken_summary(self, run: Run, both: dict[str, str]) -> None:
        whole = summary("all")
        for broken in (
            *("", "[]", "{}", '{"config": {}, "runs": []}'),
            json.dumps({**whole, "runs": [{"seed": 0, "test_accuracy": 0.5}]}),
            json.dumps({**whole, "runs": ["seed"]}),
            json.dumps({**whole, "config": {**whole["config"], "lr": "fast"}}),
        ):
            Path("all/summary.json").write_text(broken)
            code, _, err = run("--resume", "all")
            assert code == 1 and "summary.json is broken" in err and err.count("\n") == 1
        assert (Path("all/seed-0") / checkpoint.NAME).is_file()
