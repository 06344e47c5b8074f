"""What ``torch.utils.flop_counter`` counts of the operators: as much as of torch's own layers.

That is the direct convolution, two operations a multiply-add, whichever algorithm runs; scale,
bias, ReLU and pooling count as nothing. Only the gradients of a convolution without a border of
zeros count for more than torch's: they are computed as those of a map that is larger by it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"


def convolution(input: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    """Of a forward operator, given shapes."""
    n, _channels, height, width = input
    if "valid" in rest:
        height, width = height - 2, width - 2
    return 2 * n * height * width * prod(weight)


def convolution_backward(
    grad_output: Sequence[int], input: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Of a backward operator: a convolution for each of input and weight that wants a gradient."""
    need_input, need_weight, _need_bias = (flag for flag in rest if isinstance(flag, bool))
    return convolution(input, weight) * (need_input + need_weight)


def dgrad(grad_output: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Of the input's gradient alone."""
    return convolution(grad_output, weight)


def both_dgrad(
    grad_output: Sequence[int], grad_pooled: Any, weight: Sequence[int], *_: Any, **__: Any
) -> int:
    """Of the input's gradient alone, where the map is wanted pooled and not."""
    return convolution(grad_output, weight)


def pooled_dgrad(
    grad_output: Sequence[int], weight: Sequence[int], mask: Any, windows: Any, *rest: Any, **_: Any
) -> int:
    """Of the input's gradient alone, where the map was pooled."""
    n, channels = grad_output[:2]
    return convolution((n, channels, *rest[:2]), weight)


def pooling(*_: Any, **__: Any) -> int:
    """Of pooling, either way."""
    return 0


def register_when_imported() -> None:
    """Register the formulas, now or when the counter is first imported: it brings all of Triton."""
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Registration())


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    ops = torch.ops.vgg_fast
    forward = [
        ops.conv3x3,
        ops.conv3x3_relu,
        ops.conv3x3_relu_pool,
        ops.conv3x3_relu_and_pool,
        ops._conv3x3_relu_masked,
        ops._conv3x3_relu_pool_masked,
        ops._conv3x3_relu_and_pool_masked,
    ]
    backward = [ops.conv3x3_backward, ops.conv3x3_relu_backward, ops.conv3x3_relu_pool_backward]
    register_flop_formula(forward)(convolution)
    register_flop_formula(backward)(convolution_backward)
    register_flop_formula([ops._conv3x3_dgrad, ops._conv3x3_relu_dgrad])(dgrad)
    register_flop_formula(ops._conv3x3_relu_and_pool_dgrad)(both_dgrad)
    register_flop_formula(ops._conv3x3_relu_pool_dgrad)(pooled_dgrad)
    register_flop_formula([ops.max_pool2x2, ops.max_pool2x2_backward])(pooling)


class _Registration(MetaPathFinder):
    """Waits for the import of the counter, once, and follows it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _COUNTER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
