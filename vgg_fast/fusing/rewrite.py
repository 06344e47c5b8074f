"""Finds this package's patterns in a graph of Dynamo's, and puts its operators there.

    [pad →] conv2d [→ batch_norm] → relu → max_pool2d(2)    becomes    conv3x3_relu_pool
    [pad →] conv2d [→ batch_norm] → max_pool2d(2) → relu    becomes    conv3x3_relu_pool
    [pad →] conv2d [→ batch_norm] → relu                    becomes    conv3x3_relu
    [pad →] conv2d [→ batch_norm]                           becomes    conv3x3

The ReLU may be a leaky one if it comes before the pooling: behind it, its rounding can't make two
pixels of a window equal, and torch's gradient may be another one's. The norm is in eval mode
(norms.py). The operator stands where the convolution stood, so that it reads what that read.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

import vgg_fast.functional  # noqa: F401  (registers torch.ops.vgg_fast)
from vgg_fast._layout import is_served_dtype
from vgg_fast.fusing import layouts, norms, spellings
from vgg_fast.fusing.spellings import Convolution, is_plain, value

_DEVICES = ("cpu", "cuda")

# What may return its input's memory.
# fmt: off
_VIEWS = (
    "alpha_dropout", "chunk", "contiguous", "dropout", "dropout2d", "expand", "expand_as",
    "feature_alpha_dropout", "flatten", "float", "getitem", "movedim", "narrow", "permute",
    "reshape", "reshape_as", "split", "squeeze", "swapaxes", "t", "to", "transpose", "type_as",
    "unbind", "unflatten", "unsqueeze", "view", "view_as",
)
# fmt: on


@dataclass
class Group:
    """What is replaced by one operator, or left.

    Attributes:
        convolution: the call of ``torch.conv2d``.
        operator: what becomes of it; None if it is left.
        why: the reason that it is left, or that no more goes with it. Completes "it ...".
        pad: the call that puts a border around the input.
        padding: how the operator is to pad.
        batch_norm: the call whose arithmetic is a scale and a bias.
        negative_slope: of the ReLU.
        last: the node whose result is the operator's.
    """

    convolution: Node
    operator: str | None = None
    why: str | None = None
    pad: Node | None = None
    padding: str = "zeros"
    batch_norm: Node | None = None
    negative_slope: float = 0.0
    last: Node = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.convolution


def worth_it(input: Tensor, weight: Tensor) -> bool:
    """Whether the operators are faster than torch for a convolution of these shapes.

    Args:
        input: an example, without data; sizes may be symbolic.
        weight: the same.
    """
    return True


def rewrite(graph: Graph) -> list[Group]:
    """Replace in ``graph``, and in those that it calls, what this package computes.

    Returns:
        Every convolution, with what became of it.
    """
    groups = []
    for inner in graphs_in(graph):
        found = find(inner)
        _replace(inner, [group for group in found if group.operator is not None])
        groups += found
    return groups


def graphs_in(graph: Graph) -> Iterator[Graph]:
    """``graph``, and those that its nodes call: the bodies of checkpoints and the like."""
    yield graph
    module = graph.owning_module
    for node in graph.nodes:
        if node.op == "get_attr" and module is not None:
            body = getattr(module, str(node.target), None)
            if isinstance(body, GraphModule):
                yield from graphs_in(body.graph)


def find(graph: Graph) -> list[Group]:
    """Every convolution of ``graph``, with what is to become of it."""
    transformed = spellings.transforms(graph)
    places = {node: place for place, node in enumerate(graph.nodes)}
    groups = []
    for node in graph.nodes:
        convolution = spellings.convolution(node)
        if convolution is None:
            continue
        group = Group(node)
        if transformed:
            group.why = "is inside a torch.func transform, or next to one"
        else:
            group.why = _why_not(convolution, node) or _why_not_padded(group, convolution)
        if group.why is None:
            _grow(group, convolution, places)
        groups.append(group)
    return groups


# ----------------------------------------------------------------------------------------- finding


def _why_not(convolution: Convolution, node: Node) -> str | None:
    result, input, weight = value(node), value(convolution.input), value(convolution.weight)
    if not all(is_plain(tensor) for tensor in (result, input, weight)) or (
        convolution.bias is not None and not is_plain(value(convolution.bias))
    ):
        return "computes with tensors that aren't plain ones"
    why_not = spellings.why_not_conv3x3(convolution, weight)
    if why_not is not None:
        return why_not
    if not is_served_dtype(result):
        return f"computes in {result.dtype}, which isn't served"
    if result.device.type not in _DEVICES:
        return f"runs on {result.device.type}, which has no kernels of this package"
    if any(type(size) is int and size == 0 for size in (*result.shape[-3:], *weight.shape)):
        return "has no pixels, or no channels"
    if layouts.memory_format(result) is None:
        return "has a result that is neither contiguous nor channels_last"
    if not worth_it(input, weight):
        return "is faster in torch at this size"
    return None


def _why_not_padded(group: Group, convolution: Convolution) -> str | None:
    """Find out how the operator is to pad, and whether there is a kernel for it."""
    group.padding = str(spellings.padding(convolution))
    border = _border(convolution, group.convolution) if group.padding == "valid" else None
    if border is not None:
        group.pad, group.padding = convolution.input, border
    if group.padding != "zeros" and value(group.convolution).device.type == "cuda":
        return f"has padding {group.padding}, which no kernel for GPUs knows"
    return None


def _border(convolution: Convolution, node: Node) -> str | None:
    """The border around what ``node`` convolves, if nobody else sees the padded map."""
    padded = convolution.input
    border = spellings.border(padded)
    if border is None or len(padded.users) != 1:
        return None
    map = padded.all_input_nodes[0]
    if not is_plain(value(map)) or not is_plain(value(padded)):
        return None
    # The operator keeps the map for the backward pass, torch's convolution the padded one.
    if value(node).requires_grad and _changed_later(map):
        return None
    between = padded.next
    while between is not node:  # the operator reads later what was padded then
        if spellings.changes_state(between) or spellings.written_by(between) is not None:
            return None
        between = between.next
    return border


def _grow(group: Group, convolution: Convolution, places: dict[Node, int]) -> None:
    """Take into the group what follows the convolution, as far as one operator computes it."""
    group.operator = "conv3x3"
    user, group.why = _next(group.convolution, group)
    norm = None if user is None else spellings.batch_norm(user)
    behind = None  # the norm, if more has to follow
    if norm is not None:
        assert user is not None
        node = group.convolution
        group.why = norms.why_not_taken(norm, node, convolution.weight, places)
        if group.why is not None:
            return
        if norms.is_free(norm, value(node)):
            group.batch_norm = group.last = user
        behind = user
        user, group.why = _next(user, group)
    if user is None:
        return
    taken, group.why = _activation(user, group)
    if taken is not None:
        group.batch_norm = behind
        group.operator, group.last, group.negative_slope = taken


def _activation(user: Node, group: Group) -> tuple[tuple[str, Node, float] | None, str | None]:
    """What ``user`` and its own user make of a convolution; else why they leave it as it is.

    That is the operator, the node whose result it computes, and the ReLU's slope.
    """
    pools_first = _pools(user)
    relu_node = _next(user, group)[0] if pools_first else user
    relu = None if relu_node is None else spellings.relu(relu_node)
    if relu is None or relu_node is None or (pools_first and relu.negative_slope):
        return None, f"is followed by {_spelled(user)}, not by a ReLU"
    wants_gradient = value(relu_node).requires_grad
    if relu.by_clamp and wants_gradient:
        return None, "is followed by a clamp, whose gradient at 0 isn't a ReLU's"
    if pools_first:
        return ("conv3x3_relu_pool", relu_node, 0.0), None
    pooled, why = _next(user, group)
    if pooled is not None and _pools(pooled):
        written = _changed_later(pooled) if wants_gradient else None
        if written is None:
            return ("conv3x3_relu_pool", pooled, relu.negative_slope), None
        why = f"is followed by a pooling whose result {_spelled(written)} changes in place"
    elif pooled is not None:
        why = None
    # torch's keeps its input for the backward pass, and so its result may change.
    if relu.negative_slope and wants_gradient:
        written = _changed_later(user)
        if written is not None:
            return None, f"is followed by a ReLU whose result {_spelled(written)} changes in place"
    return ("conv3x3_relu", user, relu.negative_slope), why


def _pools(node: Node) -> bool:
    pool = spellings.max_pool(node)
    return pool is not None and spellings.is_2x2(pool)


def _next(node: Node, group: Group) -> tuple[Node | None, str | None]:
    """The one node that reads ``node``, if it may be taken into the group; else why not."""
    users = list(node.users)
    if len(users) != 1:
        return None, f"has a result that {len(users)} others read" if users else None
    user = users[0]
    if user.op not in ("call_function", "call_method") or user.all_input_nodes[0] is not node:
        return None, None
    example, before = value(user), value(group.convolution)
    if not isinstance(example, Tensor) or example.dim() != before.dim():
        return None, None
    if example.dtype != before.dtype or example.requires_grad != before.requires_grad:
        return None, "changes its dtype, or whether it wants a gradient, after the convolution"
    between = node.next
    while between is not user:
        if spellings.changes_state(between):
            return None, f"is parted from what follows by {_spelled(between)}"
        between = between.next
    return user, None


def _changed_later(node: Node) -> Node | None:
    """What changes the memory of ``node`` in place, if anything does."""
    for user in node.users:
        if spellings.written_by(user) is node:
            return user
        if str(getattr(user.target, "__name__", user.target)) in _VIEWS:
            found = _changed_later(user)
            if found is not None:
                return found
    return None


def _spelled(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


# --------------------------------------------------------------------------------------- replacing


def _replace(graph: Graph, groups: list[Group]) -> None:
    results, own = [], set()
    for group in groups:
        before = set(graph.nodes)
        results.append(_put_operator(graph, group))
        own |= set(graph.nodes) - before
    layouts.restore(graph, set(results), own)


def _put_operator(graph: Graph, group: Group) -> Node:
    convolution = spellings.convolution(group.convolution)
    assert convolution is not None
    input, weight, bias = convolution.input, convolution.weight, convolution.bias
    if group.pad is not None:
        input = group.pad.all_input_nodes[0]
    example = value(group.last)
    called = getattr(torch.ops.vgg_fast, str(group.operator)).default
    options: dict[str, Any] = {}
    if group.negative_slope:
        options["negative_slope"] = group.negative_slope
    if group.padding != "zeros":
        options["padding"] = group.padding
    with graph.inserting_before(group.convolution):
        one_image = example.dim() == 3
        if one_image:
            input = graph.call_method("unsqueeze", (input, 0))
        if group.batch_norm is not None:
            norm = spellings.batch_norm(group.batch_norm)
            assert norm is not None
            norms.move_before(group.convolution, norm)
            scale, bias = norms.scale_and_bias(graph, norm, bias)
            if norms.is_scale(norm, value(group.convolution)):
                options["scale"] = scale
            else:
                weight, bias = norms.multiplied(graph, weight, scale, bias)
        if group.operator == "conv3x3_relu_pool":
            arguments = (input, weight, bias, example.requires_grad)
            both = graph.call_function(called, arguments, options)
            result = graph.call_function(operator.getitem, (both, 0))
        else:
            result = graph.call_function(called, (input, weight, bias), options)
        if one_image:
            result = graph.call_method("squeeze", (result, 0))
    result.meta = dict(group.last.meta)
    group.last.replace_all_uses_with(result)
    node = group.last
    while node is not group.convolution:
        before = node.all_input_nodes[0]
        graph.erase_node(node)
        node = before
    graph.erase_node(node)
    if group.pad is not None:
        graph.erase_node(group.pad)
    return result
