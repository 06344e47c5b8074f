"""Optimizers, schedules, clipping, accumulation, averaged weights, batch norm, and the target."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy, log_softmax
from torch.nn.utils import get_total_norm

from tests.train.test_train import SAMPLE, Run, assert_same_run, metrics, run, weights
from vgg_fast.models import VGG
from vgg_fast.train import checkpoint, data, memory, plots
from vgg_fast.train.config import TrainingError, resolved
from vgg_fast.train.loop import Training
from vgg_fast.train.options import Config
from vgg_fast.train.progress import Progressing
from vgg_fast.train.recipe import Average, LearningRate

__all__ = ["run"]

QUIET = Progressing(Console(quiet=True))


def training(**options: Any) -> Training:
    tiny: dict[str, Any] = {"arch": "1x8,1x16", "width": 1.0, "classifier_width": 32, "lr": 0.05}
    more = {"preset": "fast", "image_size": 28, "device": "cpu", "batch_size": 50, "dropout": 0.0}
    config = Config(**{**tiny, **more, **options})
    return Training(resolved(config), data.load(root=SAMPLE))


def gradients(of: Training) -> list[torch.Tensor]:
    found = [parameter.grad for parameter in of.model.parameters()]
    return [gradient.clone() for gradient in found if gradient is not None]


class TestRate:
    @pytest.mark.parametrize("steps", [2, 10, 23, 3752])
    @pytest.mark.parametrize("warm_up", [0.25, 0.4])
    def test_one_cycle_is_torchs(self, steps: int, warm_up: float) -> None:
        optimizer = torch.optim.SGD([torch.zeros(1)], 0.06)
        theirs = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.06, total_steps=steps, pct_start=warm_up, cycle_momentum=False
        )
        ours = LearningRate("one-cycle", 0.06, warm_up, steps)
        for step in range(steps + 1):
            assert ours.at(step) == theirs.get_last_lr()[0], step
            if step < steps:
                optimizer.step()
                theirs.step()

    @pytest.mark.parametrize("schedule", ["cosine", "triangle", "constant"])
    def test_the_others_rise_and_fall(self, schedule: str) -> None:
        rate = LearningRate(schedule, 0.1, 0.2, 100)
        rising = [rate.at(step) for step in range(21)]
        assert rising == pytest.approx([0.1 * (step + 1) / 21 for step in range(21)])
        falling = [rate.at(step) for step in range(20, 101)]
        expected = {
            "cosine": [0.05 * (1 + math.cos(math.pi * i / 80)) for i in range(81)],
            "triangle": [0.1 * (1 - i / 80) for i in range(81)],
            "constant": [0.1] * 81,
        }[schedule]
        assert falling == pytest.approx(expected)

    @pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "triangle", "constant"])
    @pytest.mark.parametrize("warm_up", [0.0, 0.25, 0.5, 1.0])
    def test_short_runs_and_extremes(self, schedule: str, warm_up: float) -> None:
        for steps in (1, 2, 4, 9):
            rate = LearningRate(schedule, 0.1, warm_up, steps)
            rates = [rate.at(step) for step in range(steps)]
            assert all(0 < value <= 0.1 * (1 + 1e-12) for value in rates)
            if warm_up == 0 and schedule != "one-cycle":
                assert rates[0] == 0.1

    @pytest.mark.parametrize("schedule", ["cosine", "triangle"])
    def test_it_reaches_the_optimizer(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, schedule: str
    ) -> None:
        seen = []
        train_step = Training._train_step

        def note(self: Training, *batch: torch.Tensor) -> None:
            train_step(self, *batch)
            seen.append(self.optimizer.param_groups[0]["lr"])

        monkeypatch.setattr(Training, "_train_step", note)
        common = ["--schedule", schedule, "--warm-up", "0.3", "--epochs", "2"]
        run(*common, "--steps", "7", "--output-dir", "parts")
        assert run("--resume", "parts")[0] == 0
        rate = LearningRate(schedule, 0.05, 0.3, 20)
        assert seen == [rate.at(step) for step in range(20)]
        assert metrics("parts")["history"][0]["learning_rate"] == rate.at(10)


class TestOptimizer:
    def test_adamw_has_its_own_defaults(self) -> None:
        config = resolved(Config(preset="fast", device="cpu", optimizer="adamw"))
        assert (config.lr, config.weight_decay, config.warm_up) == (1e-3, 1e-2, 0.25)
        config = resolved(Config(preset="fast", device="cpu", schedule="cosine"))
        assert (config.lr, config.weight_decay, config.warm_up) == (0.06, 5e-4, 0.05)

    def test_adamw_steps_as_torchs(self) -> None:
        one = training(optimizer="adamw", lr=0.01, momentum=0.8, weight_decay=0.1)
        other = copy.deepcopy(one.model)
        reference = torch.optim.AdamW(other.parameters(), betas=(0.8, 0.999), weight_decay=0.1)
        batches = iter(one.batches)
        for step in range(3):
            images, labels = next(batches)
            one._train_step(images, labels)
            one.step += 1
            reference.param_groups[0]["lr"] = one.rate.at(step)
            reference.zero_grad()
            cross_entropy(other(images), labels).backward()
            reference.step()
        for ours, theirs in zip(one.model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        "more",
        [
            ["--optimizer", "adamw", "--lr", "0.003", "--clip", "0.5", "--no-fused"],
            ["--optimizer", "adamw", "--lr", "0.003", "--amp", "--amp-dtype", "float16"],
            ["--ema", "0.9", "--batch-norm", "--accumulate", "3", "--label-smoothing", "0.1"],
            ["--ema", "0.99", "--schedule", "triangle", "--momentum", "0"],
            ["--optimizer", "muon", "--lr", "0.02", "--schedule", "triangle"],
            ["--optimizer", "muon", "--lr", "0.02", "--momentum", "0", "--batch-norm"],
        ],
    )
    @pytest.mark.parametrize("stop", ["7", "10"])
    def test_resumed_equals_uninterrupted(self, run: Run, stop: str, more: list[str]) -> None:
        common = ["--fused", "--epochs", "2", *more]
        assert run(*common, "--output-dir", "whole")[0] == 0
        run(*common, "--steps", stop, "--output-dir", "parts")
        code, _, err = run("--resume", "parts", *more)
        assert code == 0, err
        assert_same_run("whole", "parts")
        states = [checkpoint.load(Path(folder)) for folder in ("whole", "parts")]
        assert ("average" in states[0]) == ("--ema" in more)
        for name, value in states[0].get("average", {}).items():
            assert torch.equal(value, states[1]["average"][name]), name

    def test_momentum_may_begin_and_end_with_a_resumed_run(self, run: Run) -> None:
        for optimizer in ("sgd", "muon"):
            common = ["--optimizer", optimizer, "--steps", "5", "--output-dir"]
            for then, now in (("0", "0.9"), ("0.9", "0")):
                folder = f"{optimizer}{then}"
                run("--momentum", then, *common, folder)
                code, _, err = run("--resume", folder, "--momentum", now, "--steps", "8")
                assert code == 0, err

    def test_a_state_that_lacks_something_is_refused(self, run: Run) -> None:
        run("--optimizer", "adamw", "--ema", "0.9", "--steps", "3", "--output-dir", "run")
        whole = checkpoint.load(Path("run"))
        spoilt: list[dict[str, Any]] = [copy.deepcopy(whole) for _ in range(4)]
        del spoilt[0]["optimizer"]["state"][2]["exp_avg_sq"]
        spoilt[1]["optimizer"]["state"][2]["step"] = "three"
        del spoilt[2]["average"]
        spoilt[3]["average"].popitem()
        for state in spoilt:
            checkpoint.save(Path("run", checkpoint.NAME), state)
            code, _, err = run("--resume", "run", "--steps", "4")
            assert code == 1 and err.count("\n") == 1 and "checkpoint run" in err, err


class TestGradients:
    def test_smoothed_labels(self) -> None:
        one = training(label_smoothing=0.3)
        images, labels = next(iter(one.batches))
        other = copy.deepcopy(one.model)
        one._train_step(images, labels)
        logarithms = log_softmax(other(images), 1)
        right = logarithms.gather(1, labels[:, None]).squeeze(1)
        loss = -(0.7 * right + 0.3 * logarithms.mean(1)).mean()
        loss.backward()
        assert one.epoch_sums.means()[0] == pytest.approx(loss.item(), rel=1e-5)
        for ours, theirs in zip(gradients(one), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-6)

    def test_the_test_loss_is_of_the_labels_as_they_are(self) -> None:
        losses = [training(label_smoothing=s).evaluate(QUIET)[0] for s in (0.0, 0.3)]
        assert losses[0] == losses[1]

    @pytest.mark.parametrize("amp", [False, True])
    def test_are_clipped_to_the_norm(self, amp: bool) -> None:
        norms = {}
        for clip in (None, 0.05, 1e6):
            one = training(clip=clip, amp=amp, amp_dtype="float16")
            one._train_step(*next(iter(one.batches)))
            norms[clip] = float(get_total_norm(gradients(one)))
            assert all(torch.isfinite(p).all() for p in one.model.parameters())
        assert norms[0.05] == pytest.approx(0.05, rel=1e-3)
        # Where nothing is clipped, they are unscaled all the same: 65536 times as large else.
        assert 0.05 < norms[1e6] < 1e3
        if not amp:
            assert norms[None] == norms[1e6]

    @pytest.mark.parametrize("parts", [2, 3, 7, 50])
    def test_of_parts_are_those_of_the_batch(self, parts: int) -> None:
        """In float64, where a part of another size that was weighted wrongly would be seen."""
        runs = []
        for accumulate in (1, parts):
            one = training(accumulate=accumulate, label_smoothing=0.1)
            images, labels = next(iter(one.batches))
            one.model.double()
            one._train_step(images.double(), labels)
            runs.append((one.epoch_sums, gradients(one)))
        (whole, expected), (cut, found) = runs
        assert cut.images == whole.images == 50 and int(cut.correct) == int(whole.correct)
        assert float(cut.loss) == pytest.approx(float(whole.loss), rel=1e-6)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)

    def test_parts_are_what_the_network_is_called_with(self) -> None:
        one = training(accumulate=8, fused=True)
        sizes = []
        one.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        one._train_step(*next(iter(one.batches)))
        assert sum(sizes) == 50 and len(sizes) == 8 and max(sizes) == 7

    def test_more_passes_than_images(self) -> None:
        one = training(batch_size=1000, accumulate=700)  # the sample has 500
        one._train_step(*next(iter(one.batches)))
        assert one.epoch_sums.images == 500


class TestAverage:
    def test_follows_the_weights_and_the_statistics(self) -> None:
        one = training(ema=0.5, batch_norm=True)
        assert one.average is not None
        expected = {name: value.double() for name, value in one.model.state_dict().items()}
        for step, batch in zip(range(1, 9), one.batches, strict=False):
            one._train_step(*batch)
            one.step += 1
            kept = min(0.5, (1 + step) / (10 + step))
            for name, value in one.model.state_dict().items():
                if value.is_floating_point():
                    expected[name] = kept * expected[name] + (1 - kept) * value.double()
                else:
                    expected[name] = value.double()
        found = one.average.model.state_dict()
        assert any("running_var" in name for name in found)
        for name, value in expected.items():
            torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)

    def test_forgets_the_beginning(self) -> None:
        model = VGG(((1, 4),), image_size=4, classifier_width=4)
        average = Average(model, 0.9999)
        with torch.no_grad():
            for parameter in average.model.parameters():
                parameter.fill_(100.0)
            for parameter in model.parameters():
                parameter.fill_(1.0)
        for step in range(1, 101):
            average.follow(step)
        for parameter in average.model.parameters():
            torch.testing.assert_close(parameter, torch.ones_like(parameter))

    def test_is_what_is_tested_and_predicts(self) -> None:
        one = training(ema=0.9)
        assert one.average is not None
        with torch.no_grad():
            for parameter in one.average.model.parameters():
                parameter.zero_()
            list(one.average.model.parameters())[-1][3] = 1.0  # class 3, whatever the image
        _, accuracy, confusion = one.evaluate(QUIET)
        assert accuracy == pytest.approx(0.1) and int(confusion[:, 3].sum()) == 500
        assert one.predict(one.data.test.images[:5]).tolist() == [3] * 5

    def test_both_are_saved(self, run: Run) -> None:
        run("--ema", "0.9", "--epochs", "1", "--output-dir", "run")
        run("--epochs", "1", "--output-dir", "without")
        state = checkpoint.load(Path("run"))
        for name, value in weights("without").items():
            assert torch.equal(state["model"][name], value)
            assert not torch.equal(state["average"][name], value)
        assert checkpoint.result_weights(state) is state["average"]
        other = training(ema=None)
        other.model.load_state_dict(state["average"])
        loss, accuracy, _ = other.evaluate(QUIET)
        last = metrics("run")["history"][-1]
        assert (loss, accuracy) == pytest.approx((last["test_loss"], last["test_accuracy"]))
        assert last["test_loss"] != metrics("without")["history"][-1]["test_loss"]


NORMED: dict[str, Any] = {"image_size": 16, "classifier_width": 32, "batch_norm": True}


class TestBatchNorm:
    def test_fused_and_plain_are_the_same_network(self) -> None:
        torch.manual_seed(0)
        fused = VGG(((1, 16), (2, 32)), **NORMED)
        plain = VGG(((1, 16), (2, 32)), fused=False, **NORMED)
        assert list(fused.state_dict()) == list(plain.state_dict())
        assert "0.0.bias" in fused.state_dict() and "1.4.running_var" in fused.state_dict()
        assert str(fused) == str(plain)
        plain.load_state_dict(fused.state_dict())
        images = torch.randn(8, 1, 16, 16)
        for model in (fused, plain):
            for dropout in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
                dropout.p = 0.0
            model.train()(images).square().sum().backward()
            model.eval()
        for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None and theirs.grad is not None
            largest = float(theirs.grad.abs().max())
            torch.testing.assert_close(
                ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * largest + 1e-3, msg=name
            )
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(fused(images), plain(images), rtol=1e-3, atol=1e-4)

    def test_initial_values(self) -> None:
        model = VGG(((1, 4),), **NORMED)
        model(torch.randn(8, 1, 16, 16))
        norm = model[0][1]
        assert norm.running_mean.any() and int(norm.num_batches_tracked) == 1
        with torch.no_grad():
            norm.weight.fill_(3)
        model.reset_parameters()
        assert not norm.running_mean.any() and int(norm.num_batches_tracked) == 0
        assert torch.equal(norm.weight, torch.ones(4)) and not norm.bias.any()

    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_parameters_are_counted_beforehand(self, batch_norm: bool) -> None:
        blocks = ((1, 16), (2, 32))
        model = VGG(blocks, **{**NORMED, "batch_norm": batch_norm}, device="meta")
        count = sum(parameter.numel() for parameter in model.parameters())
        assert memory.parameters_of_vgg(blocks, 16, 32, 10, batch_norm=batch_norm) == count

    def test_the_picture_has_it(self) -> None:
        model = VGG(((1, 4), (1, 8)), **NORMED)
        stages = plots.stages_of(model, (1, 16, 16))
        assert sum(stage.parameters for stage in stages) == sum(
            parameter.numel() for parameter in model.parameters()
        )
        assert [s.label for s in stages if s.kind == "fused"] == ["conv 3×3\nbatch norm\nReLU"] * 2

    def test_it_trains(self, run: Run) -> None:
        code, _, err = run("--batch-norm", "--fused", "--epochs", "4", "--output-dir", "run")
        assert code == 0, err
        assert metrics("run")["result"]["test_accuracy"] > 0.6
        assert weights("run")["0.1.running_mean"].any()
        code, _, err = run("--resume", "run", "--no-batch-norm")
        assert code == 1 and "--batch-norm" in err


class TestTarget:
    def test_ends_after_the_first_epoch_that_reaches_it(self, run: Run) -> None:
        run("--epochs", "5", "--output-dir", "whole")
        history = metrics("whole")["history"]
        accuracies = [row["test_accuracy"] for row in history]
        epoch = next(i for i in range(1, 5) if accuracies[i] > max(accuracies[:i])) + 1
        assert epoch < 5
        target = str(accuracies[epoch - 1])
        code, out, _ = run("--epochs", "5", "--target", target, "--output-dir", "run")
        assert code == 0
        assert f"the target, a test accuracy of {target}, was reached in epoch {epoch}" in out
        found = metrics("run")
        assert len(found["history"]) == epoch
        seconds = sum(row["seconds"] for row in found["history"])
        assert found["result"]["reached_target"] == {
            "epoch": epoch,
            "training_seconds": pytest.approx(seconds),
        }
        before = weights("run")
        code, out, _ = run("--resume", "run")
        assert code == 0 and "there is nothing left to do" in out and "\nepoch" not in out
        assert all(torch.equal(value, before[name]) for name, value in weights("run").items())
        # With another target it goes on, as if it had never stopped.
        code, out, _ = run("--resume", "run", "--target", "1")
        assert code == 0 and "wasn't reached" in out
        assert_same_run("whole", "run")

    def test_is_not_reached(self, run: Run) -> None:
        code, out, _ = run("--epochs", "2", "--target", "0.999", "--output-dir", "run")
        found = metrics("run")
        best = max(row["test_accuracy"] for row in found["history"])
        assert code == 0 and len(found["history"]) == 2
        assert f"wasn't reached: the best was {best:.4f}, in epoch" in out
        assert found["result"]["reached_target"] is None

    def test_a_trial_within_an_epoch_does_not_reach_it(self, run: Run) -> None:
        code, out, _ = run("--steps", "3", "--target", "0.0001", "--output-dir", "run")
        assert code == 0 and "wasn't reached" in out
        code, out, _ = run("--resume", "run")
        assert code == 0 and "was reached in epoch 1," in out
        assert metrics("run")["result"]["steps"] == 10


def test_memory_counts_what_the_recipe_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "of_device", lambda _: 80_000_000)
    wide: dict[str, Any] = {"classifier_width": 2048}  # 5.8 million parameters
    training(**wide)
    for more in ({"optimizer": "adamw"}, {"ema": 0.9}):
        with pytest.raises(TrainingError, match="or more to train"):
            training(**wide, **more)  # type: ignore[arg-type]
    monkeypatch.setattr(memory, "of_device", lambda _: 4_000_000)
    with pytest.raises(TrainingError, match="batches of 500 images"):
        training(batch_size=500)
    training(batch_size=500, accumulate=10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--label-smoothing", "1"], "--label-smoothing must be in [0, 1), but it is 1.0"),
        (["--label-smoothing", "nan"], "--label-smoothing must be in [0, 1), but it is nan"),
        (["--warm-up", "1.5"], "--warm-up must be in [0, 1], but it is 1.5"),
        (["--ema", "1"], "--ema must be in (0, 1), but it is 1.0"),
        (["--ema", "0"], "--ema must be in (0, 1), but it is 0.0"),
        (["--target", "0"], "--target must be in (0, 1], but it is 0.0"),
        (["--target", "93"], "--target must be in (0, 1], but it is 93.0"),
        (["--clip", "0"], "--clip must be finite and more than 0, but it is 0.0"),
        (["--clip", "inf"], "--clip must be finite and more than 0, but it is inf"),
        (["--accumulate", "0"], "--accumulate must be at least 1, but it is 0"),
        (["--accumulate", "51"], "--accumulate must be at most --batch-size, 50, but it is 51"),
        (["--seeds", "0"], "--seeds must be at least 1, but it is 0"),
        (["--seed", str(2**63 - 2), "--seeds", "3"], "with --seeds 3"),
    ],
)
def test_what_cannot_be(run: Run, arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments, "--steps", "2")
    assert code == 1 and "epoch" not in out
    assert words in err and err.count("\n") == 1
    assert not list(Path("runs").glob("*"))
