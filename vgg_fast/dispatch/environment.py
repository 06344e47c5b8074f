"""Every environment variable that vgg_fast reads: what it means, and its value.

The Python package reads its own variables here and nowhere else, each at the moment when its value
is needed, so that a program may still set one after ``import vgg_fast``. The C++ libraries read
theirs themselves, and so do the build, CUDA and Triton; they are listed all the same, because
``python -m vgg_fast.info`` prints this list.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from vgg_fast.dispatch import state

# In the order of the table in docs/guide/environment.md, which is compared with this one.
VARIABLES = {
    "VGG_FAST_BACKEND": "the backend: auto, cpp, triton or reference (PyTorch; cuDNN on a GPU)",
    "VGG_FAST_CPU": "the CPU instruction set: amx, avx512, avx2, neon or generic",
    "VGG_FAST_ALGORITHM": (
        "the CPU algorithm: auto, direct, winograd2, winograd4, amx or winograd4_amx"
    ),
    "VGG_FAST_WORKSPACE": "MiB that a call on the CPU may take in addition to its tensors",
    "VGG_FAST_WEIGHT_CACHE": "MiB of transformed weights that the CPU kernels keep; 0: none",
    "VGG_FAST_GPU": "the CUDA C++ kernels: sm_80, or sm_90a for Hopper's own, in bf16 and fp16",
    "VGG_FAST_AUTOTUNE": "seconds that a process may spend on tuning Triton kernels, 20; 0: none",
    "VGG_FAST_CHOICES": "a file of rows that stand before those of choices.json",
    "XDG_CACHE_HOME": "the folder of vgg_fast's cache (tuned tiles, Fashion-MNIST); ~/.cache",
    "VGG_FAST_CUDA": "build: 0 or 1, never or always build the CUDA C++ kernels",
    "TORCH_CUDA_ARCH_LIST": "build: the GPUs to compile for",
    "CUDA_HOME": "build: the CUDA toolkit",
    "CUDA_VISIBLE_DEVICES": "the GPUs that this process sees",
    "OMP_NUM_THREADS": "CPU threads",
    "OMP_WAIT_POLICY": "passive: CPU threads sleep while they wait, for machines with other work",
    "TRITON_INTERPRET": "1 runs the Triton kernels on CPU tensors, slowly",
}

AUTOTUNE_SECONDS = 20.0


def values() -> dict[str, str | None]:
    """The value of each of :data:`VARIABLES`; None where it isn't set."""
    return {name: os.environ.get(name) for name in VARIABLES}


def waiting() -> str | None:
    """What OpenMP was told about how threads wait for each other; None if nothing."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        if _text(name):
            return f"{name}={_text(name)}"
    return None


def backend() -> str:
    """The backend that ``VGG_FAST_BACKEND`` names; ``"auto"`` if it isn't set.

    Raises:
        ValueError: it names no backend.
    """
    name = _text("VGG_FAST_BACKEND") or "auto"
    if name not in state.NAMES:
        raise ValueError(
            f"VGG_FAST_BACKEND={name!r} names no backend: choose one of {', '.join(state.NAMES)}"
        )
    return name


def choices_file() -> str:
    """The file that ``VGG_FAST_CHOICES`` names; empty if it isn't set."""
    return _text("VGG_FAST_CHOICES")


def autotune_seconds() -> float:
    """Seconds that ``VGG_FAST_AUTOTUNE`` grants a process for tuning.

    Raises:
        ValueError: it isn't a number.
    """
    text = _text("VGG_FAST_AUTOTUNE")
    try:
        return float(text) if text else AUTOTUNE_SECONDS
    except ValueError:
        raise ValueError(
            f"VGG_FAST_AUTOTUNE={text!r} isn't a number: give the seconds that a process may spend "
            "on tuning, 0 for none"
        ) from None


@functools.cache
def gpu_kernels() -> str:
    """The CUDA C++ kernels that ``VGG_FAST_GPU`` names; empty if it isn't set. Read once.

    Raises:
        ValueError: it names no kernels.
    """
    name = _text("VGG_FAST_GPU")
    if name not in ("", "sm_80", "sm_90a"):
        raise ValueError(
            f"VGG_FAST_GPU={name} names no kernels; set it to sm_80 or sm_90a, or unset it"
        )
    return name


def cache_folder() -> Path:
    """Where vgg_fast keeps files between processes: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vgg_fast"


def _text(name: str) -> str:
    return os.environ.get(name, "").strip()
