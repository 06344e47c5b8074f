"""The training loop."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from vgg_fast.models import VGG
from vgg_fast.train import local, ranks, recipe, restoring, sharding
from vgg_fast.train.augmentation import Augmentation, views
from vgg_fast.train.batches import Batches
from vgg_fast.train.config import TrainingError, as_plain_values, check_memory, make_model
from vgg_fast.train.data import Dataset
from vgg_fast.train.initial import freeze, load_convolutions, whiten
from vgg_fast.train.inputs import Input
from vgg_fast.train.options import Config
from vgg_fast.train.progress import Progressing
from vgg_fast.train.rows import AVERAGED, ROW
from vgg_fast.train.sums import Sums

# Between these, nothing waits for the device: a GPU's queue stays full.
STEPS_BETWEEN_UPDATES = 10
WHITENED = 1000 * 28 * 28  # pixels of the training images whose patches --whiten takes
SAMPLES = 36  # test images whose predictions are shown


def do_nothing() -> None:
    """Between two batches, unless there is something to do."""


class Training:
    """A network, what trains it, and how far it has come.

    Args:
        config: resolved.
        data: what it learns.
    """

    def __init__(self, config: Config, data: Dataset):
        assert config.lr and config.epochs and config.image_size and config.batch_size
        assert config.schedule and config.warm_up is not None
        batch_size = min(config.batch_size, len(data.train.labels))
        ranks.require_equal_parts(batch_size)
        check_memory(
            config,
            len(data.classes),
            math.ceil(batch_size / config.accumulate),
            data.channels,
            ranks.size(),
            ranks.local_size(),
        )
        augmentation = Augmentation.of(config)
        augmentation.check(data.train.images)
        torch.manual_seed(config.seed)
        self.config = config
        self.data = data
        self.identity = data.identity()
        ranks.require_same_images(self.identity["sha256"])
        self.device = torch.device(config.device)
        self.input = Input.of(config, data)
        self.model = make_model(config, len(data.classes), data.channels)
        if config.init is not None and config.resume is None:  # else the state has its weights
            load_convolutions(self.model, config.init)
        if config.whiten and config.resume is None:
            count = max(1, WHITENED // config.image_size**2)
            whiten(self.model, self.input.prepared(data.train.images[:count]).to(self.device))
        if config.freeze_features:
            freeze(self.model)
        if config.fsdp:
            sharding.shard(self.model, self.device)
        local.seed(config.seed)
        self.order = torch.Generator().manual_seed(config.seed)
        self.order_at_epoch = self.order.get_state()
        shared: dict[str, Any] = {
            "device": self.device,
            "channels_last": config.channels_last,
            "mean": self.input.mean,
            "deviation": self.input.deviation,
            "rank": ranks.rank(),
            "ranks": ranks.size(),
        }
        self.batches = Batches(
            data.train,
            batch_size,
            config.image_size,
            shuffle=True,
            drop_last=True,  # one shape of batch, for torch.compile
            generator=self.order,
            augmentation=augmentation,
            **shared,
        )
        self.test_batches = Batches(data.test, config.batch_size, config.image_size, **shared)
        self.optimizer = recipe.make_optimizer(config, self.model)
        self.rate = recipe.LearningRate(
            config.schedule, config.lr, config.warm_up, config.epochs * len(self.batches)
        )
        self.average = None if config.ema is None else recipe.Average(self.model, config.ema)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=bool(config.amp) and config.amp_dtype == "float16"
        )
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.confusion: Tensor | None = None
        self._samples: tuple[Tensor, Tensor, Tensor] | None = None
        self.accuracy_averaged: float | None = None
        self.epoch_sums = Sums.on(self.device)
        self.epoch_seconds = 0.0
        self.net: Callable[[Tensor], Tensor] = self.model
        if not config.fsdp:
            self.net = sharding.wrapped(self.model)
        if config.compile:
            mode = None if config.compile_mode == "default" else config.compile_mode
            self.net = torch.compile(self.net, mode=mode, dynamic=False)

    @property
    def tested(self) -> VGG:
        """What is tested, and predicts: the averaged weights, if there are any."""
        return self.model if self.average is None else self.average.model

    @property
    def last_step(self) -> int:
        """The step after which the run ends."""
        assert self.config.epochs
        every = self.config.epochs * len(self.batches)
        return every if self.config.steps is None else min(every, self.config.steps)

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`run` has nothing left to do."""
        if self.reached_target is not None:
            return True
        return self.step >= self.last_step and not self._is_untested()

    @property
    def reached_target(self) -> dict[str, Any] | None:
        """The row of the first whole epoch with the test accuracy of --target."""
        target = self.config.target
        if target is None:
            return None
        whole = (row for row in self.history if row["step"] % len(self.batches) == 0)
        return next((row for row in whole if row["test_accuracy"] >= target), None)

    # ------------------------------------------------------------------------------------------

    def run(
        self, progress: Progressing, between: Callable[[], None] = do_nothing
    ) -> Iterator[dict[str, Any]]:
        """Train to the last step, or to the target; gives the row of each epoch.

        Args:
            progress: shows how far it is.
            between: called between two batches, where :meth:`state` is whole. What it raises
                leaves it so.

        Raises:
            TrainingError: the loss isn't finite any more.
        """
        while not self.has_ended:
            if not self._is_untested():
                self._train_to_epoch_end(progress, between)
            yield self._close_epoch(progress, between)

    def _is_untested(self) -> bool:
        """Whether the run was cut between the last step of an epoch and its row."""
        is_end = self.step % len(self.batches) == 0 or self.step == self.last_step
        tested = self.history[-1]["step"] if self.history else 0
        return is_end and self.step > tested

    def _train_to_epoch_end(self, progress: Progressing, between: Callable[[], None]) -> None:
        done = self.step % len(self.batches)
        if done == 0:
            self.epoch_sums, self.epoch_seconds = Sums.on(self.device), 0.0
        self.order.set_state(self.order_at_epoch)  # an epoch that was cut is drawn again
        end = min(len(self.batches), done + self.last_step - self.step)
        self.batches.epoch = self.step // len(self.batches)
        self.model.train()
        if self.config.freeze_features:
            freeze(self.model)
        name = f"epoch {self.step // len(self.batches) + 1}/{self.config.epochs}"
        with progress.task(name, len(self.batches), done) as show:
            started = time.perf_counter()
            before = self.epoch_seconds
            for images, labels in itertools.islice(self.batches, done, end):
                paused = time.perf_counter()
                between()
                started += time.perf_counter() - paused
                self._train_step(images, labels)
                self.step += 1
                self.epoch_seconds = before + time.perf_counter() - started
                if self.step % STEPS_BETWEEN_UPDATES == 0 or self.device.type == "cpu":
                    sums = self.check_loss()
                    loss, accuracy = sums.means()
                    speed = sums.images / self.epoch_seconds
                    position = (self.step - 1) % len(self.batches) + 1
                    show(position, f"loss {loss:.3f}  acc {accuracy:.3f}  {speed:.0f} images/s")
        self.check_loss()
        if end == len(self.batches):
            self.order_at_epoch = self.order.get_state()

    def _train_step(self, images: Tensor, labels: Tensor) -> None:
        """One step, in --accumulate passes over parts of the batch; its gradient is that of all."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate.at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        parts = min(self.config.accumulate, len(labels))
        cut = zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)
        for number, (some, their_labels) in enumerate(cut, start=1):
            with sharding.gradients_shared(self.net, self.model, number == parts):
                self._pass(some, their_labels, len(their_labels) / len(labels))
        if self.config.clip is not None:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(recipe.parameters_of(self.optimizer), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.follow(self.step + 1)

    def _pass(self, images: Tensor, labels: Tensor, share: float) -> None:
        """Forward and backward, of a ``share`` of the batch, whose mean counts each image once."""
        with self._autocast():
            logits = self.net(images)
            loss = cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing or 0.0)
        self.scaler.scale(loss * share).backward()
        self.epoch_sums.add(loss, logits, labels)

    def _autocast(self) -> torch.autocast:
        dtype = getattr(torch, self.config.amp_dtype)
        return torch.autocast(self.device.type, dtype, enabled=bool(self.config.amp))

    def check_loss(self) -> Sums:
        """This epoch's sums so far, over all ranks.

        Raises:
            TrainingError: the loss isn't finite.
        """
        sums = self.epoch_sums.over_ranks()
        loss, _ = sums.means()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self.step}: train with a lower --lr than "
                f"{self.config.lr}"
            )
        return sums

    def _close_epoch(self, progress: Progressing, between: Callable[[], None]) -> dict[str, Any]:
        sums = self.epoch_sums.over_ranks()
        loss, accuracy = sums.means()
        learning_rate = self.rate.at(self.step)
        test_loss, test_accuracy, self.confusion = self.evaluate(progress, between)
        epoch = (self.step - 1) // len(self.batches) + 1
        if (
            self.history and self.history[-1]["epoch"] == epoch
        ):  # it was cut by --steps, and continues
            self.history.pop()
        speed = sums.images / max(self.epoch_seconds, 1e-9)
        values = (
            *(epoch, self.step, loss, accuracy, test_loss, test_accuracy, self.epoch_seconds),
            *(speed, learning_rate),
        )
        row: dict[str, Any] = dict(zip(ROW, values, strict=True))
        if self.accuracy_averaged is not None:
            row[AVERAGED] = self.accuracy_averaged
        self.history.append(row)
        return self.history[-1]

    @torch.no_grad()
    def evaluate(
        self, progress: Progressing, between: Callable[[], None] = do_nothing
    ) -> tuple[float, float, Tensor]:
        """Loss, accuracy and confusion matrix (rows are the truth) on the test images.

        A run of a few steps tests on as many batches. With --average-views, the accuracy of the
        mean over :func:`~vgg_fast.train.augmentation.views` is ``accuracy_averaged`` afterwards.
        """
        self.tested.eval()
        sharding.share_buffers(self.tested)
        sums, classes = Sums.on(self.device), len(self.data.classes)
        correct_averaged = torch.zeros((), dtype=torch.long, device=self.device)
        confusion = torch.zeros(classes * classes, dtype=torch.long, device=self.device)
        limit = self.config.steps
        total = len(self.test_batches) if limit is None else min(limit, len(self.test_batches))
        with progress.task("test", total) as show:
            for i, (images, labels) in enumerate(itertools.islice(self.test_batches, total)):
                between()
                with self._autocast():
                    logits = self.tested(images).float()
                if len(labels):  # a rank's part of the last batch may be empty
                    sums.add(cross_entropy(logits, labels), logits, labels)
                pairs = labels * classes + logits.argmax(1)
                confusion += torch.bincount(pairs, minlength=classes * classes)
                if self.config.average_views:
                    logits += self._logits_of_other_views(images)
                    correct_averaged += (logits.argmax(1) == labels).sum()
                show(i + 1, "")
        sums = sums.over_ranks()
        if self.config.average_views:
            self.accuracy_averaged = int(ranks.total(correct_averaged)) / max(1, sums.images)
        confusion = ranks.total(confusion).reshape(classes, classes)
        return (*sums.means(), confusion.cpu())

    def _logits_of_other_views(self, images: Tensor) -> Tensor:
        """Their sum over all views but the first."""
        with self._autocast():
            layout = self.test_batches.memory_format
            found = [
                self.tested(view.contiguous(memory_format=layout)) for view in views(images)[1:]
            ]
        return torch.stack([logits.float() for logits in found]).sum(0)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The classes that the model sees in uint8 ``images``, as the data set has them."""
        self.tested.eval()
        split = dataclasses.replace(
            self.data.test, images=images, labels=torch.zeros(len(images), dtype=torch.long)
        )
        size = self.test_batches.image_size
        batches = Batches(
            split,
            len(images),
            size,
            device=self.device,
            mean=self.input.mean,
            deviation=self.input.deviation,
        )
        with self._autocast():
            return torch.cat([self.tested(batch).argmax(1) for batch, _ in batches]).cpu()

    @property
    def drawn(self) -> VGG:
        """The network for drawings: where each rank has a part of it, one without values."""
        if not self.config.fsdp:
            return self.model
        return make_model(self.config, len(self.data.classes), self.data.channels).to("meta")

    def samples(self) -> tuple[Tensor, Tensor, Tensor]:
        """The first test images, their labels, and the classes that the model sees in them.

        Predicted at the first call, which all ranks make, since they may share the model.
        """
        if self._samples is None:
            test = self.data.test
            images = test.images[:SAMPLES]
            self._samples = images, test.labels[:SAMPLES], self.predict(images)
        return self._samples

    # ------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs to go on as if nothing had happened.

        All ranks call it, and the first one's is whole. Another number of ranks can go on from it.
        """
        sharding.share_buffers(self.model)
        average = {}
        if self.average is not None:
            sharding.share_buffers(self.average.model)
            average = {"average": self.average.model.state_dict()}
        return {
            "config": as_plain_values(self.config),
            "data": self.identity,
            "input": self.input.as_plain_values(),
            "model": sharding.whole(self.model.state_dict()),
            **average,
            "optimizer": sharding.whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "history": self.history,
            "epoch_seconds": self.epoch_seconds,
            "epoch_sums": dataclasses.asdict(self.epoch_sums.over_ranks()),
            "order_at_epoch": self.order_at_epoch,
            **local.random_states(self.device),
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Go back to :meth:`state`, under the options of this run.

        Raises:
            TrainingError: it belongs to another architecture or other data, or is broken.
        """
        restoring.restore(self, state, path)
