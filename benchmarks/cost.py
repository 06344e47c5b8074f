"""What a work costs by its definition: operations, bytes that must move, memory that it needs.

Counted on the plain model, on tensors without values. A convolution, its ReLU and its pooling count
as one layer that reads its input once and writes its (pooled) output once.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.shapes import PRECISIONS, Precision
from benchmarks.work import Work

# Operations of a transform, as multiply-adds for each of the 36 values of a tile and channel; the
# numbers by which csrc/cpu/plan/cost.cpp chooses.
INPUT_TRANSFORM, OUTPUT_TRANSFORM = 10, 14


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run of a work, or of one layer's forward pass."""

    direct: float
    """Operations of the definition: a multiplication and an addition are two."""
    winograd: float
    """The same with F(4×4, 3×3), its transforms included, for each layer that it makes cheaper."""
    bytes: float
    """Each tensor once, and what its gradient takes."""

    def scaled(self, operations: float, moved: float) -> Cost:
        return Cost(self.direct * operations, self.winograd * operations, self.bytes * moved)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.direct + other.direct, self.winograd + other.winograd, self.bytes + other.bytes
        )


@dataclasses.dataclass
class Layer:
    """A convolution or a linear layer with what is fused behind it, or a pooling alone."""

    images: int
    inputs: int
    outputs: int
    height: int
    width: int
    taps: int
    """9 of a 3×3 convolution, 1 of a linear layer, 0 of a pooling."""
    read: int
    """Values of the input."""
    written: int
    """Values of the output, after the pooling."""
    full: int
    """Values of the output before the pooling: what autograd keeps of a plain layer."""

    @property
    def weights(self) -> int:
        return self.taps * self.inputs * self.outputs

    def cost(self, map_bytes: int, weight_bytes: int) -> Cost:
        """Of the forward pass."""
        pixels = self.images * self.height * self.width
        direct = 2.0 * self.taps * self.inputs * self.outputs * pixels
        winograd = direct / predicted_gain(self) if self.taps == 9 else direct
        moved = map_bytes * (self.read + self.written) + weight_bytes * self.weights
        return Cost(direct, min(direct, winograd), moved)


def predicted_gain(layer: Layer) -> float:
    """Operations of the definition over those of F(4×4, 3×3) with its transforms.

    A tile of 6×6 values gives 4×4 outputs: 36 multiplications instead of 144.
    """
    tiles = -(-layer.height // 4) * -(-layer.width // 4)
    pairs = layer.inputs * layer.outputs
    transforms = INPUT_TRANSFORM * layer.inputs + OUTPUT_TRANSFORM * layer.outputs
    return 9 * layer.height * layer.width * pairs / (36 * tiles * (pairs + transforms))


def layers(work: Work) -> list[Layer]:
    """In the order in which they run."""
    found: list[Layer] = []

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given = inputs[0]
        if isinstance(module, nn.Conv2d):
            size, taps = tuple(output.shape[2:]), 9
        elif isinstance(module, nn.Linear):
            size, taps = (1, 1), 1
        elif isinstance(module, nn.MaxPool2d):
            if found and found[-1].full == given.numel():
                found[-1].written = output.numel()
                return
            size, taps = tuple(given.shape[2:]), 0
        else:
            return
        counts = (given.numel(), output.numel(), output.numel())
        channels = (given.shape[1], output.shape[1])
        found.append(Layer(given.shape[0], *channels, *size, taps, *counts))

    with torch.device("meta"), torch.no_grad():
        model = copy.deepcopy(work.make_model())  # works may share a module, and would share hooks
        for module in model.modules():
            module.register_forward_hook(see)
        model(torch.empty(work.shape))
    return found


def of(work: Work, precision: Precision | None = None) -> Cost:
    """Of one run, with maps and weights in ``precision``, the work's if it is None.

    A gradient costs as many operations as the layer's forward pass, and moves as many bytes: the
    weight's, and the input's where it is wanted. SGD with momentum reads the gradient, the momentum
    and the weight, and writes the last two.
    """
    half = (precision or work.precision) == "bf16"
    map_bytes = 2 if half else 4
    weight_bytes = 2 if half and work.kind != "training step" else 4
    total = Cost(0.0, 0.0, 0.0)
    for i, layer in enumerate(layers(work)):
        once = layer.cost(map_bytes, weight_bytes)
        passes = 0 if work.kind == "backward" else 1
        if work.kind in ("backward", "training step"):
            passes += layer.taps > 0
        first_wants_it = work.wants_input_gradient or work.kind == "input gradient"
        if work.kind != "forward" and (i > 0 or first_wants_it):
            passes += 1
        total += once.scaled(passes, passes)
        if work.kind == "training step":
            total += Cost(0.0, 0.0, 5.0 * weight_bytes * layer.weights)
    return total


def counted(work: Work) -> dict[str, dict[str, float]]:
    """For a record: {"operations": {"direct", "winograd"}, "bytes": {"fp32", "bf16"}}."""
    found = of(work)
    return {
        "operations": {"direct": found.direct, "winograd": found.winograd},
        "bytes": {precision: of(work, precision).bytes for precision in PRECISIONS},
    }


def memory(work: Work) -> int:
    """Bytes that the hungriest peer needs at least, with the reference in addition."""
    found = layers(work)
    weights = sum(layer.weights for layer in found)
    if work.kind == "forward":
        maps = 3 * max(layer.full for layer in found)
    else:
        maps = 2 * sum(layer.full + layer.written for layer in found)
    # A model of each peer's own, its gradients and momentum, and twice that in fp64.
    copies = 24 if work.kind == "training step" else 12
    return 4 * (copies * weights + maps)


def available_memory() -> int | None:
    """Bytes; None where /proc doesn't tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def lacking(work: Work) -> Iterator[str]:
    """Why the machine doesn't allow a work, if it doesn't."""
    needed, there = memory(work), available_memory()
    if there is not None and needed > there:
        yield f"needs about {needed / 2**30:.0f} GiB of memory, and {there / 2**30:.0f} are free"
