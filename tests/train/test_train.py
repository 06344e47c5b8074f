"""``python -m vgg_fast.train`` on a thousand real images and a network of two blocks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vgg_fast import backends
from vgg_fast.train import checkpoint, data, results
from vgg_fast.train.config import resolved
from vgg_fast.train.interruption import Signals
from vgg_fast.train.loop import Training
from vgg_fast.train.options import Config
from vgg_fast.train.program import main
from vgg_fast.train.progress import Progressing

SAMPLE = Path(__file__).parents[1] / "data"
TINY = [
    *("--preset", "fast", "--data-root", str(SAMPLE), "--device", "cpu"),
    *("--arch", "1x8,1x16", "--width", "1", "--image-size", "28", "--classifier-width", "32"),
    *("--batch-size", "50", "--dropout", "0.1", "--lr", "0.05"),
]
PICTURES = ["curves.png", "confusion_matrix.png", "network.png", "samples.png"]
WATCHED = ["history.csv", "report.html"]

Run = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """``main`` in an empty folder; gives its exit code, and what it wrote to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    # Each of these takes a second, and tests/train/test_plots.py has them.
    monkeypatch.setattr("vgg_fast.train.program._finish", _finish_without_pictures)
    before = backends.get()

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([*TINY, *arguments])
        return (code, *capfd.readouterr())

    yield call  # type: ignore[misc]
    backends.set(before)


def _finish_without_pictures(training: Training, *_: Any) -> dict[str, Any]:
    return results.result(training)


def metrics(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "metrics.json").read_text("utf-8"))


def weights(folder: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(Path(folder))["model"]


def assert_same_run(one: str, other: str) -> None:
    """The same weights, to the bit, and the same numbers in every epoch."""
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name
    timed = {"seconds", "images_per_second"}
    histories = [
        [{k: v for k, v in row.items() if k not in timed} for row in metrics(f)["history"]]
        for f in (one, other)
    ]
    assert histories[0] == histories[1]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_whole_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vgg_fast.train", "--fused", *TINY, "--epochs", "6"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    folder = tmp_path / "runs/fast-fused"
    assert sorted(f.name for f in folder.iterdir()) == sorted(
        [checkpoint.NAME, "metrics.json", *WATCHED, *PICTURES]
    )
    found = metrics(str(folder))
    history, result = found["history"], found["result"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert result["test_accuracy"] > 0.6 and result["images_per_second"] > 0
    assert found["config"]["lr"] == 0.05 and found["config"]["fused"] is True
    assert found["versions"] and found["cpu"]
    last = done.stdout.splitlines()[-1]
    assert f"test accuracy {result['test_accuracy']:.4f}" in last and "images/s" in last
    assert "\x1b" not in done.stdout, "escape codes outside a terminal"


def test_an_ascii_terminal_and_a_folder_that_is_no_utf8(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    folder = os.fsencode(tmp_path) + b"/r\xffs"
    command = [sys.executable, "-m", "vgg_fast.train", *TINY, "--steps", "2", "--output-dir"]
    ours, its = pty.openpty()
    with subprocess.Popen(
        [*command, folder], stdout=its, stderr=its, env=environment, cwd=tmp_path
    ) as run:
        os.close(its)
        text = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(ours, 4096):
                text += part
    os.close(ours)
    assert run.returncode == 0, text
    assert b"\\udcff" in text and b"test accuracy" in text and text.isascii()
    assert sorted(os.listdir(folder)) == sorted(
        os.fsencode(name) for name in (checkpoint.NAME, "metrics.json", *WATCHED, *PICTURES)
    )


def test_help_names_every_option() -> None:
    command = [sys.executable, "-m", "vgg_fast.train", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in Config.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in text


class TestDefaults:
    def test_cpu_gets_record_and_gpu_gets_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        config = resolved(Config())
        assert (config.preset, config.device, config.amp) == ("record", "cpu", False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        config = resolved(Config())
        assert (config.preset, config.device, config.amp) == ("seed", "cuda", True)

    def test_earlier_results_are_not_overwritten(self, run: Run) -> None:
        assert run("--steps", "1")[0] == 0
        before = digest(Path("runs/fast-plain"))
        assert run("--steps", "1")[0] == 0
        assert digest(Path("runs/fast-plain")) == before
        assert Path("runs/fast-plain-2/metrics.json").is_file()


class TestPrecisionAndCompile:
    @pytest.mark.parametrize("fused", ["--fused", "--no-fused"])
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_amp(self, run: Run, fused: str, dtype: str) -> None:
        code, _, err = run(fused, "--amp", "--amp-dtype", dtype, "--epochs", "2", "--lr", "0.03")
        assert code == 0, err
        (folder,) = Path("runs").iterdir()
        first, last = metrics(str(folder))["history"]
        assert last["train_loss"] < first["train_loss"]

    @pytest.mark.parametrize("fused", ["--fused", "--no-fused"])
    @pytest.mark.parametrize("amp", ["--amp", "--no-amp"])
    def test_compile(self, run: Run, fused: str, amp: str) -> None:
        common = [fused, amp, "--steps", "3", "--dropout", "0"]
        assert run(*common, "--output-dir", "eager")[0] == 0
        code, _, err = run(*common, "--compile", "--output-dir", "compiled")
        assert code == 0, err
        losses = [metrics(f)["history"][-1]["train_loss"] for f in ("eager", "compiled")]
        assert losses[1] == pytest.approx(losses[0], rel=2e-2 if amp == "--amp" else 1e-4)


class TestRepeatable:
    def test_the_same_seed_gives_the_same_run(self, run: Run) -> None:
        for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
            run("--fused", "--epochs", "2", "--seed", seed, "--output-dir", folder)
        assert_same_run("a", "b")
        assert metrics("a")["history"] != metrics("c")["history"]

    def test_each_epoch_has_its_own_order(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        firsts = []
        train_step = Training._train_step

        def note(self: Training, images: torch.Tensor, labels: torch.Tensor) -> None:
            if self.step % len(self.batches) == 0:
                firsts.append(labels.tolist())
            train_step(self, images, labels)

        monkeypatch.setattr(Training, "_train_step", note)
        run("--epochs", "3")
        assert len({tuple(labels) for labels in firsts}) == 3

    def test_a_row_is_saved_before_it_is_shown(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = []

        def say(line: str) -> None:
            if line.startswith("epoch"):
                shown.append([row["epoch"] for row in checkpoint.load(Path("run"))["history"]])
                assert metrics("run")["history"] == checkpoint.load(Path("run"))["history"]

        monkeypatch.setattr("vgg_fast.train.program.say", say)
        assert run("--epochs", "3", "--output-dir", "run")[0] == 0
        assert shown == [[1], [1, 2], [1, 2, 3]]

    @pytest.mark.parametrize("stop", ["4", "10", "13"])  # in the first epoch, between, in the next
    @pytest.mark.parametrize("more", [[], ["--augment", "--amp"]])
    def test_resumed_equals_uninterrupted(self, run: Run, stop: str, more: list[str]) -> None:
        common = ["--fused", "--epochs", "2", *more]
        run(*common, "--output-dir", "whole")
        run(*common, "--steps", stop, "--output-dir", "parts")
        code, _, err = run("--resume", "parts")
        assert code == 0, err
        assert_same_run("whole", "parts")

    def test_resumed_when_all_is_done(self, run: Run) -> None:
        run("--epochs", "1", "--output-dir", "done")
        before = weights("done")
        code, out, _ = run("--resume", "done")
        assert code == 0 and "test accuracy" in out.splitlines()[-1]
        assert all(torch.equal(v, before[k]) for k, v in weights("done").items())


class TestInterruption:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("at", [3, 10, 14])
    def test_goes_on_where_it_was_cut(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at: int
    ) -> None:
        common = ["--fused", "--epochs", "2"]
        run(*common, "--output-dir", "whole")
        train_step = Training._train_step

        def cut(self: Training, *batch: torch.Tensor) -> None:
            train_step(self, *batch)
            if self.step + 1 == at:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patch:
            patch.setattr(Training, "_train_step", cut)
            code, _, err = run(*common, "--output-dir", "parts")
        assert code == 128 + number
        assert f"after step {at}" in err and "--resume parts" in err and "Traceback" not in err
        assert run("--resume", "parts")[0] == 0
        assert_same_run("whole", "parts")

    def test_signals_are_given_back(self) -> None:
        before = signal.getsignal(signal.SIGINT)
        with Signals():
            assert signal.getsignal(signal.SIGINT) != before
        assert signal.getsignal(signal.SIGINT) == before


def test_a_last_batch_that_is_not_full_counts_as_it_should() -> None:
    from rich.console import Console

    results = []
    for batch_size in (500, 64, 7):
        config = resolved(
            Config(arch="1x8", width=1, image_size=28, classifier_width=16, device="cpu",
                   preset="fast", batch_size=batch_size)
        )  # fmt: skip
        training = Training(config, data.load(root=SAMPLE))
        loss, accuracy, confusion = training.evaluate(Progressing(Console(quiet=True)))
        assert confusion.sum() == 500 and confusion.sum(1).tolist() == [50] * 10
        assert accuracy == pytest.approx(int(confusion.trace()) / 500)
        results.append((loss, accuracy))
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--image-size", "3"], "too small for 2 blocks"),
            (["--arch", "1*64"], "--arch '1*64' can't be read"),
            (["--width", "-1"], "--width must be finite and more than 0"),
            (["--epochs", "0"], "--epochs must be at least 1"),
            (["--batch-size", "0"], "--batch-size must be at least 1"),
            (["--lr", "0"], "--lr must be finite and more than 0"),
            (["--momentum", "1"], "--momentum must be in [0, 1)"),
            (["--dropout", "2"], "dropout must be between 0 and 1"),
            (["--device", "gpu"], "'gpu'"),
            (["--device", "cuda:99"], "'cuda:99' isn't there"),
            (["--data-root", "nowhere"], "nowhere lacks"),
            (["--resume", "nowhere"], "there is no checkpoint nowhere"),
            (["--lr", "1e9"], "lower --lr"),
            (["--lr", "inf"], "--lr must be finite and more than 0"),
            (["--dropout", "nan"], "dropout must be between 0 and 1"),
            (["--weight-decay", "inf"], "--weight-decay must be finite and not negative"),
            (["--save-every", "0"], "--save-every must be finite and more than 0"),
            (["--width", "1e9"], "lower --width"),
            (["--width", "1e300"], "--width must be at most"),
            (["--image-size", "100000"], "lower --width, --image-size"),
            (["--image-size", str(10**30)], "--image-size must be at most"),
            (["--classifier-width", "2000000000"], "--classifier-width or"),
            (["--batch-size", str(10**23)], "--batch-size must be at most"),
            (["--arch", "1x8,999999999x8"], "at most 1000 convolutions"),
            (["--arch", "1x" + 5000 * "9"], "can't be read"),
            (["--seed", str(10**23)], "--seed must be at most"),
            (["--seed", "-1"], "--seed must be at least 0"),
            (["--threads", "100000"], "--threads must be at most"),
            (["--resume", 300 * "x"], "can't be read: File name too long"),
            (["--data-root", 300 * "x"], "can't be read: File name too long"),
            (["--output-dir", 300 * "x"], "can't be written (File name too long)"),
        ],
    )
    def test_one_sentence(self, run: Run, arguments: list[str], words: str) -> None:
        code, _, err = run(*arguments, "--steps", "5")
        assert code == 1
        assert words in err and err.count("\n") == 1 and "Traceback" not in err

    def test_memory_that_ends_in_a_step(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def allocate(self: Training, *_: torch.Tensor) -> None:
            torch.empty(2**50)

        monkeypatch.setattr(Training, "_train_step", allocate)
        code, _, err = run("--steps", "1")
        assert code == 1 and err.count("\n") == 1 and "lower --batch-size" in err

    def test_nothing_is_left_of_a_run_that_is_refused(self, run: Run) -> None:
        for arguments in (["--image-size", "3"], ["--output-dir", "new", "--data-root", "nowhere"]):
            assert run(*arguments)[0] == 1
        assert not Path("new").exists() and not list(Path("runs").glob("*"))

    def test_unknown_preset(self, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as raised:
            run("--preset", "huge")
        assert raised.value.code == 2
        err = capfd.readouterr().err
        assert "huge" in err and "fast" in err

    def test_output_folder_that_cannot_be_written(self, run: Run) -> None:
        Path("file").write_text("earlier")
        code, out, err = run("--output-dir", "file/run", "--steps", "1")
        assert code == 1 and "can't be written" in err and "--output-dir" in err
        assert "epoch" not in out and Path("file").read_text() == "earlier"

    def test_output_is_as_it_was_when_a_run_is_refused(self, run: Run) -> None:
        run("--steps", "2", "--output-dir", "earlier")
        before = digest(Path("earlier"))
        whole = Path("earlier", checkpoint.NAME).read_bytes()
        Path("broken.pt").write_bytes(whole[: len(whole) // 2])
        for arguments in (
            ["--resume", "earlier", "--arch", "1x8,2x16"],
            ["--resume", "earlier", "--epochs", "77"],
            ["--resume", "broken.pt", "--output-dir", "earlier"],
            ["--data-root", "nowhere", "--output-dir", "earlier"],
            ["--image-size", "2", "--output-dir", "earlier"],
        ):
            code, _, err = run(*arguments)
            assert code == 1 and err.count("\n") == 1, err
            assert digest(Path("earlier")) == before
