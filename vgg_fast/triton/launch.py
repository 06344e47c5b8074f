"""What every launcher needs: device, layout, limits, the descriptors' memory, the interpreter."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vgg_fast.triton.tiles import family_of

# Whether the kernels run under Triton's interpreter, which takes CPU tensors. Triton reads the
# variable when a kernel is defined, so it has to be set before the first import.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)

# The family of GPUs that interpreted kernels are laid out for: tests set it.
interpreted_family = "sm_80"


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Launches inside go to the current stream of the device that holds ``tensor``."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def channels_last(tensor: Tensor) -> Tensor:
    """``tensor`` itself if its memory is (N, H, W, C) already, else a copy that is."""
    return tensor.contiguous(memory_format=torch.channels_last)


def family(device: torch.device) -> str:
    """Which rows of the tile table serve ``device``."""
    if device.type != "cuda":
        return interpreted_family
    properties = _properties(device.index)
    return family_of((properties.major, properties.minor))


def multiprocessors(device: torch.device) -> int:
    """How many of them the GPU has; under the interpreter few, so that programs take many tiles."""
    return _properties(device.index).multi_processor_count if device.type == "cuda" else 2


def name(device: torch.device) -> str:
    """The GPU's name, as its driver gives it."""
    return _properties(device.index).name if device.type == "cuda" else "the interpreter"


@functools.cache
def _properties(index: int) -> Any:
    properties = torch.cuda.get_device_properties(index)
    if properties.major < 8:
        raise RuntimeError(
            f"vgg_fast: the Triton kernels need a GPU of compute capability 8.0 or newer, but "
            f"{properties.name} has {properties.major}.{properties.minor}; use the backend 'auto' "
            "or 'reference'"
        )
    return properties


def launch(
    kernel: Any,
    grid: int | tuple[int, ...],
    like: Tensor,
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    descriptors: bool = False,
) -> None:
    """Launch ``kernel`` on the current stream of the device that holds ``like``.

    Args:
        arguments: all that the kernel takes before its constants, in its order.
        constants: of one kernel always in the same order.
        descriptors: the kernel makes tensor descriptors, in device memory that Triton asks an
            allocator for. The allocator is a context variable: a thread of PyTorch's backward pass
            has none, and a user's own must not be replaced.
    """
    grid = (*grid, 1, 1)[:3] if isinstance(grid, tuple) else (grid, 1, 1)
    key = (id(kernel), like.get_device(), *constants.values(), *map(_specialised, arguments))

    def start() -> None:
        if descriptors:
            triton.set_allocator(_allocate)
        known = _compiled.get(key)
        if known is None:
            _compiled[key] = _Known.of(kernel, constants, kernel[grid](*arguments, **constants))
        else:
            known.compiled[grid](*arguments, *known.constants)

    if _compiles_only.get():
        kernel.warmup(*arguments, grid=grid, **constants)
        return
    with on_device_of(like):
        if descriptors:
            contextvars.copy_context().run(start)
        else:
            start()


_compiles_only = contextvars.ContextVar("_compiles_only", default=False)


@contextlib.contextmanager
def compiling_only() -> Iterator[None]:
    """Launches inside, of this thread, compile and run nothing; meta tensors will do."""
    token = _compiles_only.set(True)
    try:
        yield
    finally:
        _compiles_only.reset(token)


class _Known(NamedTuple):
    """A compiled kernel, so that no launch but the first looks for it: half of the host's time."""

    compiled: Any
    constants: tuple[Any, ...]
    """As its launcher takes them: in the kernel's order, without Triton's options."""

    @staticmethod
    def of(kernel: Any, constants: dict[str, Any], compiled: Any) -> _Known | None:
        """Nothing is compiled under the interpreter."""
        ordered = tuple(constants[name] for name in kernel.arg_names if name in constants)
        return compiled and _Known(compiled, ordered)


_compiled: dict[tuple, _Known | None] = {}


def _specialised(argument: Any) -> Any:
    # Triton compiles anew for another dtype, alignment or number; here any other number counts.
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return argument


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    # PyTorch aligns to 512 bytes, and frees in the order of the current stream, which is the
    # launch's too.
    return torch.empty(size, dtype=torch.int8, device="cuda")


def check_extents(n: int, h: int, w: int, channels: int) -> None:
    """Refuse what 32-bit offsets inside a patch, or a launch grid, can't reach.

    Maps may have more than 2^31 elements; 2^26 in a row is some thousand times what a network has.
    """
    if (w + 16) * channels > 2**26 or n * h * w >= 2**31 or 9 * channels * channels >= 2**31:
        raise RuntimeError(
            f"vgg_fast: the Triton kernels take rows of up to 2^26 values, 2^31 pixels and 15,000 "
            f"channels, but were given {n} maps of {h}x{w} with {channels} channels; use the "
            "backend 'reference'"
        )
