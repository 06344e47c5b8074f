"""ncnn on the CPU, in fp32. It knows no batches: the images go through it one after another.

Its own format is written here directly (its converter is a download of its own): a line of text for
each layer, and the weights behind each other in a binary file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers.base import Call, Unavailable, installed_version, require_forward
from benchmarks.shapes import Precision
from benchmarks.work import Work

MAGIC = 7767517
FLOAT32 = b"\0\0\0\0"  # the tag before a layer's weight


class Ncnn:
    name = "ncnn"
    precision: Precision = "fp32"

    def version(self) -> str:
        return installed_version("ncnn")

    def prepare(self, work: Work) -> Call:
        require_forward(self, work)
        import ncnn
        import numpy as np

        text, weights = written(work.model())
        net = ncnn.Net()
        net.opt.num_threads = torch.get_num_threads()
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
        with tempfile.TemporaryDirectory() as folder:
            for name, content in (("net.param", text.encode()), ("net.bin", weights)):
                (Path(folder) / name).write_bytes(content)
            if net.load_param(f"{folder}/net.param") or net.load_model(f"{folder}/net.bin"):
                raise Unavailable("couldn't load the network")
        # Copies: a Mat of an array refers to its memory, and doesn't keep it alive.
        images = [ncnn.Mat(image.numpy()).clone() for image in work.input()]

        def run(_: Any) -> list[Any]:
            outputs = []
            for image in images:
                extractor = net.create_extractor()
                extractor.input("input", image)
                outputs.append(extractor.extract("output")[1])
            return outputs

        return Call(
            run=run,
            results=lambda outputs: [torch.from_numpy(np.stack([np.array(o) for o in outputs]))],
        )


def written(model: nn.Module) -> tuple[str, bytes]:
    """A sequential model in ncnn's format: the text of its layers, and their weights.

    Raises:
        Unavailable: it holds a layer that isn't a VGG network's.
    """
    layers: list[list[str]] = []  # type and parameters
    weights: list[bytes] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            size = module.weight.numel()
            kernel = f"1={module.kernel_size[0]} 4={module.padding[0]}"
            layers.append(["Convolution", f"0={module.out_channels} {kernel} 5=1 6={size}"])
        elif isinstance(module, nn.Linear):
            layers.append(
                ["InnerProduct", f"0={module.out_features} 1=1 2={module.weight.numel()}"]
            )
        elif isinstance(module, nn.ReLU) and layers and layers[-1][0] in _WITH_ACTIVATION:
            layers[-1][1] += " 9=1"
        elif isinstance(module, nn.MaxPool2d):
            layers.append(["Pooling", "0=0 1=2 2=2 5=1"])
        elif isinstance(module, nn.Flatten):
            layers.append(["Flatten", ""])
        elif not isinstance(module, (nn.Sequential, nn.Dropout)):
            raise Unavailable(f"isn't told here how to compute {type(module).__name__}")
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert module.bias is not None
            weights += [FLOAT32, _bytes(module.weight), _bytes(module.bias)]
    blobs = ["input", *(f"blob{i}" for i in range(1, len(layers))), "output"]
    lines = [str(MAGIC), f"{len(layers) + 1} {len(blobs)}", "Input input 0 1 input"]
    for i, (kind, parameters) in enumerate(layers):
        lines.append(f"{kind} layer{i} 1 1 {blobs[i]} {blobs[i + 1]} {parameters}")
    return "\n".join(lines) + "\n", b"".join(weights)


_WITH_ACTIVATION = ("Convolution", "InnerProduct")


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().numpy().astype("<f4").tobytes()
