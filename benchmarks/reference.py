"""What a :class:`Work` must compute, in fp64 by plain PyTorch, and how far a result is from it.

The results of a work, in this order:
    forward: the output.
    backward: the gradients of the input (if it wants one), then of the parameters.
    input gradient: the output, the gradient of the input.
    training step: the loss, the gradients of the parameters.

What every image gives separately is compared for at most IMAGES of them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.work import Work

# A relative L2 error beyond this means that something else was computed. A gradient that passed
# through a ReLU or a pool is coarser: an input that is almost 0 lets it through or not, either of
# two that are almost equal may get it, and there are thousands of both in a network: in bf16 the
# gradient of the seed network's first layers is 0.28 off, whichever library computes it. TF32 has
# three bits more than bf16: its errors are an eighth, and those of what is decided otherwise, which
# go with the root of that, a third.
LIMITS = {
    "fp32": {"forward": 1e-4, "backward": 3e-3, "input gradient": 2e-2, "training step": 2e-2},
    "tf32": {"forward": 7e-3, "backward": 4e-2, "input gradient": 2e-1, "training step": 2e-1},
    "bf16": {"forward": 5e-2, "backward": 1e-1, "input gradient": 5e-1, "training step": 5e-1},
}
# PyTorch's fp64 convolution on a CPU unrolls its input: this many pixels at a time are affordable.
PIXELS_AT_A_TIME = 4 * 224 * 224
IMAGES = 8


def compared_images(work: Work) -> Tensor:
    """The indices of the images whose results are compared: spread evenly, with both ends."""
    batch = work.shape[0]
    if work.kind not in ("forward", "input gradient") or batch <= IMAGES:
        return torch.arange(batch)
    return torch.linspace(0, batch - 1, IMAGES).long()


@functools.lru_cache(maxsize=1)
def exact(work: Work) -> list[Tensor]:
    """The results in fp64; a few images at a time, so that memory doesn't grow with the batch."""
    model = work.model().double()
    chosen = compared_images(work)
    images, labels = work.input()[chosen].double(), work.labels()
    parameters = [p for p in model.parameters() if p.requires_grad]
    step = max(1, PIXELS_AT_A_TIME // (work.shape[2] * work.shape[3]))
    if work.kind == "forward":
        with torch.no_grad():
            return [torch.cat([model(part) for part in images.split(step)])]
    with torch.no_grad():
        full = torch.empty((work.shape[0], *model(images[:1]).shape[1:]), dtype=torch.float64)
    starts = work.gradient(full)[chosen]
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


def error(work: Work, results: list[Tensor]) -> float:
    """The largest relative L2 error against fp64; infinite if a result isn't what it should be."""
    if work.kind in ("forward", "input gradient"):
        chosen = compared_images(work)
        # Nothing can be picked from a batch of another size: its shape will be found wrong.
        results = [r[chosen] if len(r) == work.shape[0] else r for r in results]
    return distance(results, exact(work))


def distance(results: list[Tensor], expected: list[Tensor]) -> float:
    """The largest ‖result − expected‖ / ‖expected‖; infinite for other shapes and NaN."""
    if [tuple(r.shape) for r in results] != [tuple(e.shape) for e in expected]:
        return float("inf")
    errors = [
        float((result.detach().cpu().double() - truth).norm() / truth.norm())
        for result, truth in zip(results, expected, strict=True)
    ]
    return max(e if e == e else float("inf") for e in errors)


def limit(work: Work, precision: str) -> float:
    return LIMITS[precision][work.kind]
