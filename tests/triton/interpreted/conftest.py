"""The Triton kernels under Triton's interpreter, on CPU tensors.

Whether Triton interprets is settled when it is first imported, for the whole process. So these
tests have a process of their own, which is what naming this folder alone asks for::

    pytest tests/triton/interpreted

Among other tests they are skipped; ``make test`` runs this folder alone at the end.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REASON = (
    "Triton compiles its kernels in this process: pytest tests/triton/interpreted runs these, as "
    "does make test"
)


def pytest_configure(config: pytest.Config) -> None:
    """Ask for the interpreter, if nothing but this folder is run.

    pytest reads the conftest.py of a folder that it was given before it collects any test; with
    xdist the workers inherit the variable.
    """
    root = config.invocation_params.dir
    given = [root / argument.partition("::")[0] for argument in config.args]
    alone = all(path.resolve().is_relative_to(HERE) for path in given)
    if alone and "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_not()
    for item in items:
        if reason and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not() -> str:
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton for this platform"

    import numpy
    import triton
    from torch.torch_version import TorchVersion

    if not triton.knobs.runtime.interpret:
        return REASON
    if TorchVersion(triton.__version__) < (3, 7) and TorchVersion(numpy.__version__) >= (2, 4):
        return (
            "the interpreter of Triton 3.6 takes arrays of one value for numbers: NumPy below 2.4"
        )
    return ""
