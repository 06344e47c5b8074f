"""How long a case takes: as it is, in channels_last, and both transformed; they take turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.models.case import Case, Size
from benchmarks.models.compare import Transform, copied, tensors
from benchmarks.peers.base import Call

Times = dict[str, dict[str, float]]
LAST = " channels_last"


def measured(
    case: Case,
    model: nn.Module,
    base: Transform,
    ours: Transform,
    size: Size,
    rounds: int,
    backward: bool,
) -> dict[str, Any]:
    """Seconds of each way, median and quartiles, and the ratio.

    Args:
        model: the case's, of that size; it stays as it is.
        base, ours: make of a copy of the model what is compared.
        backward: forward and backward pass, in the case's own mode; else the forward pass in eval
            mode without gradients.

    Returns:
        ``seconds`` by "eager", "eager channels_last", "vgg_fast", "vgg_fast channels_last", and
        ``ratio``: the better of the first two relative to the better of the last two. Neither is in
        channels_last where the model itself fails in it, as one does that views its maps.
    """
    calls: dict[str, Call] = {}
    for name, transform in (("eager", base), ("vgg_fast", ours)):
        for layout, form in (("", None), (LAST, torch.channels_last)):
            made = transform(copied(model).train(case.training and backward))
            inputs = case.draw(size)
            if form is not None:
                made = made.to(memory_format=form)
                inputs = tuple(_in(form, x) for x in inputs)
            calls[name + layout] = _call(case, made, inputs, backward)
    if not _runs(calls[f"eager{LAST}"]):
        del calls[f"eager{LAST}"], calls[f"vgg_fast{LAST}"]
    for name, call in calls.items():
        if name != f"eager{LAST}":
            call.run(call.setup())
    times = timing.interleaved(calls, seconds=0.0, least=rounds, most=rounds)
    seconds = {name: timing.spread(values) for name, values in times.items()}
    return {"seconds": seconds, "ratio": _best(seconds, "eager") / _best(seconds, "vgg_fast")}


def _runs(call: Call) -> bool:
    try:
        call.run(call.setup())
    except RuntimeError:
        return False
    return True


def _best(seconds: Times, name: str) -> float:
    return min(seconds[way]["median"] for way in (name, name + LAST) if way in seconds)


def _in(form: torch.memory_format, x: Any) -> Any:
    return x.to(memory_format=form) if isinstance(x, Tensor) and x.dim() == 4 else x


def _call(case: Case, model: nn.Module, inputs: tuple[Any, ...], backward: bool) -> Call:
    if case.gradients == "own":
        return Call(lambda _: case.run(model, inputs), results=tensors)
    if backward:
        return Call(_step(case, model, inputs), results=tensors)
    return Call(lambda _: _forward(case, model, inputs), results=tensors)


@torch.no_grad()
def _forward(case: Case, model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return case.run(model, inputs)


def _step(case: Case, model: nn.Module, inputs: tuple[Any, ...]) -> Callable[[Any], Any]:
    wanted = case.gradients in ("input", "both")
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]

    def run(_: Any) -> Any:
        model.zero_grad(set_to_none=True)
        for x in leaves:
            x.grad = None
            x.requires_grad_(wanted)
        result = case.run(model, inputs)
        outputs = [x for x in tensors(result) if x.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
        return result

    return run
