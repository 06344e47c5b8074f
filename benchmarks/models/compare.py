"""Whether a transformed model does what the model did: results, formats, gradients, buffers.

    python -m benchmarks.models --rounds 0

Both run on the same inputs, from the same seeds. A tensor may differ by rounding, to a relative L2
error of 1e-4. A gradient may differ more where rounding decides a ReLU whose input is nearly zero,
or the larger of two nearly equal pixels. To tell that from a fault, the model runs in fp64 too: the
transformed model may be ten times as far from it as the model is, and a gradient 5e-3. Where maps
are small, one flip is more than that of a gradient: then both run in fp64, where nothing flips, and
have to agree to 1e-9.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import vgg_fast
from benchmarks.models.case import Case, Size

ROUNDING = 1e-4
FLIP = 5e-3
DOUBTFUL = 0.1
ROUNDING_OF_FP64 = 1e-9
MORE_THAN_TORCH = 10

Transform = Callable[[nn.Module], nn.Module]
Observed = dict[str, Any]


@dataclass
class Comparison:
    """What :func:`compare` found.

    Attributes:
        name: of the case, and " (train)" in train mode.
        eligible: 3×3 convolutions with stride 1, dilation 1 and one group.
        replaced: convolutions of the transformed model whose class is this package's.
        equal: whether nothing differs beyond rounding.
        error: the worst relative L2 error between the two, but for gradients of nothing but noise.
        flips: gradients that were taken for equal though they differ by more than rounding.
        differences: sentences; empty if equal.
        exception: what the transformation or the transformed model raised, in words.
    """

    name: str
    eligible: int = 0
    replaced: int = 0
    equal: bool = False
    error: float = 0.0
    flips: int = 0
    differences: list[str] = field(default_factory=list)
    exception: str | None = None

    def __str__(self) -> str:
        found = [self.exception] if self.exception else self.differences
        return f"{self.name}: " + ("equal" if self.equal else "; ".join(found[:6]))


def compare(
    case: Case,
    transform: Transform = vgg_fast.fuse,
    size: Size = "small",
    *,
    training: bool = False,
    seed: int = 0,
) -> Comparison:
    """Run a case's model, and ``transform`` of a copy of it, and compare everything.

    Args:
        case: what to run.
        transform: gets a copy of the model, which it may change.
        size: of the inputs.
        training: in train mode; else in eval mode.
        seed: of weights, inputs, and what is drawn in a call.

    Raises:
        Whatever the model itself raises.
    """
    found = Comparison(case.name + " (train)" * training)
    model = case.model(size, seed).train(training)
    found.eligible = sum(map(is_eligible, model.modules()))
    inputs = case.draw(size, seed)
    copy_of_it = copied(model).train(training)
    theirs = observe(case, model, inputs, seed)
    try:
        mine = transform(copy_of_it)
        found.replaced = sum(map(is_replaced, mine.modules()))
        if list(mine.state_dict()) != list(model.state_dict()):
            found.differences.append("the state_dict has other keys")
        if mine.training != training:
            found.differences.append(f"it is in {'train' if mine.training else 'eval'} mode")
        ours = observe(case, mine, inputs, seed)
    except Exception as error:
        found.exception = f"{type(error).__name__}: {error}".split("\n")[0]
        return found

    def in_fp64(made: Transform) -> Observed:
        model = made(case.model(size, seed).train(training).double())
        with same_dropout():
            return observe(case, model, [_double(x) for x in inputs], seed)

    judge = _Judge(
        found,
        functools.cache(lambda: in_fp64(lambda model: model)),
        functools.cache(lambda: in_fp64(transform)),
    )
    if list(theirs) != list(ours):
        named = sorted(theirs.keys() ^ ours.keys())
        found.differences.append(f"only one of them has {', '.join(named[:4])}")
    for name in theirs:
        if name in ours:
            judge(name, theirs[name], ours[name])
    found.equal = not found.differences
    return found


def is_eligible(module: nn.Module) -> bool:
    """Whether it is a convolution whose arithmetic this package has."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.groups == 1
    )


def is_replaced(module: nn.Module) -> bool:
    """Whether it is a convolution of this package."""
    ours = any(base.__module__.split(".")[0] == "vgg_fast" for base in type(module).__mro__)
    weight = getattr(module, "weight", None) if ours else None
    return isinstance(weight, Tensor) and weight.dim() == 4


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also where a weight is computed (weight_norm), which deepcopy refuses."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


# ---------------------------------------------------------------------------------------- observing


def observe(case: Case, model: nn.Module, inputs: Any, seed: int) -> Observed:
    """Everything that a call and its backward pass leave, by name.

    Once without gradients, where layers may be folded into each other; once with; and once more
    after a step has changed every weight in place, which what was folded must notice.
    """
    found: Observed = {}
    if case.gradients != "own":
        with torch.no_grad():
            torch.manual_seed(seed)
            _flatten("result without gradients", case.run(model, _clones(inputs)), found)
    given = _clones(inputs)
    if case.gradients in ("input", "both"):
        for x in given:
            if isinstance(x, Tensor) and x.is_floating_point():
                x.requires_grad_()
    torch.manual_seed(seed)
    results: Observed = {}
    _flatten("result", case.run(model, given), results)
    if case.gradients not in ("none", "own"):
        _backward(results, seed)
        for i, x in enumerate(given):
            if isinstance(x, Tensor) and x.grad is not None:
                found[f"gradient of input {i}"] = x.grad
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[f"gradient of {name}"] = parameter.grad
    found |= results
    for i, x in enumerate(given):
        _flatten(f"input {i} afterwards", x, found)
    found |= {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    if case.gradients != "own":
        _step(model)
        with torch.no_grad():
            torch.manual_seed(seed)
            _flatten("result after a step", case.run(model, _clones(inputs)), found)
    return found


def _backward(results: Observed, seed: int) -> None:
    """Of a fixed random projection of all results."""
    generator = torch.Generator().manual_seed(seed)
    outputs, gradients = [], []
    for result in results.values():
        if isinstance(result, Tensor) and result.requires_grad:
            random = torch.randn(result.shape, generator=generator, dtype=torch.float64)
            outputs.append(result)
            gradients.append(random.to(result.dtype))
    if outputs:
        torch.autograd.backward(outputs, gradients)


@torch.no_grad()
def _step(model: nn.Module) -> None:
    # By the same factors in both models, not by their gradients, whose rounding would add up.
    for i, parameter in enumerate(model.parameters()):
        parameter.mul_(1.05 if i % 2 else 0.97)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.01)
        elif name.endswith("running_var"):
            buffer.mul_(1.03)


def _flatten(name: str, value: Any, found: Observed) -> None:
    """Tensors, and whatever isn't a container, by a name that says where they stand."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        found[f"{name}: {type(value).__name__}"] = list(value)
        for key, part in value.items():
            _flatten(f"{name}[{key!r}]", part, found)
    elif isinstance(value, (list, tuple)):
        # By its name: some models make a new namedtuple class in each call.
        found[f"{name}: {type(value).__name__}"] = len(value)
        for i, part in enumerate(value):
            _flatten(f"{name}[{i}]", part, found)
    else:
        found[name] = value


def tensors(value: Any) -> list[Tensor]:
    """All of a nested result."""
    found: Observed = {}
    _flatten("", value, found)
    return [part for part in found.values() if isinstance(part, Tensor)]


def _clones(inputs: Any) -> list[Any]:
    return [x.clone() if isinstance(x, Tensor) else x for x in inputs]


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


@contextmanager
def same_dropout() -> Iterator[None]:
    """Inside, dropout of fp64 tensors leaves out what it would leave out of fp32 ones."""

    def drawn_in_fp32(dropout: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def stand_in(
            x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
        ) -> Tensor:
            mask = dropout(torch.ones_like(x, dtype=torch.float32), p, training)
            return x.mul_(mask) if inplace else x * mask

        return stand_in

    with ExitStack() as patches:
        for name in ("dropout", "dropout1d", "dropout2d", "dropout3d"):
            stand_in = drawn_in_fp32(getattr(nn.functional, name))
            patches.enter_context(mock.patch.object(nn.functional, name, stand_in))
        yield


# ------------------------------------------------------------------------------------------ judging


class _Judge:
    """Compares what has the same name in both, and writes differences down."""

    def __init__(
        self,
        found: Comparison,
        exact: Callable[[], Observed] | None,
        transformed_in_fp64: Callable[[], Observed],
    ) -> None:
        self.found, self.exact, self.transformed_in_fp64 = found, exact, transformed_in_fp64

    def __call__(self, name: str, theirs: Any, ours: Any) -> None:
        if isinstance(theirs, Tensor) and isinstance(ours, Tensor):
            difference = _form(theirs, ours) if not name.startswith("gradient") else None
            difference = difference or self._values(name, theirs.detach(), ours.detach())
        elif isinstance(theirs, (bool, int, float, str, list, type(None))):
            difference = None if theirs == ours else f"is {ours}, not {theirs}"
        else:
            same = type(theirs) is type(ours)
            difference = None if same else f"is a {type(ours)}, not a {type(theirs)}"
        if difference:
            self.found.differences.append(f"{name} {difference}")

    def _values(self, name: str, theirs: Tensor, ours: Tensor) -> str | None:
        if theirs.shape != ours.shape:
            return f"has shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
        if not theirs.is_floating_point():
            differing = (theirs != ours).double().mean().item() if theirs.numel() else 0.0
            return f"differs in {differing:.1%} of its elements" if differing > FLIP else None
        error = relative_error(ours, theirs)
        if error <= ROUNDING:
            self.found.error = max(self.found.error, error)
            return None
        exact = self._exact(name)
        if exact is None:
            self.found.error = max(self.found.error, error)
            return None if error <= self._bound(name) else f"has a relative error of {error:.1e}"
        mine, torchs = relative_error(ours, exact), relative_error(theirs, exact)
        if torchs < 0.1:  # else it is rounding alone, such as a bias's gradient before a norm
            self.found.error = max(self.found.error, error)
        if mine <= max(ROUNDING, MORE_THAN_TORCH * torchs):
            return None
        if mine <= self._bound(name):
            self.found.flips += 1
            return None
        if name.startswith("gradient") and mine < DOUBTFUL and self._agrees_in_fp64(name, exact):
            self.found.flips += 1
            return None
        return f"has a relative error of {mine:.1e} against fp64, where the model's is {torchs:.1e}"

    def _agrees_in_fp64(self, name: str, exact: Tensor) -> bool:
        try:
            ours = self.transformed_in_fp64().get(name)
        except Exception:
            return False
        if not isinstance(ours, Tensor) or ours.shape != exact.shape:
            return False
        return relative_error(ours.detach(), exact) <= ROUNDING_OF_FP64

    def _bound(self, name: str) -> float:
        return FLIP if name.startswith("gradient") else ROUNDING

    def _exact(self, name: str) -> Tensor | None:
        if self.exact is None:
            return None
        try:
            found = self.exact().get(name)
        except Exception:  # some models have fp32 written into them
            self.exact = None
            return None
        return found.detach() if isinstance(found, Tensor) else None


def _form(theirs: Tensor, ours: Tensor) -> str | None:
    for what, of in (
        ("dtype", lambda t: t.dtype),
        ("requires_grad", lambda t: t.requires_grad),
        ("shape", lambda t: tuple(t.shape)),
        ("is_contiguous()", lambda t: t.is_contiguous()),
        (
            "is_contiguous(channels_last)",
            lambda t: t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last),
        ),
    ):
        if of(theirs) != of(ours):
            return f"has {what} {of(ours)}, not {of(theirs)}"
    return None


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖; the error itself where only zeros are expected.

    What is infinite or no number in both is taken for equal.
    """
    if torch.equal(actual, expected):
        return 0.0
    norm = torch.linalg.vector_norm
    error, size = float(norm(actual - expected)), float(norm(expected))
    if not math.isfinite(error + size):
        finite = expected.isfinite()
        if not torch.equal(actual.isfinite(), finite):
            return math.inf
        actual, expected = actual[finite].double(), expected[finite].double()
        error, size = float(norm(actual - expected)), float(norm(expected))
    return error / size if size else error
