"""Two processes that train together: as one would, to the rounding, and ending as one does.

Most are forked, for speed, with the environment and the store that torchrun would give them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.zygote import Ended, Run, Zygote
from vgg_fast.train import checkpoint, data, fashion_mnist, local, ranks
from vgg_fast.train.augmentation import NOTHING, Augmentation
from vgg_fast.train.batches import Batches
from vgg_fast.train.folder import FILES
from vgg_fast.train.program import main

SAMPLE = Path(__file__).parents[1] / "data"
TINY = [
    *("--preset", "fast", "--data-root", str(SAMPLE), "--device", "cpu", "--fused"),
    *("--arch", "1x8,1x16", "--width", "1", "--image-size", "28", "--classifier-width", "32"),
    # The last of the test batches has 20 images.
    *("--batch-size", "48", "--lr", "0.05", "--augment", "--epochs", "3"),
]
SAME = [*TINY, "--dropout", "0"]
SECONDS = 120  # far more than any of these takes


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(zygote: Zygote) -> Path:
    """The folder of a run of one process."""
    ended = zygote.run(*SAME, "--output-dir", "alone")
    assert ended.code == 0, ended.err
    return zygote.folder / "alone"


class Two:
    """Two ranks, forked; the store is here, as it is torchrun's."""

    def __init__(self, zygote: Zygote, *arguments: str, more: Any = ((), ()), **how: Any):
        self.store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
        )
        everywhere = {
            **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port)},
            **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"},
        }
        self.runs: list[Run] = []
        for i in (0, 1):
            environment = {**everywhere, "RANK": str(i), "LOCAL_RANK": str(i)}
            own = how if i == 0 else {}
            self.runs.append(zygote.start(*arguments, *more[i], environment=environment, **own))

    def wait(self) -> list[Ended]:
        """Both, to their ends."""
        return [run.wait() for run in self.runs]


def train_two(zygote: Zygote, *arguments: str) -> str:
    """Both must succeed; gives what the first one printed."""
    first, second = Two(zygote, *arguments).wait()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.err == second.err == second.out == ""
    return first.out


def torchrun(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*command, "--nproc-per-node=2", *arguments]


def history(folder: Path) -> list[dict[str, float]]:
    timed = {"seconds", "images_per_second"}
    rows = checkpoint.load(folder)["history"]
    assert rows == json.loads((folder / "metrics.json").read_text("utf-8"))["history"]
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def momentum(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(folder)["optimizer"]["state"]
    return {str(i): found["momentum_buffer"] for i, found in state.items()}


def assert_same_up_to_rounding(one: Path, other: Path) -> None:
    assert len(history(one)) == len(history(other))
    for row, its in zip(history(one), history(other), strict=True):
        assert row == pytest.approx(its, rel=1e-5)
        for name in ("train_accuracy", "test_accuracy"):  # an image counted twice shows here
            assert row[name] == its[name]
    for tensors in (lambda folder: checkpoint.load(folder)["model"], momentum):
        its = tensors(other)
        for name, value in tensors(one).items():
            torch.testing.assert_close(value, its[name], rtol=1e-4, atol=1e-5, msg=name)


def wait_for(file: Path, run: subprocess.Popen[str] | None = None) -> None:
    for _ in range(100 * SECONDS):
        if file.exists():
            return
        if run is not None and run.poll() is not None:
            pytest.fail(run.communicate()[1])
        time.sleep(0.01)
    pytest.fail(f"{file} never came")


def test_two_are_as_one(tmp_path: Path, alone: Path) -> None:
    command = torchrun("-m", "vgg_fast.train", *SAME, "--output-dir", "two")
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=SECONDS
    )
    folder = tmp_path / "two"
    assert_same_up_to_rounding(folder, alone)
    others = {"summary.json", "profile.txt", "trace.json.gz", "wandb.id"}  # of other options
    assert {file.name for file in folder.iterdir()} == set(FILES) - others
    assert "2 processes of" in done.stdout and done.stdout.count("epoch  1/3") == 1
    assert done.stdout.count("test accuracy 0.") == 4 and "vgg_fast" not in done.stderr


def test_any_number_goes_on_from_any_other(zygote: Zygote, alone: Path) -> None:
    folder = zygote.folder / "parts"
    resume = ["--resume", "parts"]
    train_two(zygote, *SAME, "--fsdp", "--output-dir", "parts", "--steps", "7")
    assert zygote.run(*resume, "--steps", "13").code == 0
    out = train_two(zygote, *resume, "--fsdp", "--steps", "17")
    assert "resumed after step 13" in out and "parameters cut over the processes" in out
    out = train_two(zygote, *resume, "--no-fsdp")
    assert "resumed after step 17" in out and "parameters cut" not in out
    assert_same_up_to_rounding(folder, alone)
    assert list(checkpoint.load(folder)["model"]) == list(checkpoint.load(alone)["model"])


def test_interrupted_and_resumed_with_dropout(zygote: Zygote) -> None:
    """Each rank has masks of its own, and goes on with them."""
    common = [*TINY, "--dropout", "0.3", "--epochs", "20"]
    train_two(zygote, *common, "--output-dir", "whole")
    folder = zygote.folder / "interrupted"
    two = Two(zygote, *common, "--output-dir", "interrupted")
    wait_for(folder / checkpoint.NAME)
    os.kill(two.runs[0].number, signal.SIGINT)
    assert [one.code for one in two.wait()] == [128 + signal.SIGINT] * 2
    assert 0 < checkpoint.load(folder)["step"] < 200
    train_two(zygote, "--resume", "interrupted")
    assert history(folder) == history(zygote.folder / "whole")
    for name, value in checkpoint.load(folder)["model"].items():
        assert torch.equal(value, checkpoint.load(zygote.folder / "whole")["model"][name]), name
    first, second = (found["random"] for found in random_states(folder))
    assert not torch.equal(first, second)


def test_ctrl_c(tmp_path: Path) -> None:
    command = torchrun("-m", "vgg_fast.train", *TINY, "--epochs", "100000", "--output-dir", "run")
    with subprocess.Popen(command, cwd=tmp_path, text=True, stderr=subprocess.PIPE) as run:
        try:
            wait_for(tmp_path / "run" / checkpoint.NAME, run)
            run.send_signal(signal.SIGINT)
            _, err = run.communicate(timeout=SECONDS)
        finally:
            run.kill()
    step = checkpoint.load(tmp_path / "run")["step"]
    assert run.returncode != 0
    assert err.count(f"interrupted after step {step} of 1000000; the state is saved") == 1, err


def random_states(folder: Path) -> list[dict[str, torch.Tensor]]:
    state = checkpoint.load(folder)
    return [state, *state["random_of_others"]]


class TestEnds:
    def check(self, ended: list[Ended], *words: str) -> None:
        """One sentence of both together."""
        err = "".join(one.err for one in ended)
        assert err.count("\n") == 1 and "Traceback" not in err, err
        for part in words:
            assert part in err
        assert all(one.code for one in ended)

    @pytest.mark.parametrize("number", [0, 1])
    def test_one_is_killed(self, zygote: Zygote, number: int) -> None:
        two = Two(zygote, *TINY, "--epochs", "100000", "--output-dir", f"killed-{number}")
        wait_for(zygote.folder / f"killed-{number}" / checkpoint.NAME)
        os.kill(two.runs[number].number, signal.SIGKILL)
        killed = time.monotonic()
        ended = two.wait()
        assert time.monotonic() - killed < 20
        self.check(ended, "another process of this run has ended")
        assert zygote.run("--resume", f"killed-{number}", "--steps", "1").code == 0

    def test_the_disk_is_full_for_the_first(self, zygote: Zygote) -> None:
        ended = Two(zygote, *TINY, "--output-dir", "full", file_size=2000).wait()
        self.check(ended, "can't be written (File too large)")
        assert not (zygote.folder / "full" / checkpoint.NAME).exists()

    def test_nobody_reads_the_output(self, zygote: Zygote) -> None:
        pipe = zygote.folder / "pipe"
        os.mkfifo(pipe)
        two = Two(zygote, *TINY, "--output-dir", "piped", stdout=str(pipe))
        with open(pipe, encoding="utf-8") as reader:
            for _ in range(3):
                reader.readline()
        self.check(two.wait(), "the state is saved, and --resume piped")
        assert zygote.run("--resume", "piped").code == 0

    def test_one_of_them_is_interrupted(self, zygote: Zygote) -> None:
        """As by the system, which may know one of them only; all stop at the same step."""
        two = Two(zygote, *TINY, "--epochs", "100000", "--output-dir", "one")
        wait_for(zygote.folder / "one" / checkpoint.NAME)
        for _ in range(2):  # a scheduler and torchrun both pass it on
            os.kill(two.runs[1].number, signal.SIGTERM)
        ended = two.wait()
        self.check(ended, "interrupted after step", "the state is saved")
        assert [one.code for one in ended] == [128 + signal.SIGTERM] * 2

    @pytest.mark.parametrize(
        ("arguments", "more", "words"),
        [
            (["--batch-size", "51"], ((), ()), "can't be cut into 2 equal parts"),
            (["--fsdp", "--compile"], ((), ()), "--fsdp doesn't go with --compile"),
            (["--lr", "1e9"], ((), ()), "lower --lr"),
            ([], (("--lr", "0.1"), ()), "process 1 has --lr 0.05, and process 0 has --lr 0.1"),
            ([], ((), ("--resume", "x")), "process 1 has --resume x, and process 0"),
            ([], ((), ("--data-root", "nowhere")), "nowhere lacks"),
            ([], ((), ("--data-root", "other")), "process 1 has found other images"),
        ],
    )
    def test_refused_once(
        self, zygote: Zygote, arguments: list[str], more: Any, words: str
    ) -> None:
        other = zygote.folder / "other"
        if not other.exists():
            other.mkdir()
            for name in fashion_mnist.FILES:  # trained on what the others are tested on
                its = name.replace("train", "t10k")
                (other / f"{name}.gz").write_bytes((SAMPLE / f"{its}.gz").read_bytes())
        self.check(Two(zygote, *TINY, *arguments, more=more).wait(), words)

    def test_an_option_that_is_none(self, zygote: Zygote) -> None:
        first, second = Two(zygote, "--presets").wait()
        assert (first.code, second.code) == (2, 2)
        assert "--preset" in first.err and second.err == second.out == ""


class TestAlone:
    def test_fsdp_needs_company(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert main([*TINY, "--fsdp"]) == 1
        assert "start them with torchrun" in capfd.readouterr().err

    def test_an_environment_that_is_not_whole(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(TINY) == 1
        err = capfd.readouterr().err
        assert "RANK isn't: start several processes with torchrun" in err and err.count("\n") == 1


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("augment", [False, True])
def test_parts_of_a_batch(count: int, augment: bool) -> None:
    """Together they are the batch of one process, whatever is drawn at random."""
    split = data.load(root=SAMPLE).test

    def batches(**part: int) -> Batches:
        drawn = torch.Generator().manual_seed(1)
        augmentation = Augmentation(flip=True, crop=2, erase=0.5) if augment else NOTHING
        options: Any = {"shuffle": True, "augmentation": augmentation, "generator": drawn, **part}
        return Batches(split, 71, 32, **options)

    parts = [batches(rank=i, ranks=count) for i in range(count)]
    for whole, *cut in zip(batches(), *parts, strict=True):
        for i in (0, 1):
            assert torch.equal(torch.cat([part[i] for part in cut]), whole[i])
        sizes = [len(part[1]) for part in cut]
        assert max(sizes) - min(sizes) <= 1


def test_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_cores", lambda: 12)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's
    assert local.fair_threads() is None
    monkeypatch.setattr(ranks, "_here", ranks.Place(0, 16, 0, 8))
    assert local.fair_threads() == 1
    monkeypatch.setattr(ranks, "_here", ranks.Place(0, 4, 0, 4))
    assert local.fair_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's
    assert local.fair_threads() is None


PASSES = """
import torch
from vgg_fast.models import VGG
from vgg_fast.train import ranks, sharding

def network():
    torch.manual_seed(0)
    return VGG(((1, 4),), image_size=8, classifier_width=8, dropout=0.0)

torch.manual_seed(1)
images = torch.rand(2, 2, 3, 1, 8, 8)  # of ranks and passes
ranks.find_place()
with ranks.joined():
    single = network()
    single(images.flatten(0, 2)).square().mean().backward()
    for cut in (False, True):
        model = network()
        if cut:
            sharding.shard(model, torch.device("cpu"))
        net = model if cut else sharding.wrapped(model)
        for i in (0, 1):
            with sharding.gradients_shared(net, model, is_last=i == 1):
                (net(images[ranks.rank(), i]).square().mean() / 2).backward()
        for one, other in zip(model.parameters(), single.parameters()):
            found = one.grad.full_tensor() if cut else one.grad
            torch.testing.assert_close(found, other.grad)
    seen = torch.nn.BatchNorm1d(2)
    seen.running_mean.fill_(ranks.rank())
    sharding.share_buffers(seen)
    assert seen.running_mean.tolist() == [0.5, 0.5]
    print("same")
ranks.leave(0)
"""


def test_gradients_of_several_passes(tmp_path: Path) -> None:
    (tmp_path / "passes.py").write_text(PASSES)
    done = subprocess.run(
        torchrun(str(tmp_path / "passes.py")),
        **{"cwd": Path(__file__).parents[2], "capture_output": True, "text": True},
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 1
