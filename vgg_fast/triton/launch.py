"""What every launcher needs: device, limits, the descriptors' memory, the interpreter."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from vgg_fast.dispatch import policy

# Whether the kernels run under Triton's interpreter, which takes CPU tensors. Triton reads
# TRITON_INTERPRET when a kernel is defined, so it must be set before the first import.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)

# The family of GPUs that interpreted kernels are laid out for: tests set it.
interpreted_family = "sm_80"


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Launches inside go to the current stream of the device that holds ``tensor``."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)


_HERE = contextlib.nullcontext()


def family(device: torch.device) -> str:
    """Which rows of the tile table serve ``device``."""
    if device.type != "cuda":
        return interpreted_family
    properties = _properties(device.index)
    return policy.family_of((properties.major, properties.minor))


def multiprocessors(device: torch.device) -> int:
    """How many of them the GPU has; under the interpreter few, so that programs take many tiles."""
    return _properties(device.index).multi_processor_count if device.type == "cuda" else 2


def name(device: torch.device) -> str:
    """The GPU's name, as its driver gives it."""
    return _properties(device.index).name if device.type == "cuda" else "the interpreter"


@functools.cache
def _properties(index: int) -> Any:
    properties = torch.cuda.get_device_properties(index)
    if (properties.major, properties.minor) < policy.OLDEST_CAPABILITY:
        oldest = ".".join(map(str, policy.OLDEST_CAPABILITY))
        raise RuntimeError(
            f"vgg_fast: the Triton kernels need a GPU of compute capability {oldest} or newer, but "
            f"{properties.name} has {properties.major}.{properties.minor}; use the backend 'auto' "
            "or 'reference'"
        )
    return properties


class Launch:
    """One kernel with its grid, numbers and constants: a call with its tensors launches it.

    A plan makes it once for a shape, and what is left for each call is the least: Triton, asked by
    tensors, looks for the compiled kernel by the types of all arguments, and asks the driver about
    every pointer, which takes the host longer than the launch.
    """

    def __init__(
        self,
        kernel: Any,
        grid: int | tuple[int, ...],
        numbers: tuple[float, ...],
        constants: dict[str, Any],
        descriptors: bool = False,
    ) -> None:
        """Prepare the launch.

        Args:
            kernel: takes tensors, then numbers, then constants.
            grid: how many programs, along up to three axes.
            numbers: the kernel's arguments that are neither tensors nor constants, in its order.
            constants: its constants and Triton's options, by name.
            descriptors: it makes tensor descriptors, in device memory that Triton asks an allocator
                for.
        """
        self.kernel = kernel
        self.grid = (*grid, 1, 1)[:3] if isinstance(grid, tuple) else (grid, 1, 1)
        self.numbers = numbers
        self.constants = constants
        self.descriptors = descriptors
        # As the launcher of a compiled kernel takes them: in the kernel's order, without options.
        ordered = (constants[name] for name in kernel.arg_names if name in constants)
        self._behind_pointers = (*numbers, *ordered)
        # By device. Triton compiles again for tensors that aren't aligned: those it finds itself.
        self._compiled: dict[int, Any] = {}

    def __call__(self, *tensors: Any) -> None:
        """Launch on the current stream of the device that holds the tensors.

        Args:
            tensors: in the kernel's order; each time of the same dtypes, and the same of them None,
                which the first never is.
        """
        if _compiles_only.get():
            self.kernel.warmup(*tensors, *self.numbers, grid=self.grid, **self.constants)
            return
        with on_device_of(tensors[0]):
            if self.descriptors:
                # The allocator is a context variable: a thread of PyTorch's backward pass has none,
                # and a user's own must not be replaced.
                contextvars.copy_context().run(self._start_with_allocator, tensors)
            else:
                self._start(tensors)

    def _start_with_allocator(self, tensors: tuple[Any, ...]) -> None:
        triton.set_allocator(_allocate)
        self._start(tensors)

    def _start(self, tensors: tuple[Any, ...]) -> None:
        device = tensors[0].get_device()
        compiled = self._compiled.get(device)
        pointers: list[int | None] = []
        bits = 0
        for tensor in tensors:
            pointer = None if tensor is None else tensor.data_ptr()
            pointers.append(pointer)
            bits |= pointer or 0
        if compiled is None or bits % 16:
            compiled = self.kernel[self.grid](*tensors, *self.numbers, **self.constants)
            if compiled is not None and not bits % 16:  # None: it is interpreted
                self._compiled[device] = compiled
        elif _has_launch_hooks():
            compiled[self.grid](*tensors, *self._behind_pointers)
        else:
            stream = triton.runtime.driver.active.get_current_stream(device)
            compiled.run(
                *self.grid, stream, compiled.function, compiled.packed_metadata, None, None, None,
                *pointers, *self._behind_pointers,
            )  # fmt: skip


def _has_launch_hooks() -> bool:
    """Whether something, a profiler say, is to be called at each launch."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    # A chain of hooks is always there, and mostly empty.
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


_compiles_only = contextvars.ContextVar("_compiles_only", default=False)


@contextlib.contextmanager
def compiling_only() -> Iterator[None]:
    """Launches inside, of this thread, compile and run nothing; meta tensors will do."""
    token = _compiles_only.set(True)
    try:
        yield
    finally:
        _compiles_only.reset(token)


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
