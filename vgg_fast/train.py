"""The training program: ``python -m vgg_fast.train --fused``.

It trains a VGG network on Fashion-MNIST and leaves a checkpoint, metrics.json and pictures in its
output folder. The loop itself is in :mod:`vgg_fast.loop`.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from vgg_fast import backends, checkpoint, info, plots
from vgg_fast.config import Config, TrainingError, as_plain_values, from_plain_values, resolved
from vgg_fast.data import DataError, load
from vgg_fast.interruption import Interrupted, Signals
from vgg_fast.loop import Training
from vgg_fast.progress import Progressing


def train(config: Config, console: Console) -> dict[str, Any]:
    """One run, from its options to the files in its output folder.

    Returns:
        what metrics.json holds under "result".

    Raises:
        TrainingError, DataError: it can't start or go on; earlier files are as they were.
        Interrupted: by Ctrl-C; the last state is saved.
    """
    asked_for_auto = config.preset == "auto"
    state = None
    if config.resume is not None:
        state = checkpoint.load(config.resume)
        config = _resumed(config, state)
        asked_for_auto = False
    config = resolved(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    backends.set(config.backend)
    folder = _output_folder(config)
    config = dataclasses.replace(config, output_dir=folder)
    data = load(config.dataset, config.data_root)
    training = Training(config, data)
    if state is not None and config.resume is not None:
        training.restore(state, config.resume)
    _try_one_image(training)
    for line in _introduction(training, asked_for_auto):
        console.print(line, highlight=False, markup=False)

    def save() -> None:
        checkpoint.save(folder / checkpoint.NAME, training.state())
        checkpoint.save_json(folder / "metrics.json", _metrics(training))

    progress = Progressing(console)
    with Signals() as signals:
        try:
            for row in training.run(signals, progress):
                console.print(_line(row, config), highlight=False, markup=False)
                save()
        except Interrupted as interrupted:
            save()
            raise Interrupted(
                interrupted.number,
                f"interrupted after step {training.step} of {training.last_step}; the state is "
                f"saved, and --resume {folder} goes on from it",
            ) from None
    return _finish(training, folder, progress)


def _resumed(config: Config, state: dict[str, Any]) -> Config:
    """The options of the run that made ``state``, and over them those that were given now."""
    assert config.resume is not None
    earlier = from_plain_values(state["config"])
    default = Config()
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Config)
        if getattr(config, field.name) != getattr(default, field.name)
    }
    for name in ("epochs", "batch_size", "lr"):  # the schedule hangs on them
        if name in given and given[name] != getattr(earlier, name):
            option = "--" + name.replace("_", "-")
            raise TrainingError(
                f"{option} can't change from {getattr(earlier, name)} to {given[name]} in the "
                f"middle of a run: leave it out, or start anew without --resume"
            )
    folder = config.resume if config.resume.is_dir() else config.resume.parent
    return dataclasses.replace(earlier, **{"steps": None, "output_dir": folder, **given})


def _output_folder(config: Config) -> Path:
    """The folder for the results: it exists, and a file can be written there."""
    folder = config.output_dir
    if folder is None:
        name = f"{config.preset}-{'fused' if config.fused else 'plain'}"
        names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
        folder = next(p for p in (Path("runs") / n for n in names) if not p.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TrainingError(
            f"the output folder {folder} can't be written ({error.strerror}): name another one "
            "with --output-dir"
        ) from error
    return folder


def _try_one_image(training: Training) -> None:
    """Fail now, not in the middle, if a kernel that the options ask for can't run."""
    size = training.config.image_size
    assert size is not None
    training.model.eval()
    try:
        with torch.no_grad():
            training.model(torch.zeros(1, 1, size, size, device=training.device))
    except RuntimeError as error:
        raise TrainingError(str(error)) from error


def _line(row: dict[str, Any], config: Config) -> str:
    return (
        f"epoch {row['epoch']:>2}/{config.epochs}  loss {row['train_loss']:.4f}  "
        f"accuracy {row['train_accuracy']:.4f}  test loss {row['test_loss']:.4f}  "
        f"test accuracy {row['test_accuracy']:.4f}  {row['seconds']:.1f} s  "
        f"{row['images_per_second']:.0f} images/s"
    )


def _introduction(training: Training, asked_for_auto: bool) -> Iterator[str]:
    config, data = training.config, training.data
    parameters = sum(p.numel() for p in training.model.parameters())
    if asked_for_auto and training.device.type == "cpu":
        yield (
            'No GPU here: the preset is "fast" (quarter of the channels, 32 x 32 images). The seed '
            "network, --preset seed, takes hours on a CPU."
        )
    elif config.preset == "seed" and training.device.type == "cpu" and config.steps is None:
        yield 'The preset "seed" takes hours on a CPU; "fast" takes minutes.'
    size = config.image_size
    yield (
        f"{config.preset}, {'fused' if config.fused else 'plain'}: {parameters:,} parameters, "
        f"{size} x {size} images, batches of {config.batch_size}, "
        f"{config.epochs} epochs of {len(training.batches)} steps"
    )
    precision = config.amp_dtype if config.amp else "float32"
    how = f", torch.compile ({config.compile_mode})" if config.compile else ""
    threads = f", {torch.get_num_threads()} threads" if training.device.type == "cpu" else ""
    yield f"on {training.device}{threads}, {precision}{how}"
    yield (
        f"{len(data.train.labels):,} training and {len(data.test.labels):,} test images from "
        f"{data.source}; results go to {config.output_dir}"
    )
    if training.step:
        yield f"resumed after step {training.step} of {training.last_step}"


def _metrics(training: Training) -> dict[str, Any]:
    facts = info.collect()
    return {
        "config": as_plain_values(training.config),
        "data": {"name": training.data.name, "source": training.data.source},
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "history": training.history,
        "result": _result(training),
        **{name: facts[name] for name in ("versions", "built", "cpu", "gpus", "backend")},
    }


def _result(training: Training) -> dict[str, Any]:
    """The last row, and the time and speed of all training steps (testing and saving apart)."""
    if not training.history:
        return {}
    last = training.history[-1]
    seconds = sum(row["seconds"] for row in training.history)
    images = sum(row["seconds"] * row["images_per_second"] for row in training.history)
    return {
        "test_accuracy": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "steps": training.step,
        "training_seconds": seconds,
        "images_per_second": images / max(seconds, 1e-9),
    }


def _finish(training: Training, folder: Path, progress: Progressing) -> dict[str, Any]:
    """The pictures, and the plain line that ends a run."""
    config, data = training.config, training.data
    title = f"VGG, preset {config.preset}, {'fused' if config.fused else 'plain'}"
    confusion = training.confusion
    if confusion is None:  # the run that was resumed had ended already
        _, _, confusion = training.evaluate(progress)
    plots.curves(training.history, folder / "curves.png", title)
    plots.confusion_matrix(confusion, data.classes, folder / "confusion_matrix.png")
    size = config.image_size
    assert size is not None
    plots.network(training.model, (1, size, size), folder / "network.png", title)
    shown = data.test.images[:36], data.test.labels[:36]
    predictions = training.predict(shown[0])
    plots.samples(*shown, data.classes, folder / "samples.png", predictions)
    return _result(training)


def main(arguments: list[str] | None = None) -> int:
    """The command ``python -m vgg_fast.train``; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    # tyro makes flags of what is true or false, and not of what may be None as well.
    flags = {"--amp": "--amp=True", "--no-amp": "--amp=False"}
    given = [flags.get(argument, argument) for argument in given]
    config = tyro.cli(Config, prog="python -m vgg_fast.train", args=given)
    console = Console(soft_wrap=True)
    try:
        result = train(config, console)
    except (TrainingError, DataError) as error:
        print(f"python -m vgg_fast.train: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f"python -m vgg_fast.train: {interrupted}", file=sys.stderr)
        return 128 + interrupted.number
    except KeyboardInterrupt:  # before the first step, or a second one that didn't wait
        print("python -m vgg_fast.train: interrupted; nothing more was saved", file=sys.stderr)
        return 130
    print(
        f"test accuracy {result['test_accuracy']:.4f}, test loss {result['test_loss']:.4f}, "
        f"{result['training_seconds']:.1f} s of training, "
        f"{result['images_per_second']:.0f} images/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
