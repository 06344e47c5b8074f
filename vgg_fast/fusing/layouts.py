"""Where the operators' channels_last may flow on, and where a graph needs torch's own strides.

The operators return channels_last. torch's convolution does so only where its input or weight is,
and a model may see the difference: in ``view``, ``stride()``, an output. So a value whose strides
may differ from torch's flows through operations that compute the same whatever the strides, and is
put into torch's order in front of everything else.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node

from vgg_fast.fusing import spellings

# Their results are new tensors, with the same numbers whatever the strides of what they read.
# fmt: off
_NAMES = (
    "abs", "add", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "batch_norm",
    "cat", "celu", "clamp", "clamp_max", "clamp_min", "clip", "concat", "conv2d",
    "conv_transpose2d", "div", "elu", "exp", "gelu", "group_norm", "hardsigmoid", "hardswish",
    "hardtanh", "instance_norm", "interpolate", "leaky_relu", "log", "max_pool2d", "maximum",
    "mean", "minimum", "mish", "mul", "multiply", "neg", "normalize", "pow", "prelu", "relu",
    "relu6", "rsqrt", "selu", "sigmoid", "silu", "softmax", "softplus", "sqrt", "square", "sub",
    "subtract", "sum", "tanh", "truediv", "true_divide", "upsample", "where",
)
# fmt: on
_DROPOUTS = {F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout}
_METHODS = {name + end for name in _NAMES for end in ("", "_")}
_FUNCTIONS = {
    getattr(module, name)
    for module in (torch, F, operator)
    for name in (*_METHODS, "iadd", "isub", "imul", "itruediv")
    if hasattr(module, name)
}


def restore(graph: Graph, results: Collection[Node], own: Collection[Node]) -> int:
    """Put values into torch's order where somebody could see that they aren't.

    Args:
        graph: after its rewriting.
        results: the operators' results, whose examples have the strides that torch gives.
        own: further nodes that the rewriting added.

    Returns:
        How many values are put in order.
    """
    other: set[Node] = set()  # whose strides may be other than torch's
    restored = 0
    for node in list(graph.nodes):
        if not (_differs(node) if node in results else _passes_on(node, other)):
            continue
        users = list(node.users)
        if all(user in own or _is_blind(user, node) for user in users):
            other.add(node)
            continue
        seen = [user for user in users if user.op != "output"]
        if all(user in own or _is_blind(user, node) for user in seen):
            other.add(node)
            _put_in_order(node, [user for user in users if user.op == "output"])
        else:  # a view or a change in place: whoever sees one sees all of it
            _put_in_order(node, users)
        restored += 1
    return restored


def _passes_on(node: Node, other: set[Node]) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    written = spellings.written_by(node)
    inputs = node.all_input_nodes if written is None else [written]
    return any(input in other for input in inputs)


def _is_blind(user: Node, node: Node) -> bool:
    """Whether ``user`` computes the same whatever the strides of ``node``, in memory of its own."""
    if user.op not in ("call_function", "call_method") or "out" in user.kwargs:
        return False
    if user.op == "call_method":
        known = user.target in _METHODS
    elif user.target in _DROPOUTS:  # which return their very input otherwise
        known = spellings.argument(user, "training") is True
    else:
        known = user.target in _FUNCTIONS
    if not known:
        return False
    if spellings.written_by(user) is node and len(node.users) > 1:
        return False
    example = spellings.value(user)
    return isinstance(example, Tensor) and memory_format(example) is not None


def memory_format(tensor: Tensor) -> torch.memory_format | None:
    """Contiguous or channels_last, if the strides are exactly those."""
    for format in (torch.contiguous_format, torch.channels_last):
        if format == torch.contiguous_format or tensor.dim() == 4:
            expected = _strides(tensor, format)
            if all(_surely_equal(a, b) for a, b in zip(tensor.stride(), expected, strict=True)):
                return format
    return None


def _differs(result: Node) -> bool:
    example = spellings.value(result)
    if example.dim() != 4:
        return True
    expected = _strides(example, torch.channels_last)
    return not all(_surely_equal(a, b) for a, b in zip(example.stride(), expected, strict=True))


def _put_in_order(node: Node, users: list[Node]) -> None:
    example = spellings.value(node)
    format = memory_format(example)
    # With one channel, one pixel or no image both orders are the same one, and contiguous() would
    # keep the strides as they are.
    ones = [type(size) is int and size == 1 for size in example.shape[-3:]]
    ambiguous = len(ones) == 3 and (ones[0] or (ones[1] and ones[2]))
    ambiguous |= any(type(size) is int and size == 0 for size in example.shape)
    with node.graph.inserting_after(node):
        ordered = node.graph.call_method(
            "clone" if ambiguous else "contiguous", (node,), {"memory_format": format}
        )
    ordered.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, ordered)


def _strides(tensor: Tensor, format: torch.memory_format) -> tuple[Any, ...]:
    order = [*range(tensor.dim())]
    if format == torch.channels_last:
        order = [0, 2, 3, 1]
    strides: list[Any] = [1] * tensor.dim()
    step: Any = 1
    for dim in reversed(order):
        strides[dim] = step
        # As torch does: what has no elements, or one, counts as one.
        step = step * (tensor.shape[dim] if type(tensor.shape[dim]) is not int
                       else max(tensor.shape[dim], 1))  # fmt: skip
    return tuple(strides)


def _surely_equal(a: Any, b: Any) -> bool:
    if type(a) is int and type(b) is int:
        return a == b
    # Here, because it brings a third as many modules again as torch itself.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(a == b)
