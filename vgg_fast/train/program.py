"""What ``python -m vgg_fast.train`` does.

It trains a VGG network on Fashion-MNIST and leaves a checkpoint, metrics.json and pictures in its
output folder. The loop itself is in :mod:`vgg_fast.train.loop`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from vgg_fast import backends, info
from vgg_fast.train import checkpoint, local, output, plots, ranks, sharding
from vgg_fast.train.config import (
    TrainingError,
    as_plain_values,
    from_plain_values,
    make_model,
    resolved,
)
from vgg_fast.train.data import DataError, load
from vgg_fast.train.files import save_json
from vgg_fast.train.folder import METRICS, PICTURES, output_folder
from vgg_fast.train.interruption import Interrupted, Signals
from vgg_fast.train.loop import Training
from vgg_fast.train.options import Config
from vgg_fast.train.output import OutputLost, say
from vgg_fast.train.progress import Progressing
from vgg_fast.train.resume import folder_of, options_given, resumed

# From machine to machine: where the first one writes, and where the images lie, which are compared.
MAY_DIFFER = ("output_dir", "data_root", "threads")


def train(config: Config, given: Collection[str] = ()) -> dict[str, Any]:
    """One run, from its options to the files in its output folder.

    Args:
        config: the options.
        given: the names of those that were chosen, and aren't defaults; where a run is resumed,
            only they count.

    Returns:
        what metrics.json holds under "result".

    Raises:
        TrainingError, DataError: it can't start or continue; earlier files are unchanged.
        Interrupted: by Ctrl-C; the last state is saved.
        OutputLost: nobody reads the output any more; the last state is saved.
    """
    ranks.require_same(as_plain_values(config), MAY_DIFFER)
    if config.resume is None:
        asked_for_auto = config.preset == "auto"
        config = _on_ranks(resolved(config))
        name = f"{config.preset}-{'fused' if config.fused else 'plain'}"
        with _folder_of_first(config.output_dir, name) as folder:
            config = dataclasses.replace(config, output_dir=folder)
            return _train_in(folder, config, None, asked_for_auto)
    file = checkpoint.find(config.resume)
    # Locked before it is read: another run may be about to write it.
    with _folder_of_first(config.output_dir or folder_of(config.resume), "") as folder:
        state = checkpoint.load(config.resume)
        try:
            earlier = from_plain_values(state["config"])
        except ValueError as error:
            raise TrainingError(f"the checkpoint {file} is broken: {error}") from error
        if ranks.size() == 1 and "fsdp" not in given:
            earlier = dataclasses.replace(earlier, fsdp=False)
        config = _on_ranks(resolved(resumed(config, given, earlier)), state["step"])
        return _train_in(folder, config, state, False)


def _on_ranks(config: Config, step: int = 0) -> Config:
    """A resolved ``config``, if it fits the processes that torchrun started; of a run at ``step``.

    Raises:
        TrainingError: it doesn't.
    """
    ranks.require_same({**as_plain_values(config), "step": step}, MAY_DIFFER)
    local.take_device(config.device)
    ranks.require_equal_parts(config.batch_size)
    if config.fsdp:
        sharding.require_possible(config)
    return config


@contextlib.contextmanager
def _folder_of_first(chosen: Path | None, name: str) -> Iterator[Path]:
    """:func:`output_folder` on the first rank, which alone writes; the others are told of it."""
    if ranks.is_first():
        with output_folder(chosen, name) as folder:
            yield ranks.from_first(folder)
    else:
        yield ranks.from_first(Path())


def _train_in(
    folder: Path, config: Config, state: dict[str, Any] | None, asked_for_auto: bool
) -> dict[str, Any]:
    """One run under resolved options; ``state`` is where it continues."""
    threads = local.fair_threads() if config.threads is None else config.threads
    if threads is not None:
        torch.set_num_threads(threads)
    backends.set(config.backend)
    try:
        data = ranks.first_of_machine_first(lambda: load(config.dataset, config.data_root))
        training = Training(config, data)
        if state is not None and config.resume is not None:
            training.restore(state, checkpoint.find(config.resume))
        _try_one_image(training)
        # A run killed between its two files left an older one.
        if state is not None and ranks.is_first():
            save_json(folder / METRICS, _metrics(training))
        for line in _introduction(training, asked_for_auto):
            say(line)
        progress = Progressing(Console(soft_wrap=True))
        _run(training, folder, progress)
        return _finish(training, folder, progress)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{config.device} doesn't have enough memory for this run: lower --batch-size, "
            "--width or --image-size"
        ) from error


def _run(training: Training, folder: Path, progress: Progressing) -> None:
    """Train to the end. The state is saved first, and then told of."""
    due = 0.0
    agreed = ranks.size() == 1  # whether all ranks end at the same step

    def save() -> None:
        nonlocal due
        training.check_loss()  # a state from which nothing can be learnt replaces no other
        state = training.state()
        if ranks.is_first():
            checkpoint.save(folder / checkpoint.NAME, state)
            save_json(folder / METRICS, _metrics(training))
        ranks.wait_for_all()  # whoever goes on can count on what is saved
        due = time.monotonic() + 60 * training.config.save_every

    def between() -> None:
        nonlocal agreed
        number, is_due = ranks.most(signals.received, time.monotonic() >= due)
        if number:
            agreed = True
            raise Interrupted(int(number))
        if is_due:
            save()

    def tell(line: str) -> None:
        nonlocal agreed
        lost = None
        try:
            say(line)
        except OutputLost as error:
            lost = error
        (number,) = ranks.most(lost.error.errno or errno.EIO if lost else 0)
        if number:
            agreed = True
            raise lost or OutputLost(OSError(int(number), os.strerror(int(number))))

    due = time.monotonic() + 60 * training.config.save_every
    with Signals() as signals:
        try:
            for row in training.run(progress, between):
                save()
                tell(_line(row, training.config))
        except (Interrupted, OutputLost) as error:
            if not agreed:
                raise
            save()
            where = (
                f"after step {training.step} of {training.last_step}; the state is saved, and "
                f"--resume {folder} continues from it"
            )
            if isinstance(error, Interrupted):
                raise Interrupted(error.number, f"interrupted {where}") from None
            raise OutputLost(error.error, f" {where}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "DefaultCPUAllocator" in str(error)  # a plain RuntimeError


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
    if ranks.size() > 1:
        threads = f", {ranks.size()} processes" + (threads and f" of{threads[1:]} each")
        how += ", parameters cut over the processes" if config.fsdp else ""
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
        "processes": ranks.size(),
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
    shown = data.test.images[:36], data.test.labels[:36]
    predictions = training.predict(shown[0])
    if not ranks.is_first():
        return _result(training)
    curves, matrix, network, samples = (folder / name for name in PICTURES)
    plots.curves(training.history, curves, title)
    plots.confusion_matrix(confusion, data.classes, matrix)
    size = config.image_size
    assert size is not None
    model = training.model
    if config.fsdp:  # the other ranks would have to run theirs along
        model = make_model(config, len(data.classes)).to("meta")
    plots.network(model, (1, size, size), network, title)
    plots.samples(*shown, data.classes, samples, predictions)
    return _result(training)


def main(arguments: list[str] | None = None) -> int:
    """The command ``python -m vgg_fast.train``; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    # tyro makes flags of what is either true or false, but not of what may also be None.
    flags = {"--amp": "--amp=True", "--no-amp": "--amp=False"}
    given = [flags.get(argument, argument) for argument in given]
    output.prepare()
    try:
        ranks.find_place()
        # Help, or what is wrong with an option.
        with output.written(), ranks.first_of_machine_speaks():
            config = tyro.cli(Config, prog="python -m vgg_fast.train", args=given)
        with ranks.joined():
            result = train(config, options_given(given))
        say(
            f"test accuracy {result['test_accuracy']:.4f}, test loss {result['test_loss']:.4f}, "
            f"{result['training_seconds']:.1f} s of training, "
            f"{result['images_per_second']:.0f} images/s"
        )
    except (TrainingError, DataError) as error:
        ranks.complain(error)
        return 1
    except OutputLost as lost:
        output.give_up()
        ranks.complain(lost)
        return lost.exit_code
    except Interrupted as interrupted:
        ranks.complain(interrupted)
        return 128 + interrupted.number
    except KeyboardInterrupt:  # before the first step, or a second one that didn't wait
        ranks.complain("interrupted; nothing more was saved")
        return 130
    except Exception as error:
        if not ranks.is_of_others(error):
            raise
        return 1
    return 0
