"""How the tests of layers, models and fuse() compare: always with fp64 on the same inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The relative L2 error ‖actual − expected‖ / ‖expected‖, taken in fp64.

    Where only zeros are expected, or nothing at all, it is the error itself.
    """
    expected = expected.detach().double()
    error, size = (actual.detach().double() - expected).norm(), expected.norm()
    return float(error / size) if size else float(error)


def in_float64(model: nn.Module) -> nn.Module:
    """An independent copy of ``model`` in fp64."""
    return copy.deepcopy(model).double()


def gradients(model: nn.Module, input: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The model's output, and the gradients of a fixed random projection of it.

    The keys are "output", "input", and the names of the parameters that want one.
    """
    input = input.detach().clone().requires_grad_()
    output = model(input)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    wanted = {"input": input}
    wanted |= {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((output * weights.to(output)).sum(), tuple(wanted.values()))
    return {"output": output.detach(), **dict(zip(wanted, found, strict=True))}


def assert_as_accurate(fused: nn.Module, plain: nn.Module, input: Tensor) -> None:
    """``fused`` is as near to the fp64 result of ``plain`` as ``plain`` in fp32 itself is.

    The error of a whole network depends on its depth and on the values, so its measure is the error
    that torch's own layers make on the same values: for the output and each gradient, at most twice
    that, or one operator's tolerance where torch happens to make less.

    A gradient that cancels, as that of a bias in front of batch norm in training, is rounding and
    nothing else, in fp64 too: its error is taken relative to the largest of all gradients.

    Rounding, again the processor's, may also decide a ReLU whose input is nearly zero, or a window
    whose two largest are nearly equal; the gradients then differ by 1e-4 and more. That is no
    error, and rare: of three inputs, one has gradients without it.
    """
    found = _inaccuracies(fused, plain, input)
    for other in (input.flip(-1), -input):
        if not found:
            return
        assert "output" not in found, found
        found = _inaccuracies(fused, plain, other)
    assert not found, found


def _inaccuracies(fused: nn.Module, plain: nn.Module, input: Tensor) -> dict[str, str]:
    """By name what is further from fp64 than :func:`assert_as_accurate` allows."""
    exact = gradients(in_float64(plain), input.double())
    ours, torchs = gradients(fused, input), gradients(plain, input)
    found = {}
    largest = max(float(expected.norm()) for expected in exact.values())
    for name, expected in exact.items():
        size = float(expected.norm())
        share = size / largest if 0 < size < 1e-10 * largest else 1.0
        error = share * relative_error(ours[name], expected)
        allowed = share * relative_error(torchs[name], expected)
        bound = max(2 * allowed, 2e-6 if name in ("output", "input") else 5e-6)
        if not error <= bound:
            found[name] = f"relative error {error:.2e}, torch's own is {allowed:.2e}"
    return found
