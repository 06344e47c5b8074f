"""What looks on while a run trains: history.csv, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_train import Run, assert_same_run, metrics, run
from vgg_fast.train import tracking
from vgg_fast.train.loop import Training
from vgg_fast.train.rows import ROW
from vgg_fast.train.watching import HISTORY, save_csv

__all__ = ["run"]

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard isn't installed"
)


def rows(folder: str) -> list[dict[str, str]]:
    with open(Path(folder) / HISTORY, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cut_at(step: int, patch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    """Let a signal arrive in the step before ``step``."""
    train_step = Training._train_step

    def cut(self: Training, *batch: torch.Tensor) -> None:
        train_step(self, *batch)
        if self.step + 1 == step:
            os.kill(os.getpid(), number)

    patch.setattr(Training, "_train_step", cut)


class TestHistory:
    def test_has_what_metrics_has(self, run: Run) -> None:
        assert run("--epochs", "3", "--output-dir", "run")[0] == 0
        found = [{name: float(value) for name, value in row.items()} for row in rows("run")]
        assert found == metrics("run")["history"] and len(found) == 3

    def test_is_there_after_each_epoch_before_the_line(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = []

        def say(line: str) -> None:
            if line.startswith("epoch"):
                shown.append(len(rows("run")))

        monkeypatch.setattr("vgg_fast.train.program.say", say)
        assert run("--epochs", "3", "--output-dir", "run")[0] == 0
        assert shown == [1, 2, 3]

    def test_a_row_of_a_trial_is_replaced(self, run: Run) -> None:
        run("--epochs", "2", "--steps", "5", "--output-dir", "run")
        assert [row["step"] for row in rows("run")] == ["5"]
        assert run("--resume", "run")[0] == 0
        assert [row["step"] for row in rows("run")] == ["10", "20"]

    def test_an_older_one_is_written_again(self, run: Run) -> None:
        """As a kill between the checkpoint and the table leaves it."""
        run("--epochs", "2", "--output-dir", "run")
        whole = Path("run", HISTORY).read_text()
        Path("run", HISTORY).write_text("older")
        assert run("--resume", "run")[0] == 0
        assert Path("run", HISTORY).read_text() == whole

    def test_columns_that_only_some_rows_have(self, tmp_path: Path) -> None:
        common = dict.fromkeys(ROW, 1)
        save_csv(tmp_path / "t.csv", [common, {**common, "test_accuracy_averaged": 0.5}])
        header, first, second = (tmp_path / "t.csv").read_text().splitlines()
        assert header == ",".join([*ROW, "test_accuracy_averaged"])
        assert first == "1," * len(ROW) and second == "1," * len(ROW) + "0.5"


def test_who_looks_on_changes_nothing(run: Run, fake_wandb: list[Any]) -> None:
    run("--fused", "--epochs", "2", "--output-dir", "alone")
    code, _, err = run(
        *("--fused", "--epochs", "2", "--wandb", "--profile", "3", "--output-dir", "watched")
    )
    assert code == 0, err
    assert_same_run("alone", "watched")


class TestMissing:
    @pytest.mark.parametrize(
        ("option", "module"), [("tensorboard", "tensorboard"), ("wandb", "wandb")]
    )
    def test_is_told_before_the_run_begins(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, option: str, module: str
    ) -> None:
        for name in [n for n in sys.modules if n.split(".")[0] == module or "tensorboard" in n]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        code, out, err = run(f"--{option}", "--output-dir", "new")
        assert code == 1 and out == "" and err.count("\n") == 1
        assert f"--{option} needs the package {module}" in err
        assert f"pip install {module}" in err and not Path("new").exists()


@needs_tensorboard
class TestTensorBoard:
    COMMON = ("--tensorboard", "--epochs", "2")

    @staticmethod
    def read(folder: str) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
        return EventAccumulator(str(Path(folder) / tracking.TENSORBOARD), everything).Reload()

    @classmethod
    def points(cls, folder: str, tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in cls.read(folder).Scalars(tag)]

    def test_curves_by_epoch_are_the_history(self, run: Run) -> None:
        assert run(*self.COMMON, "--output-dir", "run")[0] == 0
        history = metrics("run")["history"]
        for name in set(ROW) - {"epoch", "step"}:
            expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in history]
            assert self.points("run", f"epochs/{name}") == expected

    def test_curves_by_step_add_up_to_the_epochs(self, run: Run) -> None:
        common = ["--batch-size", "20", *self.COMMON]  # 25 steps: 10, 10, and 5
        assert run(*common, "--output-dir", "run")[0] == 0
        points = self.points("run", "steps/loss")
        assert [step for step, _ in points] == [10, 20, 25, 30, 40, 50]
        for number, row in enumerate(metrics("run")["history"]):
            steps = ((10, 10, 5), (5, 10, 10))[number]
            three = points[3 * number : 3 * number + 3]
            mean = sum(n * loss for n, (_, loss) in zip(steps, three, strict=True)) / 25
            assert mean == pytest.approx(row["train_loss"], rel=1e-4)
        assert all(speed > 0 for _, speed in self.points("run", "steps/images_per_second"))

    @pytest.mark.parametrize("at", [10, 13])
    def test_a_resumed_run_goes_on_without_doubling(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, at: int
    ) -> None:
        """The second process starts from an older state, as after a kill."""
        run(*self.COMMON, "--output-dir", "whole")
        with monkeypatch.context() as patch:
            cut_at(at, patch)
            assert run(*self.COMMON, "--output-dir", "run")[0] == 130
        state = Path("run/checkpoint.pt").read_bytes()
        assert run("--resume", "run")[0] == 0
        Path("run/checkpoint.pt").write_bytes(state)
        assert run("--resume", "run")[0] == 0
        assert_same_run("whole", "run")
        whole, parts = self.read("whole"), self.read("run")
        assert whole.Tags()["scalars"] == parts.Tags()["scalars"]
        for tag in whole.Tags()["scalars"]:
            steps = [event.step for event in parts.Scalars(tag)]
            assert steps == [event.step for event in whole.Scalars(tag)], tag
            if "loss" in tag and tag.startswith("epochs"):
                assert self.points("whole", tag) == self.points("run", tag)

    def test_a_new_run_in_the_same_folder_hides_the_earlier_one(self, run: Run) -> None:
        for seed in ("1", "2"):
            run(*self.COMMON, "--seed", seed, "--output-dir", "run")
        assert len(self.points("run", "epochs/test_loss")) == 2

    def test_a_run_that_had_none_brings_its_history(self, run: Run) -> None:
        run("--epochs", "2", "--output-dir", "run")
        assert run("--resume", "run", "--tensorboard")[0] == 0
        assert [step for step, _ in self.points("run", "epochs/test_loss")] == [10, 20]

    def test_options_and_pictures(
        self, monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path
    ) -> None:
        from matplotlib.image import imsave

        def finish(training: Training, folder: Path, *_: Any) -> dict[str, Any]:
            for name in ("confusion_matrix.png", "samples.png"):
                imsave(folder / name, torch.rand(30, 40, 3).numpy())
            return {"test_accuracy": 0, "test_loss": 0, "training_seconds": 0,
                    "images_per_second": 0}  # fmt: skip

        monkeypatch.setattr("vgg_fast.train.program._finish", finish)
        code, _, err = run(*self.COMMON, "--output-dir", "run")
        assert code == 0, err
        read = self.read("run")
        assert read.Tags()["images"] == ["confusion matrix", "samples"]
        (image,) = read.Images("samples")
        assert (image.step, image.width, image.height) == (20, 40, 30)
        (text,) = read.Tensors("options/text_summary")
        assert b"| lr | 0.05 |" in text.tensor_proto.string_val[0]
        assert "_hparams_/session_start_info" in read.summary_metadata


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A package that notes what it gets; it fails at the point "epochs/..." of --seed 13."""
    calls: list[Any] = []

    class FakeRun:
        def __init__(self, **options: Any):
            self.options = options
            calls.append(("init", options))

        def log(self, values: dict[str, Any], step: int) -> None:
            calls.append(("log", step, values))
            if self.options["config"]["seed"] == 13 and "epochs/test_loss" in values:
                raise ConnectionError("the network is down\nand more")

        def finish(self, exit_code: int) -> None:
            calls.append(("finish", exit_code))

    def init(**options: Any) -> FakeRun:
        if options["config"]["seed"] == 14:
            raise RuntimeError("No API key configured.\nMore about it.")
        return FakeRun(**options)

    module = types.ModuleType("wandb")
    vars(module).update(init=init, Settings=dict, Image=str)
    monkeypatch.setitem(sys.modules, "wandb", module)
    yield calls


class TestWeightsAndBiases:
    def test_gets_the_curves(self, run: Run, fake_wandb: list[Any]) -> None:
        assert run("--wandb", "--epochs", "2", "--output-dir", "run")[0] == 0
        kind, options = fake_wandb[0]
        assert kind == "init" and options["name"] == "run" and options["config"]["lr"] == 0.05
        logged = [call[1:] for call in fake_wandb if call[0] == "log"]
        assert [step for step, _ in logged] == [10, 10, 20, 20]
        assert logged[-1][1]["epochs/test_loss"] == metrics("run")["history"][-1]["test_loss"]
        assert fake_wandb[-1] == ("finish", 0)

    def test_a_resumed_run_is_the_same_run(
        self, run: Run, fake_wandb: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            cut_at(13, patch)
            assert run("--wandb", "--epochs", "2", "--output-dir", "run")[0] == 130
        assert fake_wandb[-1] == ("finish", 1)
        assert run("--resume", "run")[0] == 0
        assert run("--wandb", "--epochs", "1", "--output-dir", "run")[0] == 0
        first, then, new = (call[1]["id"] for call in fake_wandb if call[0] == "init")
        assert first == then != new

    def test_a_failure_in_the_middle_ends_nothing(self, run: Run, fake_wandb: list[Any]) -> None:
        code, out, err = run("--wandb", "--seed", "13", "--epochs", "3", "--output-dir", "run")
        assert code == 0 and out.count("epoch ") == 3
        assert err.count("\n") == 1 and "Weights & Biases fails (the network is down)" in err
        assert len(metrics("run")["history"]) == 3

    def test_no_login(self, run: Run, fake_wandb: list[Any]) -> None:
        code, out, err = run("--wandb", "--seed", "14", "--output-dir", "run")
        assert code == 1 and "epoch " not in out and err.count("\n") == 1
        assert "(No API key configured)" in err and "WANDB_MODE=offline" in err


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb isn't installed")
def test_the_real_package_offline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run("--wandb", "--epochs", "1", "--output-dir", "run")[0] == 0
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))
