"""``--resume``: every option is applied or refused, and a state that doesn't fit is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_train import SAMPLE, Run, assert_same_run, metrics, run, weights
from vgg_fast import backends
from vgg_fast.train import checkpoint, data, idx
from vgg_fast.train.config import ADDED_LATER, FILLED, option_types
from vgg_fast.train.loop import Training
from vgg_fast.train.options import Config
from vgg_fast.train.program import main
from vgg_fast.train.resume import APPLIED, ON_RESUME, options_given

__all__ = ["run"]

DEFAULTS = dataclasses.asdict(Config())
# For each option, what a first run has, and what stands on the command line of the one that
# resumes it: never the same.
CHANGES: dict[str, tuple[Any, Any]] = {
    "fused": (True, False),
    "preset": ("fast", "small"),
    "arch": ("1x8,1x16", "1x8,1x8"),
    "width": (1.0, 2.0),
    "image_size": (28, 29),
    "classifier_width": (32, 16),
    "dropout": (0.1, 0.5),
    "batch_norm": (True, False),
    "epochs": (8, 3),
    "target": (0.99, 0.98),
    "batch_size": (50, 128),
    "accumulate": (2, 1),
    "optimizer": ("adamw", "sgd"),
    "lr": (0.05, 0.06),
    "schedule": ("cosine", "one-cycle"),
    "warm_up": (0.1, 0.2),
    "momentum": (0.8, 0.9),
    "weight_decay": (1e-3, 5e-4),
    "label_smoothing": (0.1, 0.0),
    "clip": (2.0, 1.0),
    "ema": (0.9, 0.99),
    "augment": (True, False),
    "flip": (True, False),
    "alternate_flips": (True, False),
    "crop": (1, 0),
    "crop_border": ("reflect", "zeros"),
    "erase": (0.5, 0.0),
    "average_views": (True, False),
    "whiten": (True, False),
    "freeze_features": (True, False),
    "test_share": (0.2, 0.1),
    "broken_images": ("skip", "refuse"),
    "seed": (1, 0),
    "threads": (1, 2),
    "backend": ("reference", "auto"),
    "amp": (True, False),
    "amp_dtype": ("float16", "bfloat16"),
    "compile": (True, False),
    "compile_mode": ("max-autotune", "default"),
    "channels_last": (False, True),
    "dataset": ("fashion-mnist", "synthetic"),
    "data_root": (str(SAMPLE), str(SAMPLE / ".." / SAMPLE.name)),
    "save_every": (3.0, 5.0),
}
APART = {
    "device": "has no second value without a GPU",
    "seeds": "makes another kind of folder: tests/train/test_seeds.py",
    "steps": "counts for one run, whatever the earlier one had",
    "output_dir": "test_into_another_folder",
    "resume": "is what all of these tests do",
    "init": "tests/train/test_init.py",
    "channels": "tests/train/test_picture_folder.py",
    "fsdp": "tests/train/test_ranks.py",
    "tensorboard": "tests/train/test_watching.py: its package may be missing",
    "wandb": "tests/train/test_watching.py",
    "profile": "tests/train/test_profile.py: counts for one run",
}


def option(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, str(value)]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of 3 steps with all first values of CHANGES, where nothing compiles."""
    folder = tmp_path_factory.mktemp("states")
    options = [part for name, (first, _) in CHANGES.items() for part in option(name, first)]
    with pytest.MonkeyPatch.context() as patch, backends.use(backends.get()):
        patch.setattr(
            "vgg_fast.train.program._finish",
            lambda training, *_: training.history[-1] | {"training_seconds": 0},
        )
        patch.setattr(torch, "compile", lambda model, **_: model)
        before = torch.get_num_threads()
        assert main([*options, "--device", "cpu", "--steps", "3", "--output-dir", str(folder)]) == 0
        torch.set_num_threads(before)
    yield folder


class TestOptions:
    def test_every_option_is_classified_and_tried(self) -> None:
        names = {field.name for field in dataclasses.fields(Config)}
        assert set(ON_RESUME) == names
        assert set(CHANGES) | set(APART) == names and not set(CHANGES) & set(APART)
        for name, (first, then) in CHANGES.items():
            assert first != then
            if DEFAULTS[name] is not None and name != "preset":
                assert DEFAULTS[name] in (first, then), f"{name}: the default is the trap"

    @pytest.mark.parametrize("name", CHANGES)
    def test_is_applied_or_refused(
        self, run: Run, states: Path, monkeypatch: pytest.MonkeyPatch, name: str,
        threads: Any,
    ) -> None:  # fmt: skip
        first, then = CHANGES[name]
        monkeypatch.setattr(torch, "compile", lambda model, **_: model)
        shutil.copytree(states, "run")
        before = Path("run", checkpoint.NAME).read_bytes()
        code = main(["--resume", "run", *option(name, then), "--steps", "4"])
        if ON_RESUME[name] is not APPLIED:
            assert code == 1
            assert Path("run", checkpoint.NAME).read_bytes() == before
            assert main(["--resume", "run", *option(name, first), "--steps", "4"]) == 0
            return
        assert code == 0
        used = checkpoint.load(Path("run"))["config"]
        assert used == metrics("run")["config"]
        expected = {**{n: f for n, (f, _) in CHANGES.items()}, name: then}
        assert {n: used[n] for n in CHANGES} == expected

    def test_a_refusal_says_why(self, run: Run, states: Path, capfd: Any) -> None:
        for name, (_, then) in CHANGES.items():
            reason = ON_RESUME[name]
            if reason is not APPLIED:
                capfd.readouterr()
                assert main(["--resume", str(states), *option(name, then)]) == 1
                err = capfd.readouterr().err
                flag = "--" + name.replace("_", "-")
                assert err.count("\n") == 1 and flag in err and reason in err
                assert f"to {then}" in err and "without --resume" in err

    def test_given_is_what_stands_on_the_command_line(self) -> None:
        assert options_given([]) == set()
        for name, value in DEFAULTS.items():
            if value is not None:
                assert options_given(option(name, value)) == {name}
        assert options_given(["--dropout=nan", "--amp=False", "--output-dir", "0"]) == {
            *("dropout", "amp", "output_dir")
        }

    def test_momentum_and_weight_decay_reach_the_optimizer(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run("--steps", "3", "--output-dir", "run")
        seen = []
        train_step = Training._train_step

        def note(self: Training, *batch: torch.Tensor) -> None:
            train_step(self, *batch)
            (group,) = self.optimizer.param_groups
            seen.append((group["momentum"], group["weight_decay"], group["nesterov"]))

        monkeypatch.setattr(Training, "_train_step", note)
        for momentum, decay in ((0.5, 0.0), (0.0, 0.1), (0.9, 5e-4)):
            more = ["--momentum", str(momentum), "--weight-decay", str(decay)]
            code, _, err = run("--resume", "run", *more, "--steps", str(4 + len(seen)))
            assert code == 0, err
            assert seen[-1] == (momentum, decay, momentum > 0)
        assert len(seen) == 3

    def test_a_layout_that_changes_changes_no_number(self, run: Run) -> None:
        run("--epochs", "1", "--output-dir", "whole")
        run("--epochs", "1", "--steps", "5", "--output-dir", "parts")
        assert run("--resume", "parts", "--no-channels-last")[0] == 0
        for name, value in weights("whole").items():
            torch.testing.assert_close(weights("parts")[name], value, rtol=1e-3, atol=1e-4)

    def test_into_another_folder(self, run: Run) -> None:
        run("--epochs", "2", "--output-dir", "whole")
        run("--epochs", "2", "--steps", "5", "--output-dir", "parts")
        before = Path("parts", checkpoint.NAME).read_bytes()
        assert run("--resume", "parts", "--output-dir", "other")[0] == 0
        assert_same_run("whole", "other")
        assert Path("parts", checkpoint.NAME).read_bytes() == before


class TestData:
    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        """The sample, without its last ten training images."""
        folder = tmp_path / "other"
        shutil.copytree(SAMPLE, folder)
        for name, dimensions in (("train-images-idx3-ubyte", 3), ("train-labels-idx1-ubyte", 1)):
            path = folder / f"{name}.gz"
            idx.write(path, idx.read(path, dimensions)[:-60])
        return folder

    def test_of_another_size(self, run: Run, other: Path) -> None:
        run("--steps", "5", "--output-dir", "run")
        code, out, err = run("--resume", "run", "--data-root", str(other))
        assert code == 1 and "epoch" not in out and err.count("\n") == 1
        assert "500 training and 500 test images" in err and "not 440 training" in err

    def test_other_images_of_the_same_size(self, run: Run, other: Path) -> None:
        run("--steps", "5", "--output-dir", "run")
        path = "train-images-idx3-ubyte.gz"
        images = idx.read(SAMPLE / path, 3)
        images[17, 3, 4] ^= 1
        shutil.copytree(SAMPLE, other, dirs_exist_ok=True)
        idx.write(other / path, images)
        code, _, err = run("--resume", "run", "--data-root", str(other))
        assert code == 1 and "other images" in err and "--data-root" in err

    def test_a_trial_that_ends_with_an_epoch_is_tested_on_all_images(self, run: Run) -> None:
        common = ["--batch-size", "125", "--epochs", "2", "--image-size", "20"]
        many = Path("many")
        shutil.copytree(SAMPLE, many)
        for name, dimensions in (("t10k-images-idx3-ubyte", 3), ("t10k-labels-idx1-ubyte", 1)):
            values = idx.read(SAMPLE / f"{name}.gz", dimensions)
            idx.write(many / f"{name}.gz", torch.cat([values, values.flip(0)]))
        common += ["--data-root", "many"]
        run(*common, "--output-dir", "whole")
        run(*common, "--steps", "4", "--output-dir", "parts")  # tests on 4 batches of 8
        code = main(["--resume", "parts"])
        assert code == 0
        assert_same_run("whole", "parts")


class TestBrokenState:
    @staticmethod
    def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """Where something stands in a state: the way of keys and indices to it."""
        if path:
            yield path
        if isinstance(value, dict):
            for key in value:
                yield from TestBrokenState.places(value[key], (*path, key))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                yield from TestBrokenState.places(item, (*path, i))

    @staticmethod
    def changed(state: Any, path: tuple[Any, ...], how: str) -> Any:
        """A copy of ``state`` where what stands at ``path`` is gone, or something else."""
        key, *rest = path
        copy = state.copy()
        if rest:
            copy[key] = TestBrokenState.changed(copy[key], tuple(rest), how)
        elif how == "gone":
            del copy[key]
        else:
            copy[key] = {"text": "x", "none": None, "tensor": torch.zeros(3, 1)}[how]
        return copy

    APART = (
        ("optimizer", "param_groups"),  # not read: they follow from the options and the step
        ("config", "data_root"),  # None looks for the whole data set
    )

    @pytest.mark.parametrize("how", ["gone", "text", "none", "tensor"])
    def test_ends_in_a_sentence(self, run: Run, how: str, capfd: Any) -> None:
        """Every key, at every depth."""
        run("--steps", "5", "--amp", "--amp-dtype", "float16", "--output-dir", "run")
        whole = checkpoint.load(Path("run"))
        Path("broken").mkdir()
        tried = 0
        for path in self.places(whole):
            if path[:2] in self.APART:
                continue
            state = self.changed(whole, path, how)
            with open(Path("broken", checkpoint.NAME), "w+b") as file:
                torch.save(state, file)
                checkpoint._seal(file)
            capfd.readouterr()
            code = main(["--resume", "broken", "--steps", "6"])
            err = capfd.readouterr().err
            harmless = self.is_harmless(path, how)
            assert code == (0 if harmless else 1), (path, err)
            assert err.count("\n") == code and "weights_only" not in err, (path, err)
            tried += 1
        assert tried > 80

    @staticmethod
    def is_harmless(path: tuple[Any, ...], how: str) -> bool:
        if path[0] == "config" and len(path) == 2:
            kind = option_types()[path[1]]
            if how == "gone":
                return path[1] in ADDED_LATER
            # --steps and where the results go are never taken from the earlier run.
            ignored = path[1] in ("steps", "output_dir", "resume")
            if how == "none":
                return ignored or (kind.optional and path[1] not in (*FILLED, "arch"))
            return ignored and how == "text" and Path in kind.types
        if how == "gone" and path == ("input",):  # Fashion-MNIST's, as this run's
            return True
        return path[0] == "history" and how == "gone" and len(path) == 2


class TestEarlierFormat:
    def test_goes_on(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A state as format 1 had it: no checksum, no data, and the schedule itself."""
        for steps in ("5", "10"):
            run("--epochs", "2", "--output-dir", f"whole{steps}")
            run("--epochs", "2", "--steps", steps, "--output-dir", steps)
            self.make_earlier(Path(steps), 20)
            code, _, err = run("--resume", steps)
            assert code == 0, err
            assert_same_run(f"whole{steps}", steps)

    def test_of_data_of_another_size(self, run: Run) -> None:
        run("--epochs", "2", "--steps", "5", "--output-dir", "run")
        self.make_earlier(Path("run"), 938)
        code, _, err = run("--resume", "run")
        assert code == 1 and "other images" in err

    @staticmethod
    def make_earlier(folder: Path, total_steps: int) -> None:
        state = checkpoint.load(folder)
        del state["data"], state["config"]["save_every"]
        state["format"] = 1
        state["schedule"] = {"total_steps": total_steps}
        state["order"] = state["order_at_epoch"]
        torch.save(state, folder / checkpoint.NAME)


def test_the_folder_may_be_no_utf8(run: Run) -> None:
    folder = Path("r\udcffun")
    code, out, err = run("--steps", "5", "--output-dir", str(folder))
    assert code == 0, err
    assert "\\udcff" in out
    code, _, err = run("--resume", str(folder), "--steps", "6")
    assert code == 0, err
    found = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert found["config"]["output_dir"] == str(folder)


def test_identity_tells_images_and_labels_apart() -> None:
    whole = data.load(root=SAMPLE)
    known = {json.dumps(whole.identity())}
    for split in ("train", "test"):
        for field in ("images", "labels"):
            values = getattr(getattr(whole, split), field).clone()
            values.view(-1)[3] += 1
            changed = dataclasses.replace(getattr(whole, split), **{field: values})
            known.add(json.dumps(dataclasses.replace(whole, **{split: changed}).identity()))
    assert len(known) == 5
    assert data.load(root=SAMPLE).identity() == whole.identity()
