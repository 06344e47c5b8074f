"""Loads the compiled operator libraries, or says in one message why it can't.

``_C`` (schemas and CPU kernels) must be there; ``_C_cuda`` (CUDA C++ kernels) may be.
"""

from __future__ import annotations

from pathlib import Path

import torch

PACKAGE = Path(__file__).parent


def load() -> None:
    torch.ops.load_library(next(PACKAGE.glob("_C.*so")))
    for library in PACKAGE.glob("_C_cuda.*so"):
        torch.ops.load_library(library)
