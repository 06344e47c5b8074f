"""Every instruction set that this machine has passes the operators' tests; another is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vgg_fast import _bindings

TESTS = Path(__file__).parents[1]
AVAILABLE = _bindings.cpu_instruction_sets()


def run(instruction_set: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env={**os.environ, "VGG_FAST_CPU": instruction_set},
        capture_output=True,
        text=True,
        check=False,
    )


# All the other tests run on the one in force.
@pytest.mark.parametrize(
    "instruction_set", [name for name in AVAILABLE if name != _bindings.cpu_instruction_set()]
)
def test_the_operators_equal_fp64_on(instruction_set: str) -> None:
    operators = [*TESTS.glob("ops/test_conv3x3*.py")]
    operators += (
        TESTS / f"ops/test_{name}.py" for name in ("max_pool2x2", "to_nchw", "batch_norm")
    )
    process = run(
        instruction_set,
        *("-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider"),
        *("-k", "equals or alone or written or reaches or infinit or wins or zero"),
        *map(str, operators),
    )
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr
    assert " passed" in process.stdout


@pytest.mark.parametrize(
    "instruction_set", [name for name in AVAILABLE if name != _bindings.cpu_instruction_set()]
)
def test_every_algorithm_equals_fp64_on(instruction_set: str) -> None:
    process = run(
        instruction_set,
        *("-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider"),
        *("-k", "equals or 16_bit or finite or stays or same_on_every"),
        *map(str, (TESTS / "cpu/test_cpu.py", TESTS / "cpu/test_fingerprint.py")),
    )
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr
    assert " passed" in process.stdout


# The introspection module loads without PyTorch, in a tenth of the time.
LOAD_BINDINGS = f"""
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("_bindings", {_bindings.__file__!r})
_bindings = module_from_spec(spec)
spec.loader.exec_module(_bindings)
"""


@pytest.mark.parametrize("instruction_set", AVAILABLE)
def test_the_one_asked_for_is_the_one_in_use(instruction_set: str) -> None:
    process = run(instruction_set, "-c", LOAD_BINDINGS + "print(_bindings.cpu_instruction_set())")
    assert process.stdout.strip() == instruction_set


CALL_AN_OPERATOR = """
import torch, vgg_fast
vgg_fast.functional.conv3x3(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
"""
# AVX2 is missing everywhere: names are in lower case.
LACKED = [name for name in ("avx512", "avx2", "generic") if name not in AVAILABLE] + ["neon9"]


@pytest.mark.parametrize(
    ("instruction_set", "code"),
    [
        *((name, LOAD_BINDINGS + "_bindings.cpu_instruction_set()") for name in [*LACKED, "AVX2"]),
        (LACKED[0], CALL_AN_OPERATOR),
    ],
    ids=[*LACKED, "AVX2", "an operator"],
)
def test_one_that_the_machine_lacks_is_refused(instruction_set: str, code: str) -> None:
    process = run(instruction_set, "-c", code)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        f"RuntimeError: VGG_FAST_CPU={instruction_set} can't be used: this processor runs "
        f"{', '.join(AVAILABLE)}; set it to one of these, or unset it"
    )
