"""The training program without the packages that only it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vgg_fast.train.__main__ import EXTRA


def run(blocked: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` where the package ``blocked`` can't be imported."""
    block = f"import sys; sys.modules[{blocked!r}] = None"
    command = [sys.executable, "-c", f"{block}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("package", EXTRA)
def test_what_is_missing_is_named_with_the_command_that_installs_it(package: str) -> None:
    program = "import runpy; runpy.run_module('vgg_fast.train', run_name='__main__')"
    failed = run(package, program)
    assert failed.returncode == 1
    assert failed.stderr.splitlines(keepends=True)[-1] == (
        f"python -m vgg_fast.train: {package} isn't installed, and the training program needs it: "
        "pip install 'vgg_fast[train]'\n"
    )


def test_the_presets_need_none_of_them() -> None:
    code = f"sys.modules.update(dict.fromkeys({EXTRA}))\nimport vgg_fast.train.presets"
    assert run(EXTRA[0], code).returncode == 0
