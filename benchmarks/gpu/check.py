"""Whether a candidate computed what it should: every tensor of it, by its relative L2 error."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# A layer's tensors in 16 bits: bf16 rounds a result by 2e-3, and a value in 2,500 that is missing
# gives 2e-2.
LAYER = 2e-2
# A whole network's. Where two values of a window are equal in 16 bits, who gets the gradient is
# chance: from a few layers on two gradients that are right differ by 0.3. Zeros would by 1.
OUTPUT, GRADIENT = 0.1, 0.5

Tensors = Mapping[str, Tensor]


def errors(found: Tensors, expected: Tensors) -> dict[str, float]:
    """The relative L2 error of every tensor of ``expected``.

    Infinite where ``found`` lacks the tensor, or has one of another shape, or it holds a NaN.
    """
    return {name: _error(found.get(name), tensor) for name, tensor in expected.items()}


def _error(found: Tensor | None, expected: Tensor) -> float:
    if found is None or found.shape != expected.shape:
        return float("inf")
    # In fp32, whose sums of squares torch adds up pairwise: fp64 would take as much memory again.
    expected = expected.detach().float()
    difference = torch.linalg.vector_norm(found.detach().float() - expected)
    error = float(difference / torch.linalg.vector_norm(expected).clamp_min(1e-30))
    return error if error == error else float("inf")


def verdict(errors: Mapping[str, float], bound: Mapping[str, float] | float) -> str:
    """Which tensors are wrong, as a sentence; empty if none is.

    Args:
        bound: of all tensors, or of each by its name.
    """
    wrong = [
        f"{name} by {error:.1e}"
        for name, error in errors.items()
        if not error <= (bound if isinstance(bound, float) else bound[name])
    ]
    return f"wrong: relative L2 error of {', '.join(wrong)}" if wrong else ""
