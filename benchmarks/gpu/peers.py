"""The candidates for a whole network or its first block, and peers that others bring.

``compile`` is max-autotune without its own CUDA graphs, because every call is replayed from one.
Those of benchmarks/peers/ that fuse convolution, bias and ReLU on a GPU take part too: cuDNN's
fused graphs in inference, and apex, which knows fp16 only. What is right is what eager computes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.candidates import APEX, COMPILING, GRAPH, Call, Candidate, Named, Work
from benchmarks.gpu.check import GRADIENT, OUTPUT
from benchmarks.peers.base import Unavailable
from vgg_fast.models import VGG, vgg_block

COMPILE = "compile"
COMPILE_MODE = "max-autotune-no-cudagraphs"
COMPILE_SECONDS = 90.0  # that it may be silent
EAGER = "eager channels_last"

Prepare = Callable[[], Call]


def further(module: str, work: Work) -> dict[str, Candidate]:
    """The candidates of a module of the user's own: its function ``candidates(work)`` names them.

    Raises:
        ImportError, AttributeError: there is no such module, or it has no such function.
    """
    return importlib.import_module(module).candidates(work)


def work(spec: dict[str, Any], device: torch.device) -> Work:
    """The candidates of a network or a first block.

    Args:
        spec: ``kind`` ("network" or "block"), ``batch``, ``train``, ``dtype``, ``tf32``, and the
            ``options`` of :class:`vgg_fast.models.VGG`.
        device: where.
    """
    dtype = getattr(torch, spec["dtype"])
    cudnn = torch.backends.cudnn
    # All of cuDNN's: where they differ, torch.compile and torch.export raise.
    for setting in (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul):
        setting.fp32_precision = "tf32" if spec["tf32"] else "ieee"
    if spec["kind"] == "block":
        prepared = first_block(spec["batch"], device, dtype, spec["options"])
    else:
        prepared = network(spec["batch"], spec["train"], device, dtype, spec["options"])
    expected = {name: tensor.detach().clone() for name, tensor in prepared[EAGER]()().items()}
    bound = {name: OUTPUT if name == "output" else GRADIENT for name in expected}
    patience = {COMPILE: COMPILE_SECONDS, "vgg_fast": COMPILING}
    candidates = {
        name: Candidate(prepare, tuple(expected), patience.get(name))
        for name, prepare in prepared.items()
    }
    return Work(expected, bound, candidates)


def _gradients(output: Tensor, parameters: dict[str, nn.Parameter]) -> Named:
    found = torch.autograd.grad(output, list(parameters.values()), torch.ones_like(output))
    return dict(zip(parameters, found, strict=True))


def fused_by(name: str, model: nn.Module) -> nn.Module:
    """``model`` with its convolutions and ReLUs by the peer of this name in benchmarks/peers/.

    Raises:
        Unavailable: it isn't installed, or fuses nothing here.
    """
    from benchmarks.peers import PEERS

    peer: Any = PEERS[name]
    peer.version()
    return peer.fused(model)


def first_block(
    batch: int, device: torch.device, dtype: torch.dtype, options: dict[str, Any]
) -> dict[str, Prepare]:
    """The first block of a network, forward and backward to its parameters."""
    convolutions, k = options["conv_arch"][0]
    size = options["image_size"]
    images = torch.randn(batch, 1, size, size, device=device).to(dtype)

    def call(fused: bool, wrap: Callable[[nn.Module], Any]) -> Call:
        torch.manual_seed(0)
        block = vgg_block(convolutions, k, in_channels=1, fused=fused)
        block.to(device, dtype, memory_format=torch.channels_last)
        run, parameters = wrap(block), dict(block.named_parameters())
        return lambda: _gradients(run(images), parameters)

    return {
        "vgg_fast": lambda: call(True, lambda block: block),
        EAGER: lambda: call(False, lambda block: block),
        COMPILE: lambda: call(False, compiled),
    }


def network(
    batch: int,
    train: bool,
    device: torch.device,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> dict[str, Prepare]:
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
            return lambda: {"output": run(inputs.to(dtype))}
        run, parameters = wrap(net), dict(net.named_parameters())
        # The weights stay, so that each step computes the same numbers.
        optimizer = torch.optim.SGD(parameters.values(), lr=0.0, momentum=0.9, fused=True)

        def loss() -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return F.cross_entropy(run(inputs), labels)

        def step() -> Named:
            optimizer.zero_grad(set_to_none=True)
            gradients = _gradients(loss(), parameters)
            for name, parameter in parameters.items():
                parameter.grad = gradients[name]
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
        EAGER: lambda: call(False, channels_last, lambda net: net),
        GRAPH: lambda: call(False, channels_last, lambda net: fused_by("cudnn", net)),
        APEX: apex,
        COMPILE: lambda: call(False, channels_last, compiled),
    }
    if train:
        del peers[GRAPH]  # fuses inference only
    return peers


def compiled(module: nn.Module) -> Any:
    """``module`` by Inductor, tuned as far as it goes."""
    return torch.compile(module, mode=COMPILE_MODE, fullgraph=True)
