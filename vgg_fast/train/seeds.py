"""``--seeds``: the same run from several seeds, one after the other, and what they have in common.

The folder of the whole holds summary.json and the folder of each seed's run, which is what a single
run with that ``--seed`` leaves.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vgg_fast.train import checkpoint
from vgg_fast.train.config import TrainingError, as_plain_values, from_plain_values
from vgg_fast.train.files import save_json
from vgg_fast.train.folder import SUMMARY
from vgg_fast.train.options import Config
from vgg_fast.train.output import say

# Of a finished seed, in summary.json.
NUMBERS = ("test_accuracy", "test_loss", "steps", "training_seconds", "images_per_second")
# Trains one seed; calls its second argument when nothing can be refused any more.
TrainOne = Callable[[Config, Callable[[], None]], dict[str, Any]]


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` is that of several seeds."""
    try:
        return (folder / SUMMARY).is_file()
    except OSError:  # a name that can't be
        return False


def require_kind(folder: Path, whole: bool) -> None:
    """Refuse to put several seeds, if ``whole``, over a single run; or the other way round.

    Raises:
        TrainingError: ``folder`` holds the other kind, and it wouldn't be clear what to resume.
    """
    if whole and (folder / checkpoint.NAME).exists():
        held = "a single run"
    elif not whole and is_whole(folder):
        held = "the runs of several seeds"
    else:
        return
    raise TrainingError(f"{folder} holds {held}: name another folder with --output-dir")


def read(folder: Path) -> tuple[Config, list[dict[str, Any]]]:
    """The options of the whole, and what each seed that was begun has come to.

    Raises:
        TrainingError: summary.json can't be read, or is broken.
    """
    path = folder / SUMMARY
    try:
        summary = json.loads(path.read_text("utf-8"))
        earlier, runs = from_plain_values(summary["config"]), summary["runs"]
        if not all(_is_run(run) for run in runs):
            raise ValueError("a run lacks a number")
    except OSError as error:
        raise TrainingError(f"{path} can't be read: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path} is broken: resume each seed with --resume {folder}/seed-N, or start over"
        ) from error
    return earlier, runs


def _is_run(run: dict[str, Any]) -> bool:
    wanted = ("seed", *NUMBERS) if is_finished(run) else ("seed",)
    return all(type(run.get(name)) in (int, float) for name in wanted)


def is_finished(run: dict[str, Any]) -> bool:
    """Whether it has more than its seed."""
    return len(run) > 1


def train_all(config: Config, runs: list[dict[str, Any]], train_one: TrainOne) -> dict[str, Any]:
    """Train every seed that isn't finished.

    Args:
        config: resolved, of the whole; its output_dir is the folder.
        runs: of :func:`read`; seeds in it that aren't finished continue from their checkpoints.
        train_one: trains a seed.

    Returns:
        what summary.json holds.
    """
    assert config.output_dir is not None
    folder, known = config.output_dir, {run["seed"]: run for run in runs}
    for number in range(config.seeds):
        seed = config.seed + number
        if is_finished(known.get(seed, {})):
            continue
        say(f"seed {seed}, {number + 1} of {config.seeds}")
        own = folder / f"seed-{seed}"
        file = own / checkpoint.NAME
        continues = seed in known and file.is_file()

        def begin(seed: int = seed, file: Path = file, continues: bool = continues) -> None:
            if not continues:  # of an earlier run into this folder, which nobody may resume now
                file.unlink(missing_ok=True)
            known.setdefault(seed, {"seed": seed})
            _save(folder, config, known)

        of_seed = dataclasses.replace(
            config, seed=seed, seeds=1, output_dir=own, resume=own if continues else None
        )
        known[seed] = {"seed": seed, **train_one(of_seed, begin)}
        _save(folder, config, known)
    return _summary(config, known)


def closing_line(summary: dict[str, Any]) -> str:
    """The plain line that ends a run of several seeds."""
    accuracy = summary["test_accuracy"]
    return (
        f"{len(summary['runs'])} seeds: test accuracy {accuracy['mean']:.4f} on average, standard "
        f"deviation {accuracy['deviation']:.4f}, from {accuracy['least']:.4f} to "
        f"{accuracy['largest']:.4f}; {summary['training_seconds']['mean']:.1f} s of training on "
        "average"
    )


def _save(folder: Path, config: Config, known: dict[int, dict[str, Any]]) -> None:
    save_json(folder / SUMMARY, _summary(config, known))


def _summary(config: Config, known: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """All seeds in their order, and the numbers that they share, of the finished ones."""
    runs = [known[seed] for seed in sorted(known)]
    finished = [run for run in runs if is_finished(run)]
    shared = {
        name: _spread([run[name] for run in finished])
        for name in ("test_accuracy", "training_seconds")
        if finished
    }
    return {"config": as_plain_values(config), "runs": runs, **shared}


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "least": min(values),
        "largest": max(values),
    }
