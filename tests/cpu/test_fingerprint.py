"""The fingerprint by which a kept weight is known to have changed: it notices."""

from __future__ import annotations

import ctypes
import itertools
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.cuda_toolkit import build_once
from vgg_fast import _extension, cpu
from vgg_fast.functional import conv3x3_relu

# Of bytes(range(256)), repeated.
KNOWN = {0: 0xDD2E126981C8585F, 1: 0x9ADAB3331105FD83, 9: 0xDAC16AC3AE83950F}
SIZES = (1, 7, 8, 64, 1023, 1024, 1025, 65536, 200_000)


@pytest.fixture(scope="module")
def fingerprint() -> Callable[[bytes], int]:
    function = ctypes.CDLL(str(_extension.LIBRARY)).vgg_fast_fingerprint
    function.restype, function.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_int64]
    return lambda data: function(data, len(data))


@pytest.fixture(scope="module")
def count_unnoticed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """How many flips of up to ``most`` bits, ``step`` bits apart, aren't noticed."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    source = Path(__file__).parents[1] / "support" / "fingerprint_flips.cpp"

    def build(library: Path) -> None:
        command = [compiler, "-std=c++20", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*command, "-o", str(library), str(source)], check=True)

    counting = ctypes.CDLL(str(build_once(tmp_path_factory, "libfingerprint_flips.so", build)))
    operators = ctypes.CDLL(str(_extension.LIBRARY))
    counting.count_unnoticed.restype = ctypes.c_int64

    def count(data: bytes, first: int, last: int, step: int, most: int) -> int:
        numbers = map(ctypes.c_int64, (len(data), first, last, step))
        buffer = ctypes.create_string_buffer(data, len(data))
        return counting.count_unnoticed(operators.vgg_fast_fingerprint, buffer, *numbers, most)

    return count


def contents(kind: str, size: int) -> bytes:
    if kind == "random":
        return random.Random(size).randbytes(size)
    return {"zeros": b"\0", "ones": b"\0\0\x80\x3f"}[kind] * size


@pytest.mark.parametrize("kind", ["random", "zeros", "ones"])
def test_every_flip_of_up_to_three_bits_in_a_row_of_words(count_unnoticed, kind: str) -> None:
    data = contents(kind, 4608)
    for first in (0, 8 * 1000, 8 * 4096):  # across two blocks, and in the last, partial one
        assert count_unnoticed(data, first, first + 128, 1, 3) == 0


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("kind", ["random", "zeros", "ones"])
def test_every_flip_of_up_to_three_signs(count_unnoticed, kind: str, bits: int) -> None:
    assert count_unnoticed(contents(kind, 9216), bits - 1, 96 * bits, bits, 3) == 0


@pytest.mark.parametrize("size", SIZES)
def test_any_single_byte_and_the_length(fingerprint, size: int) -> None:
    data = bytearray(contents("random", size))
    found = {fingerprint(bytes(data)), fingerprint(bytes(data) + b"\0")}
    places = sorted({0, size // 3, size // 2, size - 1})
    for place in places:
        data[place] ^= 1
        found.add(fingerprint(bytes(data)))
        data[place] ^= 1
    assert len(found) == 2 + len(places)


@pytest.mark.parametrize("width", [2, 4, 8, 16, 64, 1024, 65536])
def test_what_changes_places(fingerprint, width: int) -> None:
    """Words, blocks of 1 KiB, and pieces of 64 KiB."""
    pieces = [random.Random(i).randbytes(width) for i in range(4)]
    found = {fingerprint(b"".join(order)) for order in itertools.permutations(pieces)}
    assert len(found) == 24


def test_any_two_words_that_change_places(fingerprint) -> None:
    words = [random.Random(i).randbytes(4) for i in range(288)]
    before = fingerprint(b"".join(words))
    for i, j in itertools.combinations(range(len(words)), 2):
        words[i], words[j] = words[j], words[i]
        assert fingerprint(b"".join(words)) != before, (i, j)
        words[i], words[j] = words[j], words[i]


def test_the_same_on_every_instruction_set(fingerprint) -> None:
    """tests/cpu/test_instruction_sets.py runs this on each that the machine has."""
    assert {n: fingerprint(bytes(range(256)) * n) for n in KNOWN} == KNOWN


@pytest.mark.parametrize(
    ("dtype", "places"),
    [(torch.float32, (1, 16, 17)), (torch.bfloat16, (3, 33, 35)), (torch.float16, (3, 33, 35))],
    ids=str,
)
def test_flipped_signs_of_a_weight_do_not_cancel(dtype: torch.dtype, places) -> None:
    torch.manual_seed(0)
    image, weight = torch.randn(1, 32, 12, 12, dtype=dtype), torch.randn(32, 32, 3, 3, dtype=dtype)
    for algorithm in ("direct", "winograd4"):
        with cpu.use(algorithm):
            for _ in range(3):
                conv3x3_relu(image, weight)
            weight.view(-1)[list(places)] *= -1
            assert torch.equal(conv3x3_relu(image, weight), conv3x3_relu(image, weight.clone()))
