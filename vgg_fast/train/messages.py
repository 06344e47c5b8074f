"""The lines that a run prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vgg_fast.train import ranks, results, seeds
from vgg_fast.train.initial import trainable
from vgg_fast.train.loop import Training
from vgg_fast.train.options import Config
from vgg_fast.train.rows import AVERAGED


def introduction(training: Training, asked_for_auto: bool) -> Iterator[str]:
    """What a run says of itself before it begins."""
    config, data = training.config, training.data
    parameters = sum(p.numel() for p in training.model.parameters())
    if asked_for_auto and training.device.type == "cpu":
        yield (
            'No GPU here: the preset is "record" (32 to 128 channels, 28 x 28 images), which takes '
            "minutes. The seed network, --preset seed, takes hours on a CPU."
        )
    elif config.preset == "seed" and training.device.type == "cpu" and config.steps is None:
        yield 'The preset "seed" takes hours on a CPU; "record" takes minutes.'
    size = config.image_size
    yield (
        f"{config.preset}, {'fused' if config.fused else 'plain'}: {parameters:,} parameters, "
        f"{size} x {size} images, batches of {config.batch_size}, "
        f"{config.epochs} epochs of {len(training.batches)} steps"
    )
    precision = config.amp_dtype if config.amp else "float32"
    how = f", torch.compile ({config.compile_mode})" if config.compile else ""
    threads = f", {torch.get_num_threads()} threads" if training.device.type == "cpu" else ""
    if ranks.size() > 1:
        threads = f", {ranks.size()} processes" + (threads and f" of{threads[1:]} each")
        how += ", parameters cut over the processes" if config.fsdp else ""
    yield f"on {training.device}{threads}, {precision}{how}"
    yield (
        f"{len(data.train.labels):,} training and {len(data.test.labels):,} test images from "
        f"{data.source}; results go to {config.output_dir}"
    )
    yield from data.notes
    if config.init is not None:
        summed = ", the first one's summed over its colours" if data.channels == 1 else ""
        yield f"the convolutions are those of {config.init}{summed}"
    if config.freeze_features:
        learning = sum(p.numel() for p in trainable(training.model))
        yield f"the classifier alone learns: {learning:,} parameters"
    if training.step:
        rest = ": there is nothing left to do" if training.has_ended else ""
        yield f"resumed after step {training.step} of {training.last_step}{rest}"


def line(row: dict[str, Any], config: Config) -> str:
    """Of an epoch."""
    averaged = ""
    if AVERAGED in row:
        averaged = f"averaged {row[AVERAGED]:.4f}  "
    return (
        f"epoch {row['epoch']:>2}/{config.epochs}  loss {row['train_loss']:.4f}  "
        f"accuracy {row['train_accuracy']:.4f}  test loss {row['test_loss']:.4f}  "
        f"test accuracy {row['test_accuracy']:.4f}  {averaged}{row['seconds']:.1f} s  "
        f"{row['images_per_second']:.0f} images/s"
    )


def target_line(training: Training) -> str:
    """Of a run that has ended: whether it has reached its --target."""
    target, reached = training.config.target, results.reached_target(training)
    if reached is not None:
        return (
            f"the target, a test accuracy of {target}, was reached in epoch {reached['epoch']}, "
            f"after {reached['training_seconds']:.1f} s of training"
        )
    best = max(training.history, key=lambda row: row["test_accuracy"])
    return (
        f"the target, a test accuracy of {target}, wasn't reached: the best was "
        f"{best['test_accuracy']:.4f}, in epoch {best['epoch']}"
    )


def closing_line(result: dict[str, Any]) -> str:
    """The plain line that ends a run, or several seeds."""
    if "runs" in result:
        return seeds.closing_line(result)
    return (
        f"test accuracy {result['test_accuracy']:.4f}, test loss {result['test_loss']:.4f}, "
        f"{result['training_seconds']:.1f} s of training, "
        f"{result['images_per_second']:.0f} images/s"
    )
