"""What is compared on a GPU: one layer or a whole network, by vgg_fast and by others.

Each function gives, for each peer, what prepares its call. All but the convolution alone compute
the ReLU and the pooling. ``compile`` is max-autotune without its own CUDA graphs, because every
call is replayed from one. Those of benchmarks/peers/ that fuse convolution, bias and ReLU on a GPU
take part too: cuDNN's fused graphs in inference, and apex, which knows fp16 only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.clock import Call
from benchmarks.peers.base import Unavailable
from seed_layers import SeedLayer
from vgg_fast import backends, functional
from vgg_fast.dispatch import environment
from vgg_fast.models import VGG, vgg_block

COMPILE = "compile"
COMPILE_MODE = "max-autotune-no-cudagraphs"
ALONE = "cudnn convolution alone"  # no bias, ReLU or pooling: less work than the others'
# The kernels that VGG_FAST_GPU names: those that "auto" would take, and Hopper's own.
CPP = {"cpp": "sm_80", "cpp sm_90a": "sm_90a"}
GRAPH, APEX = "cudnn fused graph", "apex"
Arguments = tuple[Tensor, Tensor, Tensor]
Peers = dict[str, Callable[[], Call]]
"""By name what prepares its call, or raises :class:`benchmarks.peers.base.Unavailable`."""


def training_step(forward: Call, parameters: list[Tensor]) -> list[Tensor]:
    output = forward()
    return list(torch.autograd.grad(output, parameters, torch.ones_like(output)))


def layer(
    layer: SeedLayer,
    batch: int,
    train: bool,
    device: torch.device,
    dtype: torch.dtype,
    frozen: bool = False,
) -> Peers:
    """One layer, forward or forward and backward, with each backend too, and all C++ kernels.

    If it is ``frozen``, the input alone wants a gradient, as in a perceptual loss.
    """
    arguments = _arguments(layer, batch, train, device, dtype, frozen)
    wanted = [argument for argument in arguments if argument.requires_grad]
    fused = getattr(functional, layer.op)

    def call(function: Callable[..., Tensor]) -> Call:
        if train:
            return lambda: training_step(lambda: function(*arguments), wanted)
        return lambda: function(*arguments)

    def forced(backend: str, kernels: str = "") -> Call:
        def function(*given: Tensor) -> Tensor:
            return fused(*given)

        inner = call(function)

        def run() -> Any:
            with backends.use(backend), _cpp_kernels(kernels):
                return inner()

        return run

    peers: Peers = {"vgg_fast": lambda: call(fused)}
    if device.type == "cuda":
        for backend in ("triton", "reference"):
            peers[backend] = lambda backend=backend: forced(backend)
        for peer, kernels in CPP.items():
            peers[peer] = lambda kernels=kernels: forced("cpp", kernels)
    peers["eager channels_last"] = lambda: call(_eager(layer))
    if not train:
        input, weight, _ = arguments
        peers[ALONE] = lambda: lambda: F.conv2d(input, weight, padding=1)
        peers[GRAPH] = lambda: _of_module("cudnn", layer, arguments, train)
    peers[APEX] = lambda: _of_module(
        "apex", layer, _arguments(layer, batch, train, device, torch.float16, frozen), train
    )
    return peers


def _of_module(name: str, layer: SeedLayer, arguments: Arguments, train: bool) -> Call:
    """``layer`` by a peer that replaces modules."""
    input, weight, bias = arguments
    convolution = nn.Conv2d(layer.c, layer.k, 3, padding=1, device="meta")
    convolution.weight, convolution.bias = (
        nn.Parameter(t.detach(), t.requires_grad) for t in (weight, bias)
    )
    behind = (nn.ReLU(), nn.MaxPool2d(2)) if layer.op == "conv3x3_relu_pool" else (nn.ReLU(),)
    module = fused_by(name, nn.Sequential(convolution, *behind))
    if not train:
        return lambda: module(input)
    wanted = [tensor for tensor in (input, *module.parameters()) if tensor.requires_grad]
    return lambda: training_step(lambda: module(input), wanted)


def fused_by(name: str, model: nn.Module) -> nn.Module:
    """``model`` with its convolutions and ReLUs by the peer of this name in benchmarks/peers/.

    Raises:
        Unavailable: it isn't installed, or fuses nothing here.
    """
    from benchmarks.peers import PEERS

    peer: Any = PEERS[name]
    peer.version()
    return peer.fused(model)


def first_block(batch: int, device: torch.device, dtype: torch.dtype, size: int, k: int) -> Peers:
    """The first block of the seed network, forward and backward to its parameters."""
    layer_of_it = SeedLayer("conv3x3_relu_pool", 1, k, size)
    images = torch.randn(batch, 1, size, size, device=device).to(dtype)

    def call(fused: bool, wrap: Callable[[nn.Module], Any]) -> Call:
        torch.manual_seed(0)
        block = vgg_block(1, layer_of_it.k, in_channels=1, fused=fused)
        block.to(device, dtype, memory_format=torch.channels_last)
        run, parameters = wrap(block), list(block.parameters())
        return lambda: training_step(lambda: run(images), parameters)

    return {
        "vgg_fast": lambda: call(True, lambda block: block),
        "eager channels_last": lambda: call(False, lambda block: block),
        COMPILE: lambda: call(False, compiled),
    }


def network(
    batch: int,
    train: bool,
    device: torch.device,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> Peers:
    """A network of these options: inference, or a training step under autocast with SGD."""
    generator = torch.Generator().manual_seed(0)
    size, channels = options["image_size"], options.get("in_channels", 1)
    images = torch.randn(batch, channels, size, size, generator=generator).to(device)
    labels = torch.arange(batch, device=device) % 10
    torch.manual_seed(0)
    weights = VGG(**options, dropout=0.0, device=device).state_dict()

    def call(
        fused: bool,
        layout: torch.memory_format,
        wrap: Callable[[nn.Module], Any],
        dtype: torch.dtype = dtype,
    ) -> Call:
        net = VGG(**options, dropout=0.0, fused=fused, device=device)
        net.load_state_dict(weights)
        net.to(memory_format=layout)
        inputs = images.to(memory_format=layout)
        if not train:
            run = wrap(net.eval().to(dtype))
            return lambda: run(inputs.to(dtype))
        run, parameters = wrap(net), list(net.parameters())
        # The weights stay, so that each step computes the same numbers.
        optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, fused=True)

        def loss() -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return F.cross_entropy(run(inputs), labels)

        def step() -> list[Tensor]:
            optimizer.zero_grad(set_to_none=True)
            gradients = training_step(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            return gradients

        return step

    def apex() -> Call:
        if dtype == torch.float32:
            raise Unavailable("computes in 16 bits only")
        return call(False, channels_last, lambda net: fused_by("apex", net), torch.float16)

    nchw, channels_last = torch.contiguous_format, torch.channels_last
    peers = {
        "vgg_fast": lambda: call(True, channels_last, lambda net: net),
        "eager": lambda: call(False, nchw, lambda net: net),
        "eager channels_last": lambda: call(False, channels_last, lambda net: net),
        GRAPH: lambda: call(False, channels_last, lambda net: fused_by("cudnn", net)),
        APEX: apex,
        COMPILE: lambda: call(False, channels_last, compiled),
    }
    if train:
        del peers[GRAPH]  # fuses inference only
    return peers


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, mode=COMPILE_MODE, fullgraph=True)


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


def _arguments(
    layer: SeedLayer,
    batch: int,
    train: bool,
    device: torch.device,
    dtype: torch.dtype,
    frozen: bool = False,
) -> Arguments:
    generator = torch.Generator(device).manual_seed(0)  # a CPU would take seconds

    def tensor(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator, device=device).to(dtype)
        dense = made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made
        return dense.requires_grad_(train)

    input = tensor(batch, layer.c, layer.size, layer.size)
    if layer.c in (1, 3) and not frozen:
        input.requires_grad_(False)  # the images want no gradient
    weight, bias = tensor(layer.k, layer.c, 3, 3), tensor(layer.k)
    for learned in (weight, bias):
        learned.requires_grad_(train and not frozen)
    return input, weight, bias


def _eager(layer: SeedLayer) -> Callable[..., Tensor]:
    def eager(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        output = F.relu(F.conv2d(input, weight, bias, padding=1))
        return F.max_pool2d(output, 2) if layer.op == "conv3x3_relu_pool" else output

    return eager
