"""What the Triton kernels say of a CPU tensor where nothing interprets them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="there is no Triton for this platform")


def test_cpu_tensors_without_the_interpreter_are_refused_in_one_sentence() -> None:
    code = (
        "import torch, vgg_fast\n"
        "with vgg_fast.backends.use('triton'):\n"
        "    vgg_fast.functional.max_pool2x2(torch.ones(1, 1, 2, 2))"
    )
    left_out = ("TRITON_INTERPRET", "VGG_FAST_BACKEND")
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in os.environ.items() if name not in left_out},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "RuntimeError: vgg_fast::max_pool2x2: the backend 'triton' can't run: CPU tensors need "
        "TRITON_INTERPRET=1, set before Python starts"
    )
