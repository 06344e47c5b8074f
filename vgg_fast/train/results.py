"""What a run has come to, as metrics.json holds it."""

from __future__ import annotations

from typing import Any

from vgg_fast import info
from vgg_fast.train import ranks
from vgg_fast.train.config import as_plain_values
from vgg_fast.train.loop import Training
from vgg_fast.train.rows import AVERAGED


def metrics(training: Training) -> dict[str, Any]:
    """What metrics.json holds."""
    facts = info.collect()
    return {
        "config": as_plain_values(training.config),
        "data": {"name": training.data.name, "source": training.data.source},
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "processes": ranks.size(),
        "history": training.history,
        "result": result(training),
        **{name: facts[name] for name in ("versions", "built", "cpu", "gpus", "backend")},
    }


def result(training: Training) -> dict[str, Any]:
    """The last row, and the time and speed of all training steps (testing and saving apart)."""
    if not training.history:
        return {}
    last = training.history[-1]
    seconds = sum(row["seconds"] for row in training.history)
    images = sum(row["seconds"] * row["images_per_second"] for row in training.history)
    target = training.config.target
    return {
        "test_accuracy": last["test_accuracy"],
        **({AVERAGED: last[AVERAGED]} if AVERAGED in last else {}),
        "test_loss": last["test_loss"],
        "steps": training.step,
        "training_seconds": seconds,
        "images_per_second": images / max(seconds, 1e-9),
        **({} if target is None else {"reached_target": reached_target(training)}),
    }


def reached_target(training: Training) -> dict[str, Any] | None:
    """The first epoch with the target accuracy, and the training seconds until its end."""
    reached = training.reached_target
    if reached is None:
        return None
    rows = training.history[: training.history.index(reached) + 1]
    return {"epoch": reached["epoch"], "training_seconds": sum(row["seconds"] for row in rows)}
