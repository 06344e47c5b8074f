"""What a :class:`Work` has to compute, in fp64 by plain PyTorch, and how far a result is from it.

The results of a work, in this order:
    forward: the output.
    backward: the gradients of the input (if it wants one), then of the parameters.
    input gradient: the output, the gradient of the input.
    training step: the loss, the gradients of the parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.work import Work

# A relative L2 error beyond this means that something else was computed. A gradient that passed
# through a ReLU or a pool is coarser: an input that is almost 0 lets it through or not, two that
# are almost equal give it to either, and there are thousands of both in a network.
LIMITS = {"forward": 1e-4, "backward": 3e-3, "input gradient": 2e-2, "training step": 2e-2}
BF16_LIMIT = 5e-2
# PyTorch's fp64 convolution on a CPU unrolls its input: so many pixels at a time are affordable.
PIXELS_AT_A_TIME = 4 * 224 * 224


def exact(work: Work) -> list[Tensor]:
    """The results in fp64; a few images at a time, so that memory doesn't grow with the batch."""
    model = work.model().double()
    images, labels = work.input().double(), work.labels()
    parameters = [p for p in model.parameters() if p.requires_grad]
    step = max(1, PIXELS_AT_A_TIME // (work.shape[2] * work.shape[3]))
    if work.kind == "forward":
        with torch.no_grad():
            return [torch.cat([model(part) for part in images.split(step)])]
    with torch.no_grad():
        full = torch.empty((work.shape[0], *model(images[:1]).shape[1:]), dtype=torch.float64)
    starts = work.gradient(full)
    outputs, by_image, summed = [], [], [torch.zeros_like(p) for p in parameters]
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(0, len(images), step):
        part = images[i : i + step].requires_grad_(
            work.wants_input_gradient or work.kind == "input gradient"
        )
        wanted = ([part] if part.requires_grad else []) + parameters
        output = model(part)
        if work.kind == "training step":
            share = cross_entropy(output, labels[i : i + step], reduction="sum") / len(images)
            loss += share.detach()
            gradients = list(torch.autograd.grad(share, wanted))
        else:
            gradients = list(torch.autograd.grad(output, wanted, starts[i : i + step]))
        if part.requires_grad:
            by_image.append(gradients.pop(0))
        outputs.append(output.detach())
        for total, gradient in zip(summed, gradients, strict=True):
            total += gradient
    if work.kind == "training step":
        return [loss, *summed]
    if work.kind == "input gradient":
        return [torch.cat(outputs), torch.cat(by_image)]
    return ([torch.cat(by_image)] if by_image else []) + summed


def error(results: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative L2 error ‖result − expected‖ / ‖expected‖; infinite if one isn't it."""
    if [tuple(r.shape) for r in results] != [tuple(e.shape) for e in expected]:
        return float("inf")
    errors = [
        float((result.detach().double() - truth).norm() / truth.norm())
        for result, truth in zip(results, expected, strict=True)
    ]
    return max(e if e == e else float("inf") for e in errors)


def limit(work: Work, precision: str) -> float:
    return BF16_LIMIT if precision == "bf16" else LIMITS[work.kind]
