"""A library that is missing, broken or of another build explains itself, in one message."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_loading_twice_does_nothing(monkeypatch):
    _extension.load()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    _extension.load()
    assert loaded == []


def test_a_backend_that_the_environment_misspells_is_refused(copied):
    message = import_error(copied, "import os; os.environ['VGG_FAST_BACKEND'] = 'tritn'")
    assert "VGG_FAST_BACKEND='tritn' names no backend: choose one of auto, cpp" in message
