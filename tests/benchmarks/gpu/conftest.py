"""benchmarks/gpu, as far as a machine without a GPU can run it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own(monkeypatch):
    """Steps run in processes of their own, where the checkout can be imported and nothing lasts."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    cudnn = torch.backends.cudnn
    settings = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value
