"""Finds this package's patterns in a graph of Dynamo's, and puts its operators there.

    conv2d [→ batch_norm in eval mode] → relu → max_pool2d(2)    becomes    conv3x3_relu_pool
    conv2d [→ batch_norm in eval mode] → relu                    becomes    conv3x3_relu
    conv2d                                                       becomes    conv3x3

The operator stands where the convolution stood, so that it reads what the convolution read.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

import vgg_fast.functional  # noqa: F401  (registers torch.ops.vgg_fast)
from vgg_fast._layout import is_served_dtype
from vgg_fast.fusing import layouts, spellings
from vgg_fast.fusing.spellings import BatchNorm, Convolution, value

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
        batch_norm: the call that is folded into weight and bias.
        last: the node whose result is the operator's: convolution, ReLU or pooling.
    """

    convolution: Node
    operator: str | None = None
    why: str | None = None
    batch_norm: Node | None = None
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
            group.why = _why_not(convolution, node)
        if group.why is None:
            _grow(group, convolution, places)
        groups.append(group)
    return groups


# ----------------------------------------------------------------------------------------- finding


def _why_not(convolution: Convolution, node: Node) -> str | None:
    result, input, weight = value(node), value(convolution.input), value(convolution.weight)
    if not all(_is_plain(tensor) for tensor in (result, input, weight)) or (
        convolution.bias is not None and not _is_plain(value(convolution.bias))
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


def _is_plain(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_nested:
        return False
    # Dynamo's examples are fake tensors; frozen ones, and an exported graph's, are tensors.
    return not torch.utils._python_dispatch.is_traceable_wrapper_subclass(tensor)


def _grow(group: Group, convolution: Convolution, places: dict[Node, int]) -> None:
    """Take into the group what follows the convolution, as far as one operator computes it."""
    group.operator = "conv3x3"
    node, batch_norm, folded = group.convolution, None, None
    user, group.why = _next(node, group)
    if user is not None and (batch_norm := spellings.batch_norm(user)) is not None:
        group.why = _why_not_folded(batch_norm, convolution, group, user, places)
        if group.why is not None:
            return
        folded = user
        user, group.why = _next(user, group)
    if user is None:
        return
    relu = spellings.relu(user)
    if relu is None:
        group.why = f"is followed by {_spelled(user)}, not by a ReLU"
        return
    if relu.by_clamp and value(user).requires_grad:
        group.why = "is followed by a clamp, whose gradient at 0 isn't a ReLU's"
        return
    group.operator, group.batch_norm, group.last = "conv3x3_relu", folded, user
    user, group.why = _next(user, group)
    if user is None:
        return
    pool = spellings.max_pool(user)
    if pool is None or not spellings.is_2x2(pool):
        group.why = None
    elif value(user).requires_grad and (written := _changed_later(user)):
        group.why = f"is followed by a pooling whose result {_spelled(written)} changes in place"
    else:
        group.operator, group.last = "conv3x3_relu_pool", user


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


def _why_not_folded(
    norm: BatchNorm, convolution: Convolution, group: Group, node: Node, places: dict[Node, int]
) -> str | None:
    statistics = (norm.running_mean, norm.running_var)
    if norm.training is not False or None in statistics:
        return "is followed by a batch norm in training mode"
    arguments = [a for a in (*statistics, norm.weight, norm.bias) if a is not None]
    if not all(_is_plain(value(a)) for a in arguments) or not isinstance(norm.eps, (float, Node)):
        return "is followed by a batch norm of tensors that aren't plain ones"
    here = places[group.convolution]
    for argument in _tensors_of(norm):
        written = [u for u in argument.users if spellings.written_by(u) is argument]
        late = places[argument] > here and not _can_move(argument)
        if late or any(here < places[u] for u in written):
            return "is followed by a batch norm whose tensors are computed later"
    result, weight = value(group.convolution), value(convolution.weight)
    if torch.float16 in (result.dtype, weight.dtype):
        return "is followed by a batch norm whose scale could leave float16's range"
    wanted = any(value(a) is not None and value(a).requires_grad for a in (norm.weight, norm.bias))
    if wanted and value(node).requires_grad and not weight.requires_grad:
        return "is followed by a batch norm that wants gradients where the weight doesn't"
    if not folding_pays(result, weight):
        return "is followed by a batch norm, and has more weights than pixels to scale"
    return None


def _tensors_of(norm: BatchNorm) -> list[Node]:
    """What a batch norm in eval mode reads besides its input; under dynamic shapes eps as well."""
    read = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    return [argument for argument in read if isinstance(argument, Node)]


def _can_move(node: Node) -> bool:
    """Whether ``node`` gives the same wherever it stands: what is read from a model's state."""
    if node.op == "call_method" and node.target == "item":
        return all(input.op == "placeholder" for input in node.all_input_nodes)
    return node.op == "get_attr"


def folding_pays(result: Tensor, weight: Tensor) -> bool:
    """Whether scaling ``weight`` at every call costs less than scaling ``result``.

    Inductor folds what is frozen, once.
    """
    from torch._inductor import config

    if config.freezing and not result.requires_grad:
        return True
    return _hint(weight) <= _hint(result)


def _hint(tensor: Tensor) -> float:
    """The number of elements; of what is symbolic, the one that it was traced with."""
    shape: tuple[Any, ...] = tensor.shape
    sizes = (s if type(s) is int else getattr(s.node, "hint", None) for s in shape)
    return math.prod(math.inf if size is None else size for size in sizes)


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
    example = value(group.last)
    called = getattr(torch.ops.vgg_fast, str(group.operator)).default
    with graph.inserting_before(group.convolution):
        one_image = example.dim() == 3
        if one_image:
            input = graph.call_method("unsqueeze", (input, 0))
        if group.batch_norm is not None:
            norm = spellings.batch_norm(group.batch_norm)
            assert norm is not None
            for argument in _tensors_of(norm):
                if argument.op != "placeholder" and _can_move(argument):
                    group.convolution.prepend(argument)
            weight, bias = _fold(graph, norm, weight, bias)
        if group.operator == "conv3x3_relu_pool":
            both = graph.call_function(called, (input, weight, bias, example.requires_grad))
            result = graph.call_function(operator.getitem, (both, 0))
        else:
            result = graph.call_function(called, (input, weight, bias))
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
    return result


def _fold(graph: Graph, norm: BatchNorm, weight: Node, bias: Node | None) -> tuple[Node, Node]:
    """Weight and bias of the convolution whose result is the batch norm's.

    scale = gamma / sqrt(var + eps), weight' = weight · scale, bias' = (bias - mean) · scale + beta
    """
    dtype = value(weight).dtype

    def call(function: Any, *args: Any) -> Node:
        return graph.call_function(function, args)

    def wide(tensor: Node) -> Node:
        narrow = value(tensor).dtype in (torch.bfloat16, torch.float16)
        return graph.call_method("float", (tensor,)) if narrow else tensor

    scale = call(torch.rsqrt, call(operator.add, wide(norm.running_var), norm.eps))
    if norm.weight is not None:
        scale = call(operator.mul, wide(norm.weight), scale)
    scaled = call(operator.mul, wide(weight), graph.call_method("view", (scale, -1, 1, 1, 1)))
    shift = norm.running_mean
    shift = call(operator.neg, wide(shift)) if bias is None else call(
        operator.sub, wide(bias), wide(shift)
    )  # fmt: skip
    shift = call(operator.mul, shift, scale)
    if norm.bias is not None:
        shift = call(operator.add, shift, wide(norm.bias))
    as_it_was = {"dtype": dtype}
    return (
        graph.call_method("to", (scaled,), as_it_was),
        graph.call_method("to", (shift,), as_it_was),
    )
