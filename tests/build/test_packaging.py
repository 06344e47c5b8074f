"""What packaging/ refuses and writes; `make wheel` and `make try-wheel` use it on real wheels."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import vgg_fast

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
NAME = "vgg_fast-0.1.0-cp310-abi3-manylinux_2_28_x86_64.whl"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", PACKAGING / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(check: ModuleType, folder: Path, name: str = NAME, lacking=(), more=()) -> Path:
    """A wheel of empty files: those of the package, some of them left out, and more."""
    sources = [str(path.relative_to(ROOT)) for path in (ROOT / "vgg_fast").rglob("*.py")]
    names = {*sources, *check.LIBRARIES, *check.DATA, "vgg_fast-0.1.0.dist-info/WHEEL", *more}
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file in sorted(names - set(lacking)):
            archive.writestr(file, "")
    return folder / name


def test_a_wheel_as_it_should_be_passes(check, tmp_path) -> None:
    assert check.problems(make_wheel(check, tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": NAME.replace("abi3", "cp310")}, "its name is"),
        ({"name": NAME.replace("manylinux_2_28", "linux")}, "its name is"),
        ({"lacking": ["vgg_fast/py.typed"]}, "it lacks vgg_fast/py.typed"),
        ({"lacking": ["vgg_fast/ops/conv3x3.py"]}, "it lacks vgg_fast/ops/conv3x3.py"),
        ({"lacking": ["vgg_fast/_bindings.abi3.so"]}, "it lacks vgg_fast/_bindings.abi3.so"),
        ({"more": ["tests/conftest.py"]}, "tests/conftest.py isn't of the package"),
        ({"more": ["vgg_fast/libtorch.so"]}, "vgg_fast/libtorch.so isn't expected"),
        ({"more": ["vgg_fast.libs/libgomp-a1.so.1"]}, "vgg_fast.libs/libgomp-a1.so.1 isn't of"),
    ],
)
def test_each_mistake_is_named(check, tmp_path, changes, problem) -> None:
    found = check.problems(make_wheel(check, tmp_path, **changes))
    assert any(line.startswith(problem) for line in found), found


def test_a_large_wheel_is_refused(check, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(check, "MOST_BYTES", 1000)
    (problem,) = check.problems(make_wheel(check, tmp_path))
    assert re.fullmatch(r"it has [\d,]+ bytes, and 1,000 are allowed", problem)


def test_the_example_of_use_runs_here() -> None:
    run = subprocess.run(
        [sys.executable, PACKAGING / "use.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    told = run.stdout.splitlines()
    assert told[:-1] == ["forward and backward works", "fused model works", "training step works"]
    assert told[-1].startswith(f"vgg_fast {vgg_fast.__version__} in ")


def test_a_python_that_isn_t_there_is_named() -> None:
    command = [sys.executable, PACKAGING / "try_out.py", __file__, "--pythons", "3.99"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "there is no python3.99 on PATH" in run.stderr


def test_the_cuda_package_s_files_have_all_their_blanks_filled() -> None:
    script = (PACKAGING / "wheel_cuda.sh").read_text()
    filled = set(re.findall(r"s/(@\w+@)/", script))
    templates = [path.read_text() for path in (PACKAGING / "vgg_fast_cuda").glob("*.in")]
    assert len(templates) == 2
    assert {blank for text in templates for blank in re.findall(r"@\w+@", text)} == filled
