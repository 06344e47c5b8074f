"""The operator that docs/contributing/new-operator.md writes works, but for its C++ kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks, text

PAGE = "docs/contributing/new-operator.md"
# What the page's other steps say, done to the package in a process of its own. The schema's C++
# becomes torch.library's: then the reference stands where the CPU kernels would.
HARNESS = """
import importlib.util, sys
import pytest, torch
import vgg_fast
from vgg_fast import backends, functional
from vgg_fast.dispatch import choices, route

library = torch.library.Library("vgg_fast", "FRAGMENT")
for schema in SCHEMAS:
    library.define(schema)

def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

is_convolution = route._is_cuda_convolution
route._is_cuda_convolution = lambda name, key: "avg" not in name and is_convolution(name, key)
load("vgg_fast.ops.avg_pool2x2", FOLDER + "/vgg_fast/ops/avg_pool2x2.py")
exec(compile(FUNCTION, "functional.py", "exec"), vars(functional))
if TRITON:
    twin = load("vgg_fast.triton.avg_pool2x2", FOLDER + "/vgg_fast/triton/avg_pool2x2.py")
    others = route._triton_module
    route._triton_module = lambda name: twin if name == "avg_pool2x2" else others(name)
    backends.set("triton")
    chosen, kernel = route.kernel_for("avg_pool2x2", "CPU", torch.zeros(1, 2, 4, 4))
    assert (chosen, kernel.__module__) == ("triton", twin.__name__)
arguments = ["-q", "--override-ini=testpaths=", "-p", "no:cacheprovider", "--rootdir", ROOT]
sys.exit(pytest.main([*arguments, FOLDER + "/tests/ops/test_avg_pool2x2.py", *CHOSEN]))
"""


def files() -> dict[str, str]:
    """What the page has whole, by path."""
    found = re.findall(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```$", text(PAGE), re.M | re.S)
    return dict(found)


def function() -> str:
    (found,) = [code for code in blocks("py", PAGE) if code.startswith("def avg_pool2x2(")]
    return found


def schemas() -> list[str]:
    return re.findall(r'^  m\.def\("([^"]+)"\);$', text(PAGE), re.MULTILINE)


@pytest.mark.parametrize("triton", [False, True], ids=["reference", "triton"])
def test_the_operator_works(triton: bool, tmp_path: Path) -> None:
    if triton:
        pytest.importorskip("triton", reason="there is no Triton for this platform")
    for name, code in files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
    # The interpreter is slow: of the shapes and layouts a few.
    chosen = ["-k", "test_equals_fp64 and (contiguous or channels_last)"] if triton else []
    given = {
        "SCHEMAS": schemas(),
        "FOLDER": str(tmp_path),
        "ROOT": str(ROOT),
        "FUNCTION": "import torch\nfrom torch import Tensor\n" + function(),
        "TRITON": triton,
        "CHOSEN": chosen,
    }
    script = "".join(f"{name} = {value!r}\n" for name, value in given.items()) + HARNESS
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    environment["TRITON_INTERPRET"] = str(int(triton))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_page_has_the_files_that_it_lists() -> None:
    assert len(schemas()) == 2 and len(files()) == 5
    table = text(PAGE).partition("## 1.")[0]
    assert all(name in table for name in files())
