"""A library that is missing, broken or of another build explains itself, in one message."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vgg_fast
from vgg_fast import _extension

ROOT = Path(__file__).parents[2]
PACKAGE = Path(_extension.__file__).parent
BINDINGS = next(PACKAGE.glob("_bindings*.so"))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package, to break."""
    copy = tmp_path / "vgg_fast"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def run(copy: Path, code: str) -> subprocess.CompletedProcess:
    """Run ``code`` with the copy in the package's place."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(copy.parent)},
        cwd=copy.parent,
        check=False,
    )


def import_error(copy: Path, before: str = "") -> str:
    """What ``import vgg_fast`` of the copy prints as it fails."""
    failed = run(copy, f"{before}\nimport vgg_fast")
    assert failed.returncode != 0, failed.stdout
    return failed.stderr


def test_a_missing_library_names_the_command_that_builds_it(copied):
    (copied / "_C.abi3.so").unlink()
    message = import_error(copied)
    assert "ImportError: vgg_fast can't use its operator library: it isn't there" in message
    assert str(copied / "_C.abi3.so") in message
    assert BINDINGS.name in message, "what was found isn't named"
    assert f"built with  torch {torch.__version__}" in message
    assert "fix it" in message and "pip install --no-build-isolation" in message


def test_a_broken_library_keeps_the_loader_s_own_words(copied):
    (copied / "_C.abi3.so").write_bytes(b"not a library" * 1000)
    message = import_error(copied)
    assert "it doesn't load" in message and "invalid ELF header" in message
    assert "The above exception was the direct cause" in message


def test_a_library_of_other_sources_names_what_it_lacks(copied):
    message = import_error(copied, "import torch; torch.ops.load_library = lambda path: None")
    assert "it was built from other sources, and lacks conv3x3, conv3x3_backward" in message


def test_an_old_torch_is_refused_before_anything_loads(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1")
    with pytest.raises(
        ImportError, match=r"needs torch 2\.11 or newer, but this is torch 2\.10\.1"
    ):
        _extension._check_torch()


@pytest.mark.parametrize("version", ["2.11.0", "2.15.0+cu132", "3.0.0a0+git1234"])
def test_a_newer_torch_passes(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    _extension._check_torch()


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("setup.py", r'OLDEST_TORCH = "([\d.]+)"'),
        ("pyproject.toml", r'"torch>=([\d.]+)"'),
        ("Makefile", r'"torch>=([\d.]+)"'),
    ],
)
def test_the_oldest_torch_is_the_same_wherever_it_is_named(file, pattern):
    named = re.findall(pattern, (ROOT / file).read_text())
    assert named
    assert set(named) == {".".join(map(str, _extension.OLDEST_TORCH))}


def test_a_broken_cuda_library_leaves_cpu_tensors_their_kernels(copied):
    (copied / "_C_cuda.abi3.so").write_bytes(b"not a library" * 1000)
    code = (
        "import torch, vgg_fast\n"
        "from vgg_fast import _extension\n"
        "print(vgg_fast.functional.max_pool2x2(torch.ones(1, 1, 2, 2)).item())\n"
        "print(_extension.cuda_library_problem())"
    )
    value, problem = run(copied, code).stdout.splitlines()
    assert value == "1.0"
    assert problem.startswith("_C_cuda.abi3.so is built, but doesn't load:")


CUDA_STUB = """
extern "C" const char* vgg_fast_cuda_version() { return "13.0"; }
extern "C" const char* vgg_fast_cuda_architectures() { return "8.0;9.0a"; }
"""
ASK_FOR_CUDA = (
    "from vgg_fast import _extension as e; import vgg_fast\n"
    "print(e.cuda_library_problem() or e.cuda_library()); print(e.cuda_facts())\n"
    "print(e.has_sm90_kernels())"
)


@pytest.fixture
def cuda_package(copied: Path) -> Callable[..., Path]:
    """Puts a vgg_fast_cuda beside the copy, with a library that defines no kernel."""

    def make(version: str) -> Path:
        (copied / "_C_cuda.abi3.so").unlink(missing_ok=True)
        package = copied.parent / "vgg_fast_cuda"
        package.mkdir()
        (package / "__init__.py").write_text(f'__version__ = "{version}"\nraise AssertionError\n')
        source, library = package / "stub.cpp", package / "_C_cuda.abi3.so"
        source.write_text(CUDA_STUB)
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
        return library

    return make


def test_the_cuda_kernels_may_be_a_package_of_their_own(copied, cuda_package):
    library = cuda_package(vgg_fast.__version__)
    found, facts, hopper = run(copied, ASK_FOR_CUDA).stdout.splitlines()
    assert found == str(library)
    assert ast.literal_eval(facts) == {"cuda version": "13.0", "cuda architectures": "8.0;9.0a"}
    assert hopper == "True"


def test_cuda_kernels_of_another_version_are_not_loaded(copied, cuda_package):
    cuda_package("99.0.0")
    problem, facts, hopper = run(copied, ASK_FOR_CUDA).stdout.splitlines()
    assert problem.startswith("vgg_fast_cuda 99.0.0 (")
    assert f"isn't used, because this is vgg_fast {vgg_fast.__version__}" in problem
    assert (facts, hopper) == ("{}", "False")


def test_without_cuda_kernels_the_message_says_how_to_get_them(copied):
    (copied / "_C_cuda.abi3.so").unlink(missing_ok=True)
    problem, facts, _ = run(copied, ASK_FOR_CUDA).stdout.splitlines()
    assert "isn't built, and vgg_fast_cuda isn't installed; VGG_FAST_CUDA=1" in problem
    assert facts == "{}"


def test_loading_twice_does_nothing(monkeypatch):
    _extension.load()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    _extension.load()
    assert loaded == []


def test_a_backend_that_the_environment_misspells_is_refused(copied):
    message = import_error(copied, "import os; os.environ['VGG_FAST_BACKEND'] = 'tritn'")
    assert "VGG_FAST_BACKEND='tritn' names no backend: choose one of auto, cpp" in message
