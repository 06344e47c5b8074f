"""A convolution's scale as a part of its weight: for gradients, and for torch on a GPU."""

from __future__ import annotations

from torch import Tensor


def fold(weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the convolution whose result is ``scale`` times the sums, plus ``bias``.

    Args:
        weight: (K, C, 3, 3).
        bias: (K), of the dtype of ``scale``, or None.
        scale: (K), or None: then ``weight`` and ``bias`` are what they are.

    Returns:
        Both in the dtype of ``weight``.
    """
    if scale is None:
        return weight, bias
    scaled = (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype)
    return scaled, None if bias is None else bias.to(weight.dtype)
