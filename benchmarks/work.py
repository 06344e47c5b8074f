"""What is measured, as rows: single layers, blocks, whole networks, training steps.

A :class:`Work` is a plain PyTorch model, an input, and what is done with them. Every peer gets the
same one, and brings the model into the form that it runs fastest. The shapes come from
:mod:`benchmarks.shapes`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import field
from typing import Literal

import torch
from torch import Tensor, nn

import vgg_fast
from benchmarks.shapes import (
    LAYER_BATCH,
    NETWORKS,
    PRECISIONS,
    QUICK_BATCH,
    QUICK_NETWORKS,
    QUICK_OPTIONS,
    QUICK_REPORTED,
    REPORTED,
    Kind,
    Network,
    Precision,
)
from seed_layers import SEED_LAYERS, SeedLayer
from vgg_fast.train.presets import PRESETS

Level = Literal["operator", "block", "network"]
SHORT: dict[Kind, str] = {
    "forward": "forward",
    "backward": "backward",
    "input gradient": "gradient",
    "training step": "training",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One row of the results. Two are equal if they have the same results in exact arithmetic.

    Kinds:
        forward: inference, without autograd.
        backward: all gradients that training wants; the forward pass before it isn't timed.
        input gradient: forward and backward to the input, the weights being frozen.
        training step: forward, cross entropy, backward, SGD with momentum. The learning rate and
            the dropout are 0, so that every step computes the same numbers.

    Precisions:
        fp32: of tensors and arithmetic.
        bf16: the model and its input in bfloat16, or a training step under autocast.
    """

    kind: Kind
    make_model: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    name: str = field(compare=False)
    title: str = field(compare=False)
    level: Level = field(compare=False)
    precision: Precision = field(default="fp32", compare=False)
    device: str = field(default="cpu", compare=False)
    wants_input_gradient: bool = False
    seconds: float = field(default=6.0, compare=False)
    """Its share of a run's time, before that is scaled to what there is."""
    in_report: bool = field(default=True, compare=False)
    """Whether a run without --only measures it."""

    def model(self) -> nn.Module:
        """A plain fp32 model of one's own, with the same weights at every call."""
        return copy.deepcopy(_made(self))

    def input(self) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1))

    def labels(self) -> Tensor:
        return torch.arange(self.shape[0]) % 10

    def gradient(self, output: Tensor) -> Tensor:
        """What a backward pass starts from, in the memory layout of ``output``."""
        generator = torch.Generator().manual_seed(2)
        values = torch.randn(output.shape, generator=generator).to(output.dtype)
        return torch.empty_like(output).copy_(values)

    @property
    def autocast(self) -> bool:
        return self.precision == "bf16" and self.kind == "training step"

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's parameters and its input."""
        half = self.precision == "bf16" and not self.autocast
        return torch.bfloat16 if half else torch.float32


@functools.lru_cache(maxsize=1)
def _made(work: Work) -> nn.Module:
    """Drawing 129 million normal numbers takes seconds; copying them doesn't."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return work.make_model().train(work.kind == "training step")


def works(quick: bool = False, layer_batch: int = LAYER_BATCH) -> dict[str, Work]:
    """All works by name, in the order in which a run measures them.

    Args:
        quick: tiny networks, and the first layer of each operator at an eighth of its size.
        layer_batch: N of the single layers and blocks.
    """
    batch = QUICK_BATCH if quick else layer_batch
    found = itertools.chain(
        _networks(quick), _layers(quick, batch), _blocks(quick, batch), _others(quick, batch)
    )
    return {work.name: work for work in found}


def _networks(quick: bool) -> Iterator[Work]:
    """Those of a report, in its order; then the rest of the table."""
    networks, reported = (QUICK_NETWORKS, QUICK_REPORTED) if quick else (NETWORKS, REPORTED)
    known = {
        (name, kind, batch, precision): work
        for name, network in networks.items()
        for kind in network.kinds
        for batch in network.batches
        for precision, work in _of_a_network(name, network, kind, batch)
    }
    for *key, seconds in reported:
        work = known.pop((key[0], key[1], key[2], key[3]))
        yield dataclasses.replace(work, seconds=seconds, in_report=True)
    yield from known.values()


def _of_a_network(
    name: str, network: Network, kind: Kind, batch: int
) -> Iterator[tuple[Precision, Work]]:
    for precision in PRECISIONS:
        half = precision == "bf16"
        suffix = (", bf16 autocast" if kind == "training step" else ", bf16") if half else ""
        what = "forward and backward to the input" if kind == "input gradient" else kind
        yield (
            precision,
            Work(
                kind=kind,
                make_model=network.make,
                shape=(batch, network.channels, network.size, network.size),
                name=f"{name}-{SHORT[kind]}-b{batch}" + "-bf16" * half,
                title=f"{network.title} at {network.size}², batch {batch}: {what}{suffix}",
                level="network",
                precision=precision,
                seconds=60,
                in_report=False,
            ),
        )


def _layers(quick: bool, batch: int) -> Iterator[Work]:
    for layer in _quick_layers() if quick else SEED_LAYERS:
        pool = layer.op == "conv3x3_relu_pool"
        modules = (nn.ReLU(), nn.MaxPool2d(2)) if pool else (nn.ReLU(),)
        yield from _operator(layer.op, layer, batch, modules, in_report=True)


def _quick_layers() -> Iterator[SeedLayer]:
    for op in ("conv3x3_relu_pool", "conv3x3_relu"):
        layer = next(layer for layer in SEED_LAYERS if layer.op == op)
        yield layer._replace(k=layer.k // 8, size=layer.size // 8)


def _blocks(quick: bool, batch: int) -> Iterator[Work]:
    """The blocks of the seed network with two convolutions; one convolution is a layer."""
    options = QUICK_OPTIONS if quick else PRESETS["seed"]
    channels, size = 1, options["image_size"]
    for num_convs, width in options["conv_arch"]:
        outputs = round(width * options["width"])
        if num_convs > 1:
            yield from _forward_and_backward(
                f"block-{num_convs}-{channels}-{outputs}-{size}",
                f"Block of {num_convs} convolutions {channels}→{outputs} at {size}²",
                "block",
                functools.partial(vgg_fast.vgg_block, num_convs, outputs, channels, False),
                (batch, channels, size, size),
            )
        channels, size = outputs, size // 2


def _others(quick: bool, batch: int) -> Iterator[Work]:
    """The operators that a VGG network doesn't use by themselves, on its shapes."""
    layers = list(_quick_layers()) if quick else list(SEED_LAYERS)
    for c, k, size in dict.fromkeys((layer.c, layer.k, layer.size) for layer in layers):
        yield from _operator("conv3x3", SeedLayer("conv3x3", c, k, size), batch)
    for layer in layers:
        if layer.op == "conv3x3_relu_pool":
            yield from _operator("max_pool2x2", layer, batch)


def _operator(
    op: str,
    layer: SeedLayer,
    batch: int,
    behind: tuple[nn.Module, ...] = (),
    in_report: bool = False,
) -> Iterator[Work]:
    """One layer forward and backward."""

    def make_model() -> nn.Module:
        if op == "max_pool2x2":
            return nn.Sequential(nn.MaxPool2d(2))
        return nn.Sequential(nn.Conv2d(layer.c, layer.k, 3, padding=1), *behind)

    pooling = op == "max_pool2x2"
    channels = layer.k if pooling else layer.c
    shape = f"{channels}" if pooling else f"{channels}→{layer.k}"
    yield from _forward_and_backward(
        f"{op}-{channels}-{layer.size}" if pooling else f"{op}-{layer}",
        f"{op} {shape} at {layer.size}²",
        "operator",
        make_model,
        (batch, channels, layer.size, layer.size),
        in_report,
    )


def _forward_and_backward(
    name: str,
    title: str,
    level: Level,
    make_model: Callable[[], nn.Module],
    shape: tuple[int, int, int, int],
    in_report: bool = False,
) -> Iterator[Work]:
    kinds: tuple[Kind, ...] = ("forward", "backward")
    for kind in kinds:
        yield Work(
            kind=kind,
            make_model=make_model,
            shape=shape,
            name=f"{name}-{kind}",
            title=f"{title}, batch {shape[0]}: {kind}",
            level=level,
            # Images want no gradient.
            wants_input_gradient=kind == "backward" and shape[1] > 1,
            in_report=in_report,
        )
