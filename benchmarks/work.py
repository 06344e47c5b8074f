"""What is measured: the layers of the seed network, whole networks, training steps.

A :class:`Work` is a plain PyTorch model, an input, and what is done with them. Every peer gets the
same one, and brings the model into the form that it runs fastest.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

import vgg_fast
from tests.cases import SEED_LAYERS, SeedLayer
from vgg_fast.layers import Conv3x3
from vgg_fast.models import PRESETS, VGG, VGGOptions

Kind = Literal["forward", "backward", "input gradient", "training step"]

# Images of one turn: a batch large enough that reading the weights doesn't decide, and small enough
# that twenty rows take minutes.
LAYER_BATCH = 4
# Every preset at a size that only shows whether the programs work.
QUICK_NETWORK: VGGOptions = {**PRESETS["fast"], "width": 0.125, "classifier_width": 32}
QUICK_BATCH = 2


@dataclasses.dataclass(frozen=True)
class Work:
    """One row of the results.

    Kinds:
        forward: inference, without autograd.
        backward: all gradients that training wants; the forward pass before it isn't timed.
        input gradient: forward and backward to the input, the weights being frozen.
        training step: forward, cross entropy, backward, SGD with momentum. The learning rate and
            the dropout are 0, so that every step computes the same numbers.
    """

    name: str
    title: str
    kind: Kind
    make_model: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    fuse: Callable[[nn.Module], nn.Module] = vgg_fast.fuse
    wants_input_gradient: bool = False
    seconds: float = 6.0
    """Its share of a run's time, before that is scaled to what there is."""
    in_report: bool = True
    """Whether a run without --only measures it."""

    def model(self) -> nn.Module:
        """A plain model of one's own, with the same weights at every call."""
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
        layer_batch: N of the single layers.
    """
    batch = QUICK_BATCH if quick else layer_batch
    found = itertools.chain(_networks(quick), _layers(quick, batch), _others(quick, batch))
    return {work.name: work for work in found}


def _networks(quick: bool) -> Iterator[Work]:
    seed, fast = (QUICK_NETWORK,) * 2 if quick else (PRESETS["seed"], PRESETS["fast"])
    single, many, training, four = (1, 2, 2, 1) if quick else (1, 16, 128, 4)
    for batch, seconds in ((single, 15), (many, 60)):
        yield _network(f"network-forward-b{batch}", "Seed network", "forward", seed, batch, seconds)
    kind: Kind = "training step"
    yield _network(f"network-training-b{many}", "Seed network", kind, seed, many, 110)
    yield _network(f"fast-training-b{training}", 'Preset "fast"', kind, fast, training, 15)
    size = 32 if quick else 224
    yield Work(
        name=f"vgg16-features-b{four}",
        title=f"VGG-16 features at {size}², batch {four}: forward and backward to the input, "
        "frozen weights",
        kind="input gradient",
        make_model=_vgg16_features,
        shape=(four, 3, size, size),
        seconds=60,
    )


def _network(
    name: str, net: str, kind: Kind, options: VGGOptions, batch: int, seconds: float
) -> Work:
    size = options["image_size"]
    return Work(
        name=name,
        title=f"{net} at {size}², batch {batch}: {kind}",
        kind=kind,
        make_model=lambda: VGG(**options, dropout=0.0, fused=False),
        shape=(batch, 1, size, size),
        seconds=seconds,
    )


def _vgg16_features() -> nn.Module:
    return torchvision.models.vgg16().features.requires_grad_(False).eval()


def _layers(quick: bool, batch: int) -> Iterator[Work]:
    for layer in _quick_layers() if quick else SEED_LAYERS:
        pool = layer.op == "conv3x3_relu_pool"
        modules = (nn.ReLU(), nn.MaxPool2d(2)) if pool else (nn.ReLU(),)
        yield from _operator(layer.op, layer, batch, modules)


def _quick_layers() -> Iterator[SeedLayer]:
    for op in ("conv3x3_relu_pool", "conv3x3_relu"):
        layer = next(layer for layer in SEED_LAYERS if layer.op == op)
        yield layer._replace(k=layer.k // 8, size=layer.size // 8)


def _others(quick: bool, batch: int) -> Iterator[Work]:
    """The operators that a VGG network doesn't use by themselves, on its shapes."""
    layers = list(_quick_layers()) if quick else list(SEED_LAYERS)
    for c, k, size in dict.fromkeys((layer.c, layer.k, layer.size) for layer in layers):
        yield from _operator(
            "conv3x3",
            SeedLayer("conv3x3", c, k, size),
            batch,
            fuse=lambda model: nn.Sequential(Conv3x3.from_conv(model[0])),
        )
    for layer in layers:
        if layer.op == "conv3x3_relu_pool":
            yield from _operator("max_pool2x2", layer, batch)


def _operator(
    op: str,
    layer: SeedLayer,
    batch: int,
    behind: tuple[nn.Module, ...] = (),
    fuse: Callable[[nn.Module], nn.Module] = vgg_fast.fuse,
) -> Iterator[Work]:
    """One layer forward and backward."""

    def make_model() -> nn.Module:
        if op == "max_pool2x2":
            return nn.Sequential(nn.MaxPool2d(2))
        return nn.Sequential(nn.Conv2d(layer.c, layer.k, 3, padding=1), *behind)

    pooling = op == "max_pool2x2"
    channels = layer.k if pooling else layer.c
    shape = f"{channels}" if pooling else f"{channels}→{layer.k}"
    name = f"{op}-{channels}-{layer.size}" if pooling else f"{op}-{layer}"
    kinds: tuple[Kind, ...] = ("forward", "backward")
    for kind in kinds:
        yield Work(
            name=f"{name}-{kind}",
            title=f"{op} {shape} at {layer.size}², batch {batch}: {kind}",
            kind=kind,
            make_model=make_model,
            shape=(batch, channels, layer.size, layer.size),
            fuse=fuse,
            # Images want no gradient.
            wants_input_gradient=kind == "backward" and channels > 1,
            in_report=op in ("conv3x3_relu", "conv3x3_relu_pool"),
        )
