"""The kernels for matrix tiles on any processor: plain functions stand in for the instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import amx_emulated
from vgg_fast import _bindings

TESTS = Path(__file__).parents[1]
PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider")


@pytest.fixture(scope="module")
def folder() -> Path:
    has_avx512 = "avx512" in _bindings.cpu_instruction_sets()
    return amx_emulated.emulated("avx512" if has_avx512 else "generic")


def assert_passes(folder: Path, *arguments: str, **environment: str) -> None:
    process = amx_emulated.run(folder, *PYTEST, *arguments, **environment)
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr
    assert " passed" in process.stdout


def test_the_tiles_tests_pass(folder: Path) -> None:
    assert_passes(folder, "tests/cpu/test_amx.py", "tests/cpu/test_fp32_on_tiles.py")


@pytest.mark.parametrize(
    ("algorithm", "tests"),
    [
        ("auto", "bfloat16 and (equals or written or reaches)"),
        ("winograd4_amx", "float32 and (written or reaches or bits) or every_algorithm"),
    ],
)
def test_the_operators_tests_pass(folder: Path, algorithm: str, tests: str) -> None:
    operators = [*sorted(TESTS.glob("ops/test_conv3x3*.py")), TESTS / "ops" / "test_frozen.py"]
    names = [str(path.relative_to(TESTS.parent)) for path in operators]
    assert_passes(folder, *names, "-k", tests, VGG_FAST_ALGORITHM=algorithm)


def test_denormal_numbers_count(folder: Path) -> None:
    assert_passes(folder, "tests/cpu/test_denormals.py")
