"""What this machine can do at most: multiply-adds, a large matrix product, copying memory."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

# Ten independent sums of vectors hide the latency of a multiply-add: 4 cycles at 2 a cycle need 8.
FMA_SOURCE = """
#ifdef __AVX512F__
enum { kLanes = 16 };
#else
enum { kLanes = 8 };
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));
enum { kSums = 10 };

double operations(long steps) { return 2.0 * kLanes * kSums * steps; }

float work(long steps, float factor, float term) {
  Vector sums[kSums];
  // Not all the same: a compiler would then compute one sum, and the others be nothing but counted.
  for (int j = 0; j < kSums; ++j) sums[j] = (Vector){} + term * j;
  for (long i = 0; i < steps; ++i) {
#pragma GCC unroll 10
    for (int j = 0; j < kSums; ++j) sums[j] = sums[j] * factor + term;
  }
  float total = 0;
  for (int j = 0; j < kSums; ++j) total += sums[j][0];
  return total;
}
"""
FMA_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast")
STEPS = 4_000_000
CPU_INFO = Path("/proc/cpuinfo")


def limits(repeats: int = 7) -> dict[str, float | None]:
    """GFLOP/s of multiply-adds in registers (fp32; None without a C compiler) and of a matrix
    product (fp32, and bf16; None where the processor has no bf16 arithmetic), and GB/s of a copy,
    read and write counted: the best of ``repeats``, on all torch threads."""
    return {
        "fma_gflops": _fma(repeats),
        "gemm_gflops": _gemm(repeats, torch.float32),
        "gemm_bf16_gflops": _gemm(repeats, torch.bfloat16) if has_bf16() else None,
        "copy_gbs": _copy(repeats),
    }


def has_bf16() -> bool:
    """Whether the processor multiplies bf16: AMX or AVX-512 BF16 on x86, BF16 on Arm."""
    return bool(_flags() & {"amx_bf16", "avx512_bf16", "bf16"})


def has_matrix_tiles() -> bool:
    """Whether the processor multiplies bf16 on tiles of matrices: Intel's AMX."""
    return "amx_bf16" in _flags()


def _flags() -> set[str]:
    try:
        return set(re.findall(r"\w+", CPU_INFO.read_text()))
    except OSError:
        return set()


def of(found: dict[str, float | None], precision: str) -> float:
    """GFLOP/s that a work in ``precision`` can reach at most."""
    fp32 = max(filter(None, (found["fma_gflops"], found["gemm_gflops"])))
    # Without bf16 arithmetic, bf16 is storage, and the arithmetic is fp32.
    return (precision == "bf16" and found.get("gemm_bf16_gflops")) or fp32


def least_seconds(
    found: dict[str, float | None], precision: str, flops: float, moved: float
) -> float:
    """Computing and moving overlap: the longer of the two."""
    copy = found["copy_gbs"]
    assert copy is not None
    return max(flops / (of(found, precision) * 1e9), moved / (copy * 1e9))


def _best(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def c_compiler() -> str | None:
    """The path of one, or None: then the rate of multiply-adds isn't measured."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _fma(repeats: int) -> float | None:
    compiler = c_compiler()
    if compiler is None:
        return None
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "fma.c", Path(folder) / "fma.so"
        source.write_text(FMA_SOURCE)
        command = [compiler, *FMA_FLAGS, "-shared", "-fPIC", str(source), "-o", str(library)]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        loaded = ctypes.CDLL(str(library))
    loaded.operations.restype = ctypes.c_double
    loaded.work.restype = ctypes.c_float
    factor, term = ctypes.c_float(0.999), ctypes.c_float(1e-3)

    def thread(_: int) -> None:
        loaded.work(ctypes.c_long(STEPS), factor, term)

    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(thread, range(threads))), repeats)
    return threads * loaded.operations(ctypes.c_long(STEPS)) / seconds / 1e9


def _gemm(repeats: int, dtype: torch.dtype, size: int = 2048) -> float:
    a, b = torch.rand(2, size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    return 2 * size**3 / _best(lambda: torch.mm(a, b, out=out), repeats) / 1e9


def _copy(repeats: int, values: int = 1 << 26) -> float:
    source, target = torch.zeros(2, values)
    return 2 * 4 * values / _best(lambda: target.copy_(source), repeats) / 1e9
