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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from vgg_fast import backends
from vgg_fast.train import (
    checkpoint,
    local,
    messages,
    output,
    plots,
    ranks,
    results,
    seeds,
    sharding,
    tracking,
)
from vgg_fast.train.config import (
    TrainingError,
    as_plain_values,
    from_plain_values,
    resolved,
)
from vgg_fast.train.data import DataError, Dataset, of_run
from vgg_fast.train.files import save_json
from vgg_fast.train.folder import METRICS, PICTURES, output_folder
from vgg_fast.train.interruption import Interrupted, Signals
from vgg_fast.train.loop import Training, do_nothing
from vgg_fast.train.options import Config, with_values
from vgg_fast.train.output import OutputLost, say
from vgg_fast.train.progress import Progressing
from vgg_fast.train.resume import folder_of, options_given, resumed
from vgg_fast.train.watching import Nobody, Watching

# From machine to machine: where the first one writes, and where the images lie, which are compared.
MAY_DIFFER = ("output_dir", "data_root", "threads")


def train(config: Config, given: Collection[str] = ()) -> dict[str, Any]:
    """One run, from its options to the files in its output folder.

    Args:
        config: the options.
        given: the names of those that were chosen, and aren't defaults; where a run is resumed,
            only they count.

    Returns:
        what metrics.json holds under "result"; of several seeds, what summary.json holds.

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
            seeds.require_kind(folder, config.seeds > 1)
            if config.seeds > 1:
                return _train_seeds(config, [], asked_for_auto)
            return _train_in(folder, config, None, asked_for_auto)
    if seeds.is_whole(config.resume):
        return _resume_seeds(config, given)
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
    assert config.batch_size is not None
    ranks.require_equal_parts(config.batch_size)
    if config.seeds > 1 and ranks.size() > 1:
        raise TrainingError(
            "--seeds trains one run after the other in a single process: start each --seed with "
            "torchrun, or all of them without"
        )
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


def _resume_seeds(config: Config, given: Collection[str]) -> dict[str, Any]:
    assert config.resume is not None
    if "output_dir" in given:
        raise TrainingError(
            f"the runs of several seeds in {config.resume} continue where they are: leave "
            "--output-dir out"
        )
    with _folder_of_first(config.resume, ""):
        earlier, runs = seeds.read(config.resume)
        config = _on_ranks(resolved(resumed(config, given, earlier)))
        if (config.steps, config.target) != (earlier.steps, earlier.target):
            runs = [{"seed": run["seed"]} for run in runs]  # none has ended any more
        return _train_seeds(config, runs, False)


def _train_seeds(
    config: Config, runs: list[dict[str, Any]], asked_for_auto: bool
) -> dict[str, Any]:
    """All seeds of a resolved ``config``; the data is loaded once."""
    data, whole = _data(config), config.output_dir

    def train_one(config: Config, begin: Callable[[], None]) -> dict[str, Any]:
        nonlocal asked_for_auto
        assert config.output_dir is not None
        with output_folder(config.output_dir, "") as folder:
            state = None if config.resume is None else checkpoint.load(config.resume)
            result = _train_in(folder, config, state, asked_for_auto, data, begin, whole)
        asked_for_auto = False  # said once
        return result

    return seeds.train_all(config, runs, train_one)


def _data(config: Config) -> Dataset:
    if config.dataset == "folder":  # which takes its time
        say(f"reading the pictures of {config.data_root}")
    return ranks.first_of_machine_first(lambda: of_run(config))


def _train_in(
    folder: Path,
    config: Config,
    state: dict[str, Any] | None,
    asked_for_auto: bool,
    data: Dataset | None = None,
    begin: Callable[[], None] = do_nothing,
    whole: Path | None = None,
) -> dict[str, Any]:
    """One run under resolved options.

    Args:
        folder: of the run.
        config: its options.
        state: where it continues.
        asked_for_auto: whether the preset was left to the machine.
        data: None loads what the options say.
        begin: called when nothing can be refused any more.
        whole: the folder to resume, where it isn't the run's own.
    """
    threads = local.fair_threads() if config.threads is None else config.threads
    if threads is not None:
        torch.set_num_threads(threads)
    backends.set(config.backend)
    tracking.check(config)
    try:
        training = Training(config, data or _data(config))
        if state is not None and config.resume is not None:
            training.restore(state, checkpoint.find(config.resume))
        _try_one_image(training)
        begin()
        # A run killed between its two files left an older one.
        if state is not None and ranks.is_first():
            save_json(folder / METRICS, results.metrics(training))
        for line in messages.introduction(training, asked_for_auto):
            say(line)
        progress = Progressing(Console(soft_wrap=True))
        with Watching(training, folder) if ranks.is_first() else Nobody() as watching:
            _run(training, folder, progress, watching, whole or folder)
            if config.target is not None:
                say(messages.target_line(training))
            result = _finish(training, folder, progress)
            watching.finished()
        return result
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{config.device} doesn't have enough memory for this run: lower --batch-size, "
            "--width or --image-size, or raise --accumulate"
        ) from error


def _run(
    training: Training,
    folder: Path,
    progress: Progressing,
    watching: Watching | Nobody,
    resumable: Path,
) -> None:
    """Train to the end. The state is saved first, and then told of.

    ``resumable`` is the folder from which an interrupted run is said to continue.
    """
    due = 0.0
    agreed = ranks.size() == 1  # whether all ranks end at the same step

    def save() -> None:
        nonlocal due
        training.check_loss()  # a state from which nothing can be learnt replaces no other
        state = training.state()
        if ranks.is_first():
            checkpoint.save(folder / checkpoint.NAME, state)
            save_json(folder / METRICS, results.metrics(training))
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
        watching.between()

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
                watching.epoch()
                tell(messages.line(row, training.config))
        except (Interrupted, OutputLost) as error:
            if not agreed:
                raise
            save()
            where = (
                f"after step {training.step} of {training.last_step}; the state is saved, and "
                f"--resume {resumable} continues from it"
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
            training.model(
                torch.zeros(1, training.input.channels, size, size, device=training.device)
            )
    except RuntimeError as error:
        raise TrainingError(str(error)) from error


def _finish(training: Training, folder: Path, progress: Progressing) -> dict[str, Any]:
    """The pictures, and the plain line that ends a run."""
    config, data = training.config, training.data
    title = f"VGG, preset {config.preset}, {'fused' if config.fused else 'plain'}"
    if training.confusion is None:  # the run that was resumed had ended already
        _, _, training.confusion = training.evaluate(progress)
    images, labels, predictions = training.samples()
    if not ranks.is_first():
        return results.result(training)
    curves, matrix, network, samples = (folder / name for name in PICTURES)
    plots.curves(training.history, curves, title)
    plots.confusion_matrix(training.confusion, data.classes, matrix)
    size = config.image_size
    assert size is not None
    plots.network(training.drawn, (training.input.channels, size, size), network, title)
    plots.samples(images, labels, data.classes, samples, predictions)
    return results.result(training)


def main(arguments: list[str] | None = None) -> int:
    """The command ``python -m vgg_fast.train``; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    given = with_values(given)
    output.prepare()
    try:
        ranks.find_place()
        # Help, or what is wrong with an option.
        with output.written(), ranks.first_of_machine_speaks():
            config = tyro.cli(Config, prog="python -m vgg_fast.train", args=given)
        with ranks.joined():
            result = train(config, options_given(given))
        say(messages.closing_line(result))
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
