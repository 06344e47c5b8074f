"""What a node of Dynamo's graph computes, however the model spelled it.

Dynamo inlines ``nn`` modules, so a graph holds functions of ``torch`` and ``torch.nn.functional``
and methods of tensors, in place or not: ``F.relu(x)``, ``torch.relu_(x)``, ``x.clamp(min=0)``.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node

_RELUS = ({F.relu, torch.relu, torch.relu_}, {"relu", "relu_"})
_CLAMPS = (
    {torch.clamp, torch.clamp_, torch.clip, torch.clip_},
    {"clamp", "clamp_", "clip", "clip_"},
)
_LEAKY_RELUS: tuple[set, set] = (
    {F.leaky_relu, F.leaky_relu_, torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_},
    set(),
)
_CLAMPS_FROM_BELOW = ({torch.clamp_min, torch.clamp_min_}, {"clamp_min", "clamp_min_"})


@dataclass(frozen=True)
class Convolution:
    """A call of ``torch.conv2d``."""

    input: Any
    weight: Any
    bias: Any = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: Any = 1


@dataclass(frozen=True)
class BatchNorm:
    """A call of ``F.batch_norm``."""

    input: Any
    running_mean: Any
    running_var: Any
    weight: Any = None
    bias: Any = None
    training: Any = False
    momentum: Any = 0.1
    eps: Any = 1e-5


@dataclass(frozen=True)
class MaxPool:
    """A call of ``F.max_pool2d``."""

    input: Any
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: Any = False
    return_indices: Any = False


@dataclass(frozen=True)
class Pad:
    """A call of ``F.pad``."""

    input: Any
    pad: Any
    mode: Any = "constant"
    value: Any = None


@dataclass(frozen=True)
class ReLU:
    """max(input, negative_slope · input), and whether by a clamp, whose gradient at 0 is 1."""

    input: Any
    negative_slope: float = 0.0
    by_clamp: bool = False


@dataclass(frozen=True)
class _LeakyReLU:
    input: Any
    negative_slope: Any = 0.01
    inplace: Any = False


@dataclass(frozen=True)
class _Clamp:
    input: Any
    min: Any = None
    max: Any = None


@dataclass(frozen=True)
class _TorchBatchNorm:
    input: Any
    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    training: Any
    momentum: Any
    eps: Any
    cudnn_enabled: Any


def convolution(node: Node) -> Convolution | None:
    """The 2-D convolution that ``node`` calls."""
    return _call(node, ({torch.conv2d}, set()), Convolution)


def batch_norm(node: Node) -> BatchNorm | None:
    """The batch normalisation that ``node`` calls."""
    plain = _call(node, ({torch.batch_norm}, set()), _TorchBatchNorm)
    if plain is not None:
        return BatchNorm(
            plain.input, plain.running_mean, plain.running_var, plain.weight, plain.bias,
            plain.training, plain.momentum, plain.eps,
        )  # fmt: skip
    return _call(node, ({F.batch_norm}, set()), BatchNorm)


def relu(node: Node) -> ReLU | None:
    """The ReLU that ``node`` calls, leaky ones that rise throughout among them."""
    if _is_one_of(node, _RELUS):
        return ReLU(_argument(node, 0, "input"))
    leaky = _call(node, _LEAKY_RELUS, _LeakyReLU)
    if leaky is not None:
        slope = leaky.negative_slope
        rises = type(slope) in (int, float) and 0 < slope < math.inf
        return ReLU(leaky.input, float(slope)) if rises else None
    clamp = _call(node, _CLAMPS, _Clamp) or _call(node, _CLAMPS_FROM_BELOW, _Clamp)
    if clamp is None or clamp.max is not None:
        return None
    if not isinstance(clamp.min, (int, float)) or clamp.min != 0:
        return None
    return ReLU(clamp.input, by_clamp=True)


def border(node: Any) -> str | None:
    """What the operators call the border of one pixel that ``node`` puts around a map."""
    if not isinstance(node, Node):
        return None
    pad = _call(node, ({F.pad, torch._C._nn.pad}, set()), Pad)
    if pad is None or not isinstance(pad.pad, (tuple, list)):
        return None
    if len(pad.pad) != 4 or not all(type(width) is int and width == 1 for width in pad.pad):
        return None
    if pad.mode == "constant":
        is_zero = pad.value is None or (type(pad.value) in (int, float) and pad.value == 0)
        return "zeros" if is_zero else None
    return pad.mode if pad.mode in ("reflect", "replicate", "circular") else None


def max_pool(node: Node) -> MaxPool | None:
    """The 2-D max pooling that ``node`` calls."""
    return _call(node, ({F.max_pool2d, torch.max_pool2d}, set()), MaxPool)


def is_2x2(pool: MaxPool) -> bool:
    """Whether the windows are 2×2, side by side, and none is cut by the edge."""
    return (
        _both(pool.kernel_size, 2)
        and (pool.stride in (None, (), []) or _both(pool.stride, 2))
        and _both(pool.padding, 0)
        and _both(pool.dilation, 1)
        and (pool.ceil_mode is False or (pool.ceil_mode is True and _is_even(value(pool.input))))
        and pool.return_indices is False
    )


def _is_even(map: Tensor) -> bool:
    return all(type(size) is int and size % 2 == 0 for size in map.shape[-2:])


def why_not_conv3x3(convolution: Convolution, weight: Tensor) -> str | None:
    """Why it isn't this package's 3×3 convolution; None if it is. Completes "it ..."."""
    if tuple(weight.shape[2:]) != (3, 3):
        return f"has a {'x'.join(map(str, weight.shape[2:]))} kernel, not 3x3"
    for name, has in (("stride", convolution.stride), ("dilation", convolution.dilation)):
        if not _both(has, 1):
            return f"has {name} {_shown(has)}, not 1"
    if padding(convolution) is None:
        return f"has padding {_shown(convolution.padding)}, not 1 or 0"
    if convolution.groups != 1:
        return f"has groups {convolution.groups}, not 1"
    return None


def padding(convolution: Convolution) -> str | None:
    """What the operators call the padding; None if they haven't got it."""
    has = convolution.padding
    if has == "same" or _both(has, 1):
        return "zeros"
    return "valid" if has == "valid" or _both(has, 0) else None


def value(node: Any) -> Any:
    """The example that Dynamo keeps of what ``node`` computes: a fake tensor, or None."""
    if not isinstance(node, Node):
        return None
    if "example_value" in node.meta:
        return node.meta["example_value"]
    module = node.graph.owning_module
    if node.op == "get_attr" and module is not None:  # parameters, where Inductor freezes them
        found: Any = module
        for part in str(node.target).split("."):
            found = getattr(found, part, None)
        return found
    return None


def is_plain(tensor: Any) -> bool:
    """Whether an example is that of an ordinary, dense tensor."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_nested:
        return False
    # Dynamo's examples are fake tensors; frozen ones, and an exported graph's, are tensors.
    return not torch.utils._python_dispatch.is_traceable_wrapper_subclass(tensor)


def written_by(node: Node) -> Node | None:
    """The argument that ``node`` changes in place."""
    target: Any = node.target
    if node.op == "call_method":
        in_place = target.endswith("_") and not target.endswith("__")
    elif node.op != "call_function":
        return None
    elif isinstance(node.kwargs.get("out"), Node):
        return node.kwargs["out"]  # type: ignore[return-value]
    elif isinstance(target, torch._ops.OpOverload):
        in_place = target._schema.is_mutable
    else:
        name = getattr(target, "__name__", "")
        in_place = (
            target is operator.setitem
            or (getattr(target, "__module__", "") == "_operator" and name in _IN_PLACE_OPERATORS)
            or (name.endswith("_") and not name.endswith("__"))
            or _argument(node, _place_of("inplace", target), "inplace") is True
        )
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if in_place and isinstance(first, Node) else None


def argument(node: Node, name: str) -> Any:
    """The argument of this name of a call of a Python function; None if it isn't given."""
    return _argument(node, _place_of(name, node.target), name)


def changes_state(node: Node) -> bool:
    """Whether ``node`` is there for what it does: grad mode, autocast, streams and the like."""
    if node.op not in ("call_function", "call_method") or "example_value" in node.meta:
        return False
    return node.target is not torch._C._log_api_usage_once  # of a module that is made there


def transforms(graph: Graph) -> bool:
    """Whether a ``torch.func`` transform, or forward-mode differentiation, is part of the graph."""
    modules = (str(getattr(node.target, "__module__", "")) for node in graph.nodes)
    return any("functorch" in module or "forward_ad" in module for module in modules)


_IN_PLACE_OPERATORS = frozenset(
    name for name in dir(operator) if name.startswith("i") and f"__{name}__" in dir(operator)
)


def _is_one_of(node: Node, spelled: tuple[set, set]) -> bool:
    functions, methods = spelled
    if node.op == "call_function":
        return node.target in functions
    return node.op == "call_method" and node.target in methods


def _call(node: Node, spelled: tuple[set, set], kind: Any) -> Any:
    if not _is_one_of(node, spelled):
        return None
    try:
        return kind(*node.args, **node.kwargs)
    except TypeError:  # an argument that this file doesn't know, such as out=
        return None


def _argument(node: Node, place: int | None, name: str) -> Any:
    if place is not None and place < len(node.args):
        return node.args[place]
    return node.kwargs.get(name)


@functools.cache
def _place_of(name: str, function: Any) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # built-in functions have none
        return None
    return names.index(name) if name in names else None


def _both(value: Any, needed: int) -> bool:
    """Whether a size given as a number or a pair, or as a list of one, is ``needed`` both ways."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return len(values) in (1, 2) and all(type(v) is int and v == needed for v in values)


def _shown(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else value
