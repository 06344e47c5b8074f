"""The CUDA operators whole, over emulated kernels, for CPU tensors in a namespace of their own."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from tests.support.cases import CONVOLUTIONS, OPERATORS
from tests.support.emulated import emulation
from tests.support.frozen import DGRADS, MASKED


def load(factory: pytest.TempPathFactory) -> tuple[ctypes.CDLL, torch.library.Library]:
    """The library, and the schemas of vgg_fast in the namespace that its kernels are for."""
    includes = [flag for folder in include_paths() for flag in ("-isystem", folder)]
    links = [f"-L{folder}" for folder in library_paths()] + ["-lc10", "-ltorch", "-ltorch_cpu"]
    path = emulation(
        factory, "cuda_operators_emulation.cpp", "-fvisibility=hidden", "-DUSE_CUDA",
        "-DVGG_FAST_HOPPER", "-DTORCH_TARGET_VERSION=0x020b000000000000", *includes, *links,
    )  # fmt: skip
    names = [*OPERATORS, *(f"_cuda_{name}" for name in CONVOLUTIONS)]
    names += [f"{name}_backward" for name in names]
    names += [f"_cuda_{name}_masked" for name in MASKED] + [f"_cuda_{op}_dgrad" for op in DGRADS]
    schemas = torch.library.Library("vgg_fast_emulated", "DEF")
    for name in names:
        schema = str(getattr(torch.ops.vgg_fast, name).default._schema)
        schemas.define(schema.removeprefix("vgg_fast::"))
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path)), schemas


class Emulated:
    """The emulated operators by their names without what Python decides, with these kernels."""

    def __init__(self, sm90: bool, allow_tf32: bool = False):
        self.given = (allow_tf32, sm90)

    def __getattr__(self, name: str) -> Callable:
        ops = torch.ops.vgg_fast_emulated
        if name.startswith("max_pool2x2"):
            return getattr(ops, name)
        return functools.partial(getattr(ops, f"_cuda_{name.removeprefix('_')}"), *self.given)
