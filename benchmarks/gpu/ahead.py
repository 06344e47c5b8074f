"""Triton's kernels of a run, compiled into its cache on disk before anything is measured.

    python -m benchmarks.gpu.ahead PART OF LAYERS BATCH...     # one process of a step's many

Most of the time that a kernel takes when it comes for the first time is compiling, on one core. All
cores do it here, with tensors that have no memory, so that a probe of a minute measures a minute.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time

import torch

from benchmarks.gpu.context import in_one_line
from benchmarks.gpu.pool import ROOT
from benchmarks.gpu.run import Run
from seed_layers import SEED_LAYERS, SeedLayer
from vgg_fast.dispatch import policy
from vgg_fast.triton import conv3x3, conv3x3_relu, conv3x3_relu_pool, launch

PROCESSES = 16  # at most: each holds a CUDA context
DTYPE = torch.bfloat16


def compile_ahead(run: Run, batches: tuple[int, ...]) -> None:
    """The kernels of the run's layers, forward and backward, by as many processes as cores."""
    if run.options.device == "cpu":
        run.found["compiled ahead"] = "nothing: Triton compiles for GPUs"
        return
    count = min(PROCESSES, os.cpu_count() or 1)
    sizes = [str(number) for number in (len(run.layers), *batches)]
    command = [sys.executable, "-m", "benchmarks.gpu.ahead"]
    started = [
        subprocess.Popen([*command, str(part), str(count), *sizes], cwd=ROOT)
        for part in range(count)
    ]
    outcomes = []
    for process in started:
        try:
            outcomes.append(process.wait(max(0.1, run.seconds_left())))
        except subprocess.TimeoutExpired:
            process.kill()  # what it compiled stays
            outcomes.append(None)
    whole = outcomes.count(0)
    run.found["compiled ahead"] = f"{whole} of {count} processes came to their end"
    run.write()


def compile_case(layer: SeedLayer, batch: int) -> None:
    """Triton's kernels for a layer in training; none is launched.

    Args:
        layer: the layer.
        batch: images.
    """
    device = torch.device("meta")

    def made(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=device)
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    pool = layer.op == "conv3x3_relu_pool"
    size = layer.size // 2 if pool else layer.size
    input, weight = made(batch, layer.c, layer.size, layer.size), made(layer.k, layer.c, 3, 3)
    bias, output = made(layer.k), made(batch, layer.k, size, size)
    full = made(batch, layer.k, layer.size, layer.size)
    argmax = made(batch, layer.k, size, size, dtype=torch.uint8)
    needs = (layer.c > 3, True, True)  # the images want no gradient
    with launch.compiling_only():
        if pool:
            for return_argmax in (False, True):
                conv3x3_relu_pool.conv3x3_relu_pool(input, weight, bias, return_argmax)
            saved = (output, argmax)
            conv3x3_relu_pool.conv3x3_relu_pool_backward(output, input, weight, *saved, *needs)
        else:
            conv3x3_relu.conv3x3_relu(input, weight, bias)
            conv3x3_relu.conv3x3_relu_backward(output, input, weight, output, *needs)
        for one in ((True, False, False), (False, True, False)):
            conv3x3.conv3x3_backward(full, input, weight, *one)


def main(arguments: list[str]) -> None:
    """Compile this process's part of the cases."""
    part, of, layers, *batches = map(int, arguments)
    # Tensors without memory are on no GPU: say which one they stand for.
    launch.interpreted_family = policy.family_of(torch.cuda.get_device_capability())
    seed = list(dict.fromkeys(SEED_LAYERS))[:layers]
    cases = list(itertools.product(batches, seed))
    started = time.monotonic()
    for batch, layer in cases[part::of]:
        try:
            compile_case(layer, batch)
        except Exception as error:  # the probe finds it too, and says where
            print(f"compiling {layer}, batch {batch}: {in_one_line(error)}", flush=True)
    print(f"compiled {len(cases[part::of])} layers, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
