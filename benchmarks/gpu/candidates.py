"""The candidates for one pass of one layer: every backend and peer, and what each must compute.

All of them start from the same tensors, the saved output and argmax of a backward pass among them:
where two values of a window are equal in 16 bits, a gradient would otherwise go one way here and
the other way there, and both would be right. What is right comes from PyTorch in fp32.

    forward    output                       the layer, and nothing is kept
    fprop      output, argmax               the same with what a backward pass keeps
    backward   the gradients                by the operator itself; the images want none
    dgrad      the gradient of the input    the product alone, without ReLU and pooling
    wgrad      the gradient of the weight   likewise
    frozen     the gradient of the input    by the bits that a frozen layer keeps
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.check import LAYER
from seed_layers import SeedLayer
from vgg_fast import backends, functional
from vgg_fast.dispatch import environment
from vgg_fast.ops.frozen import pack

COMPILING = 60.0  # seconds in which Triton's kernels of one call are compiled
OPS = torch.ops.vgg_fast
ATEN = torch.ops.aten
PASSES = ("forward", "fprop", "backward", "dgrad", "wgrad", "frozen")
# Backends, and of the C++ ones the kernels that VGG_FAST_GPU names.
BACKENDS = {
    "triton": ("triton", ""),
    "cpp": ("cpp", "sm_80"),
    "cpp sm_90a": ("cpp", "sm_90a"),
    "reference": ("reference", ""),
}
ALONE = "cudnn convolution alone"  # no bias, ReLU or pooling: less work than the others'
GRAPH, APEX = "cudnn fused graph", "apex"  # of benchmarks/peers/

Named = dict[str, Tensor]
Call = Callable[[], Named]


class Case(NamedTuple):
    """One pass of one layer."""

    layer: SeedLayer
    batch: int
    work: str  # one of PASSES
    dtype: torch.dtype = torch.bfloat16


class Candidate(NamedTuple):
    """``prepare`` gives the call, or raises :class:`benchmarks.peers.base.Unavailable`."""

    prepare: Callable[[], Call]
    gives: tuple[str, ...]
    """The tensors that it must compute."""
    patience: float | None = None
    """Seconds that it may prepare without a word, if more than the usual."""


class Work(NamedTuple):
    """What a group of candidates computes."""

    expected: Named
    bound: dict[str, float]
    candidates: dict[str, Candidate]
    compared: Callable[[Named], Named] = dict
    """Makes of a candidate's result what is compared with ``expected``; it isn't timed."""


class Given(NamedTuple):
    """A layer's tensors, and what its forward pass saved: for us, and for PyTorch's own kernels."""

    input: Tensor
    weight: Tensor
    bias: Tensor
    gradient: Tensor
    full: Tensor  # the map behind the ReLU
    output: Tensor  # and behind the pooling, if there is one
    argmax: Tensor
    places: Tensor  # the argmax as PyTorch's pooling saves it
    mask: Tensor  # the bits of a frozen layer
    windows: Tensor

    def to(self, dtype: torch.dtype) -> Given:
        """With its floating-point tensors in ``dtype``."""
        return Given(*(t.to(dtype) if t.is_floating_point() else t for t in self))


def work(case: Case, device: torch.device) -> Work:
    """The candidates of ``case``; those that aren't installed or built say so when prepared."""
    given, compared = _given(case, device), dict
    operator = _operator(case)
    with backends.use("reference"), ieee():
        expected = operator(given.to(torch.float32))
        if case.work == "forward":
            expected["sums"] = F.conv2d(given.input.float(), given.weight.float(), padding=1)
    gives = tuple(name for name in expected if name != "sums")
    candidates = {"vgg_fast": Candidate(lambda: lambda: operator(given), gives, COMPILING)}
    for name, (backend, kernels) in BACKENDS.items():
        call = _forced(backend, kernels, lambda: operator(given))
        patience = COMPILING if backend == "triton" else None
        candidates[name] = Candidate(lambda call=call: call, gives, patience)
    eager = _EAGER[case.work]
    candidates["eager channels_last"] = Candidate(
        lambda: lambda: eager(case, given), tuple(name for name in gives if name != "argmax")
    )
    if case.work == "forward":
        candidates[ALONE] = Candidate(
            lambda: lambda: {"sums": F.conv2d(given.input, given.weight, padding=1)}, ("sums",)
        )
        for name, peer in ((GRAPH, "cudnn"), (APEX, "apex")):
            candidates[name] = Candidate(lambda peer=peer: _of_module(peer, case, given), gives)
    if "argmax" in expected:
        # It may differ where values are equal; what it points to may not.
        def compared(found: Named) -> Named:
            if "argmax" not in found:
                return found
            return {**found, "argmax": _pointed_to(given.full, found["argmax"])}

        expected = {**expected, "argmax": given.output}
    return Work(expected, dict.fromkeys(expected, LAYER), candidates, compared)


def _given(case: Case, device: torch.device) -> Given:
    layer, batch = case.layer, case.batch
    generator = torch.Generator(device).manual_seed(0)  # a CPU would take seconds

    def normal(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator, device=device).to(case.dtype)
        return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made

    input = normal(batch, layer.c, layer.size, layer.size)
    weight, bias = normal(layer.k, layer.c, 3, 3), normal(layer.k)
    argmax = places = mask = windows = torch.empty(0, dtype=torch.uint8, device=device)
    if case.work in ("dgrad", "wgrad"):
        full = output = normal(batch, layer.k, layer.size, layer.size)
    else:
        with torch.no_grad(), backends.use("reference"):
            full = output = OPS.conv3x3_relu(input, weight, bias)
            if _pools(case):
                output, argmax = OPS.max_pool2x2(full, True)
                places = _places(argmax, full)
    if case.work == "frozen":
        mask = pack(output > 0)
        windows = (
            torch.stack((pack(argmax % 2 == 1), pack(argmax >= 2)), 3) if _pools(case) else mask
        )
    gradient = normal(*output.shape)
    return Given(input, weight, bias, gradient, full, output, argmax, places, mask, windows)


def _pools(case: Case) -> bool:
    return case.layer.op == "conv3x3_relu_pool"


def _gives_input(case: Case) -> bool:
    return case.layer.c not in (1, 3)  # the images want no gradient


def _places(argmax: Tensor, full: Tensor) -> Tensor:
    """The argmax as PyTorch's pooling saves it: places in the map of an image's channel."""
    rows = torch.arange(argmax.shape[2], device=argmax.device).view(-1, 1) * 2
    columns = torch.arange(argmax.shape[3], device=argmax.device) * 2
    place = argmax.long()
    return (rows + place // 2) * full.shape[3] + columns + place % 2


def _pointed_to(full: Tensor, argmax: Tensor) -> Tensor:
    return full.flatten(2).gather(2, _places(argmax, full).flatten(2)).view(argmax.shape)


# --------------------------------------------------------------------------------- our operators


def _operator(case: Case) -> Callable[[Given], Named]:
    """The operator of this pass, by the backend that is in use."""
    by_pass: dict[str, Callable[[Case, Given], Named]] = {
        "forward": _forward,
        "fprop": _fprop,
        "backward": _backward,
        "dgrad": lambda case, given: {"grad_input": _linear_backward(given, 0)},
        "wgrad": lambda case, given: {"grad_weight": _linear_backward(given, 1)},
        "frozen": _frozen,
    }
    return lambda given: by_pass[case.work](case, given)


def _forward(case: Case, given: Given) -> Named:
    operator = getattr(functional, case.layer.op)
    return {"output": operator(given.input, given.weight, given.bias)}


def _fprop(case: Case, given: Given) -> Named:
    if not _pools(case):
        return {"output": OPS.conv3x3_relu(given.input, given.weight, given.bias)}
    output, argmax = OPS.conv3x3_relu_pool(given.input, given.weight, given.bias, True)
    return {"output": output, "argmax": argmax}


def _backward(case: Case, given: Given) -> Named:
    saved = (given.output, given.argmax) if _pools(case) else (given.output,)
    gradients = getattr(OPS, f"{case.layer.op}_backward")(
        given.gradient, given.input, given.weight, *saved, _gives_input(case), True, True
    )
    return _named(case, gradients)


def _named(case: Case, gradients: tuple[Tensor, ...]) -> Named:
    found = dict(zip(("grad_input", "grad_weight", "grad_bias"), gradients, strict=True))
    if not _gives_input(case):
        del found["grad_input"]
    return found


def _linear_backward(given: Given, wanted: int) -> Tensor:
    needs = [which == wanted for which in range(3)]
    return OPS.conv3x3_backward(given.gradient, given.input, given.weight, *needs)[wanted]


def _frozen(case: Case, given: Given) -> Named:
    dgrad = getattr(OPS, f"_{case.layer.op}_dgrad")
    bits = (given.mask, given.windows, *given.full.shape[2:]) if _pools(case) else (given.mask,)
    return {"grad_input": dgrad(given.gradient, given.weight, *bits)}


def _forced(backend: str, kernels: str, call: Call) -> Call:
    def run() -> Named:
        with backends.use(backend), _cpp_kernels(kernels):
            return call()

    return run


@contextlib.contextmanager
def _cpp_kernels(names: str) -> Iterator[None]:
    """VGG_FAST_GPU for a while; a CUDA graph keeps the kernels that it was made of."""
    before = os.environ.get("VGG_FAST_GPU")
    if names:
        os.environ["VGG_FAST_GPU"] = names
    environment.gpu_kernels.cache_clear()
    try:
        yield
    finally:
        if before is not None:
            os.environ["VGG_FAST_GPU"] = before
        elif names:
            del os.environ["VGG_FAST_GPU"]
        environment.gpu_kernels.cache_clear()


@contextlib.contextmanager
def ieee() -> Iterator[None]:
    """fp32 is multiplied as fp32 for a while."""
    setting = torch.backends.cudnn.conv
    before = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before


# ----------------------------------------------------------------------------------------- others


def _eager_forward(case: Case, given: Given) -> Named:
    output = F.relu(F.conv2d(given.input, given.weight, given.bias, padding=1))
    return {"output": F.max_pool2d(output, 2) if _pools(case) else output}


def _eager_backward(case: Case, given: Given) -> Named:
    needs = [_gives_input(case), True, True]
    return _named(case, _convolution_backward(_behind_relu(case, given), given, needs))


def _behind_relu(case: Case, given: Given) -> Tensor:
    """The gradient at the convolution's output, by PyTorch's kernels of a backward pass."""
    gradient = given.gradient
    if _pools(case):
        gradient = ATEN.max_pool2d_with_indices_backward(
            gradient, given.full, [2, 2], [2, 2], [0, 0], [1, 1], False, given.places
        )
    return ATEN.threshold_backward(gradient, given.full, 0)


def _convolution_backward(gradient: Tensor, given: Given, needs: list[bool]) -> Any:
    return ATEN.convolution_backward(
        gradient, given.input, given.weight, [given.weight.shape[0]],
        [1, 1], [1, 1], [1, 1], False, [0, 0], 1, needs,
    )  # fmt: skip


def _eager_frozen(case: Case, given: Given) -> Named:
    gradient = _behind_relu(case, given)
    return {"grad_input": _convolution_backward(gradient, given, [True, False, False])[0]}


def _eager_product(case: Case, given: Given) -> Named:
    needs = [case.work == "dgrad", case.work == "wgrad", False]
    found = _convolution_backward(given.gradient, given, needs)
    return {f"grad_{'input' if needs[0] else 'weight'}": found[not needs[0]]}


_EAGER = {
    "forward": _eager_forward,
    "fprop": _eager_forward,
    "backward": _eager_backward,
    "dgrad": _eager_product,
    "wgrad": _eager_product,
    "frozen": _eager_frozen,
}


def _of_module(name: str, case: Case, given: Given) -> Call:
    """The layer by a peer that replaces modules."""
    from benchmarks.gpu.peers import fused_by

    dtype = torch.float16 if name == "apex" else case.dtype
    input, weight, bias = (t.to(dtype) for t in given[:3])
    convolution = nn.Conv2d(case.layer.c, case.layer.k, 3, padding=1, device="meta")
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(bias, requires_grad=False)
    behind = (nn.ReLU(), nn.MaxPool2d(2)) if _pools(case) else (nn.ReLU(),)
    module = fused_by(name, nn.Sequential(convolution, *behind))
    return lambda: {"output": module(input)}
