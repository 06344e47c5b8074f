"""examples/cpp: a program without Python prints Python's own logits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.cuda_toolkit import build_once
from vgg_fast import _extension

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
# pip puts cmake and ninja beside the interpreter.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool, path=PATH) for tool in ("cmake", "ninja", "g++")),
    reason="needs cmake, ninja and g++",
)


def output_of(*command: str | Path) -> str:
    run = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": PATH, "PYTHONPATH": str(EXAMPLE.parents[1])},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def logits_in(text: str) -> Tensor:
    return torch.tensor([[float(word) for word in line.split()] for line in text.splitlines()])


def compile_program(to: Path) -> None:
    build = to.with_name("classify-build")
    output_of(
        "cmake", "-S", EXAMPLE, "-B", build, "-G", "Ninja",
        f"-DPython3_EXECUTABLE={sys.executable}", "-DCMAKE_CXX_FLAGS=-O0 -Wall -Wextra -Werror",
    )  # fmt: skip
    output_of("cmake", "--build", build)
    shutil.copy(build / "classify", to)


@pytest.fixture
def program(tmp_path_factory) -> Path:
    return build_once(tmp_path_factory, "classify", compile_program)


@pytest.fixture
def saved(tmp_path_factory) -> Callable[[str], tuple[Path, Tensor]]:
    """A device's folder of saved networks, and the logits that Python printed."""

    def save(device: str) -> tuple[Path, Tensor]:
        def run(folder: Path) -> None:
            folder.mkdir()
            (folder / "logits").write_text(
                output_of(sys.executable, EXAMPLE / "save.py", folder, device)
            )

        folder = build_once(tmp_path_factory, f"saved-{device}", run)
        return folder, logits_in((folder / "logits").read_text())

    return save


@pytest.mark.parametrize("network", ["network.pt", "network.pt2"])
def test_the_program_prints_what_python_printed(program, saved, network: str) -> None:
    folder, expected = saved("cpu")
    found = output_of(program, folder / network, folder / "images.pt", "cpu", _extension.LIBRARY)
    torch.testing.assert_close(logits_in(found), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("network", ["network.pt", "network.pt2"])
def test_the_program_runs_on_a_gpu(program, saved, network: str) -> None:
    if _extension.cuda_library_problem():
        pytest.skip(_extension.cuda_library_problem())
    folder, expected = saved("cuda")
    libraries = (_extension.LIBRARY, _extension.cuda_library())
    found = output_of(program, folder / network, folder / "images.pt", "cuda", *libraries)
    torch.testing.assert_close(logits_in(found), expected, rtol=1e-3, atol=1e-3)


def test_a_library_that_does_not_load_is_named(program, saved, tmp_path) -> None:
    folder, _ = saved("cpu")
    arguments = [program, folder / "network.pt", folder / "images.pt", "cpu", tmp_path / "none.so"]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "the operator library doesn't load" in run.stderr and "none.so" in run.stderr


def test_neither_the_program_nor_the_operators_need_python(program) -> None:
    assert "libpython" not in output_of("ldd", program)
    undefined = output_of("nm", "-D", "--undefined-only", _extension.LIBRARY).split()
    assert not [symbol for symbol in undefined if symbol.lstrip("_").startswith("Py")]
