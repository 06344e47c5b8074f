"""From a checkpoint back to the run that wrote it, or a refusal in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_fast.train import checkpoint, local, ranks, recipe
from vgg_fast.train.config import TrainingError
from vgg_fast.train.rows import AVERAGED, ROW
from vgg_fast.train.sums import Sums

if TYPE_CHECKING:
    from vgg_fast.train.loop import Training


def restore(training: Training, state: dict[str, Any], path: Path) -> None:
    """Bring ``training``, which is new, to the ``state`` of an earlier run, from the file ``path``.

    Raises:
        TrainingError: it belongs to another architecture or other data, or is broken.
    """
    _require_same_data(training, state, path)
    _require_same_input(training, state, path)
    checkpoint.load_model(training.model, state["model"], path)
    if training.average is not None:
        checkpoint.require_alike({"average": state.get("average")}, {"average": {}}, "state", path)
        checkpoint.load_model(training.average.model, state["average"], path)
    own = training.state()
    for name in ("epoch_sums", "order_at_epoch", "random", "random_cuda"):
        if name in own and name in state:  # one of the runs may have no GPU
            checkpoint.require_alike(state[name], own[name], name, path)
    for i, row in enumerate(state["history"]):
        names = [*ROW, AVERAGED] if isinstance(row, dict) and AVERAGED in row else ROW
        checkpoint.require_alike(row, dict.fromkeys(names, 0), f"history[{i}]", path)
    training.step = state["step"]
    training.history = list(state["history"])
    if state["config"]["steps"] and not training.config.steps and training.history:
        training.history.pop()  # a trial run tests on few images: test on all before going on
    training.epoch_seconds = state["epoch_seconds"]
    sums = state["epoch_sums"]
    training.epoch_sums = Sums.on(training.device)
    if ranks.is_first():  # they are those of all ranks
        training.epoch_sums = Sums(
            sums["loss"].to(training.device), sums["correct"].to(training.device), sums["images"]
        )
    training.order_at_epoch = state["order_at_epoch"]
    if state["format"] == 1 and training.step % len(training.batches) == 0:
        training.order_at_epoch = state["order"]
    try:
        _restore_learning(training, state, path)
        training.order.set_state(training.order_at_epoch)
        local.restore_random(state, training.device, training.config.seed)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(f"the checkpoint {path} is broken: start over") from error


def _restore_learning(training: Training, state: dict[str, Any], path: Path) -> None:
    """What the optimizer keeps, and the loss scale; the learning rate follows from the step."""
    if training.step:
        recipe.restore_optimizer(
            training.optimizer,
            training.config,
            state["optimizer"],
            state["config"]["momentum"],
            path,
        )
    own = training.scaler.state_dict()
    if own and state["scaler"]:  # the earlier run may have had none
        checkpoint.require_alike(state["scaler"], own, "scaler", path)
        training.scaler.load_state_dict(state["scaler"])


def _require_same_data(training: Training, state: dict[str, Any], path: Path) -> None:
    own, found = training.identity, state.get("data", {})
    planned = training.rate.steps
    if state["format"] == 1:  # the number of steps tells at least the size
        is_same = state["schedule"].get("total_steps") == planned
    else:
        checkpoint.require_alike(found, own, "data", path)
        is_same = found == own
    if not is_same:
        sizes = "{train:,} training and {test:,} test images of {classes} classes".format
        if found and sizes(**found) != sizes(**own):
            difference = f"{sizes(**found)}, and not {sizes(**own)}"
        else:
            difference = "other images"
        raise TrainingError(
            f"the run of {path} has learnt from {difference}: name the folder of its data "
            "with --data-root, or start over without --resume"
        )
    if not 0 <= state["step"] <= planned:
        raise TrainingError(
            f"the checkpoint {path} is broken: it is at step {state['step']} of {planned}"
        )


def _require_same_input(training: Training, state: dict[str, Any], path: Path) -> None:
    """The images are the same already: this is about their classes and normalisation."""
    # By repr(), because a broken one may hold what can't be compared.
    if "input" in state and repr(state["input"]) != repr(training.input.as_plain_values()):
        raise TrainingError(
            f"the run of {path} has learnt other classes, or images that were normalised "
            "otherwise: name the folder of its data with --data-root, or start over without "
            "--resume"
        )
