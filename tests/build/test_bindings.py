"""vgg_fast._bindings: one file for every Python and any Linux, telling what pybind11's tells."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.cuda_toolkit import build_once
from vgg_fast import _bindings, _extension

ROOT = Path(__file__).parents[2]
PACKAGE = Path(_extension.__file__).parent
STUB = PACKAGE / "_bindings.pyi"
MOST_GLIBC = (2, 28)  # of manylinux_2_28

# N, C, K, H, W, storage, precision, threads, algorithm, workspace, for_dgrad
QUESTIONS = [
    (16, 64, 128, 56, 56, 0, 0, 2, 0, -1, False),
    (16, 64, 128, 56, 56, 0, 0, 2, 0, 1 << 20, True),
    (1, 512, 512, 4, 4, 0, 0, 1, 0, -1, False),
    (2, 3, 64, 31, 17, 1, 2, 4, 1, -1, False),
    (0, 3, 8, 5, 5, 3, 0, 1, 0, -1, False),
]
# Python's stable ABI, or one Python's, by VGG_FAST_PYBIND11=1.
is_limited = pytest.mark.skipif(
    _bindings.__file__.find(".abi3.") < 0, reason="built with VGG_FAST_PYBIND11=1"
)


@pytest.fixture(scope="session")
def by_pybind11(tmp_path_factory) -> ModuleType:
    """The module that VGG_FAST_PYBIND11=1 builds, from a copy of the sources."""

    def build(path: Path) -> None:
        copy = path.parent / "pybind11-sources"
        shutil.copytree(ROOT / "csrc", copy / "csrc")
        for name in ("setup.py", "setup_cuda.py", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        (copy / "vgg_fast").mkdir()
        # The operators take minutes, and are the same: only the bindings.
        code = (
            "import sys, setup; from setuptools import setup as make\n"
            "make(ext_modules=[setup.bindings()], cmdclass={'build_ext': setup.Build},"
            " script_args=['--quiet', 'build_ext', '--inplace'])"
        )
        environment = {**os.environ, "VGG_FAST_PYBIND11": "1", "VGG_FAST_CUDA": "0"}
        subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, check=True)
        (built,) = (copy / "vgg_fast").glob("_bindings*.so")
        assert ".abi3." not in built.name
        built.rename(path)

    file = build_once(tmp_path_factory, "_bindings.so", build)
    spec = importlib.util.spec_from_file_location("_bindings", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@is_limited
@pytest.mark.slow
def test_pybind11_tells_the_same(by_pybind11) -> None:
    for name in ("cpu_instruction_sets", "cpu_instruction_set", "cpu_algorithms"):
        assert getattr(by_pybind11, name)() == getattr(_bindings, name)()
    assert by_pybind11.build_facts().keys() == _bindings.build_facts().keys()
    for question in QUESTIONS:
        for name in ("plan_convolution", "plan_weight_gradient"):
            ours, theirs = (
                getattr(_bindings, name)(*question),
                getattr(by_pybind11, name)(*question),
            )
            assert list(ours.items()) == list(theirs.items())


def stubs() -> dict[str, list[str]]:
    """The functions of the stub, and the names of their arguments."""
    body = ast.parse(STUB.read_text()).body
    return {f.name: [a.arg for a in f.args.args] for f in body if isinstance(f, ast.FunctionDef)}


def test_the_stub_has_every_function_and_its_arguments() -> None:
    assert set(stubs()) == {name for name in vars(_bindings) if not name.startswith("__")}
    for name in ("plan_convolution", "plan_weight_gradient"):
        plan, names = getattr(_bindings, name), stubs()[name]
        for question in QUESTIONS:
            assert plan(**dict(zip(names, question, strict=True))) == plan(*question)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: _bindings.plan_convolution(), TypeError),
        (lambda: _bindings.plan_convolution(*QUESTIONS[0], 1), TypeError),
        (lambda: _bindings.plan_convolution(*QUESTIONS[0][:-1], widht=True), TypeError),
        (lambda: _bindings.plan_convolution("1", *QUESTIONS[0][1:]), TypeError),
        (lambda: _bindings.plan_convolution(1.5, *QUESTIONS[0][1:]), TypeError),
        (
            lambda: _bindings.plan_weight_gradient(2**70, *QUESTIONS[0][1:]),
            (OverflowError, TypeError),
        ),
        (lambda: _bindings.build_facts(1), TypeError),
    ],
)
def test_what_isn_t_an_argument_is_python_s_own_error(call: Callable, error) -> None:
    with pytest.raises(error):
        call()


def test_calls_leave_nothing_behind() -> None:
    def call() -> None:
        _bindings.plan_convolution(*QUESTIONS[0])
        _bindings.cpu_algorithms()
        _bindings.build_facts()
        with pytest.raises(TypeError):
            _bindings.plan_convolution()

    call()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            call()
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()


@is_limited
def test_no_file_is_of_one_python_s() -> None:
    compiled = [path.name for path in PACKAGE.glob("*.so")]
    assert all(name.endswith(".abi3.so") for name in compiled), compiled


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
@pytest.mark.parametrize(
    "library", [_extension.LIBRARY, Path(_bindings.__file__)], ids=lambda path: path.name
)
def test_an_old_glibc_is_enough(library: Path) -> None:
    told = subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True)
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", told.stdout)}
    assert versions and max(versions) <= MOST_GLIBC
