"""How every peer that runs through PyTorch does the four kinds of work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.peers.base import Call
from benchmarks.work import Work


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a training step; see Work's kinds."""
    return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, fused=True)


def torch_call(
    work: Work,
    model: nn.Module,
    layout: torch.memory_format,
    wrap: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda model: model,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = sgd,
) -> Call:
    """``work`` by ``model``, called through ``wrap(model)``, on an input in ``layout``."""
    model = model.to(work.device, work.dtype, memory_format=layout)
    net = wrap(model)
    images = work.input().to(work.device, work.dtype).contiguous(memory_format=layout)
    if work.kind == "forward":
        return _forward(net, images)
    if work.kind == "training step":
        return _training_step(work, net, optimizer(list(model.parameters())), images)
    wants_input = work.wants_input_gradient or work.kind == "input gradient"
    images.requires_grad_(wants_input)
    with torch.no_grad():
        gradient = work.gradient(model(images))
    wanted = [t for t in (images, *model.parameters()) if t.requires_grad]

    def backward(output: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(output, wanted, gradient))

    if work.kind == "backward":
        return Call(run=_done(backward, images), results=list, setup=lambda: net(images))

    def both(_: Any) -> list[Tensor]:
        output = net(images)
        return [output, *backward(output)]

    return Call(run=_done(both, images), results=list)


def _done(run: Callable[[Any], Any], images: Tensor) -> Callable[[Any], Any]:
    """``run``, which on a GPU returns only when the GPU has finished."""
    if images.device.type != "cuda":
        return run

    def finished(given: Any) -> Any:
        result = run(given)
        torch.cuda.synchronize(images.device)
        return result

    return finished


def _forward(net: Callable[[Tensor], Tensor], images: Tensor) -> Call:
    def run(_: Any) -> Tensor:
        with torch.no_grad():
            return net(images)

    return Call(run=_done(run, images), results=lambda output: [output])


def _training_step(
    work: Work, net: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, images: Tensor
) -> Call:
    labels = work.labels().to(images.device)
    parameters: list[Tensor] = optimizer.param_groups[0]["params"]
    for parameter in parameters:  # a step makes the momentum's buffers, before anything is timed
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    def precision() -> contextlib.AbstractContextManager[Any]:
        if work.autocast:
            return torch.autocast(images.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def run(_: Any) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with precision():
            loss = cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    def results(loss: Tensor) -> list[Tensor]:
        return [loss, *(p.grad for p in parameters if p.grad is not None)]

    return Call(run=_done(run, images), results=results)
