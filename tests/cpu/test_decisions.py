"""benchmarks.decisions counts what rounding decides."""

from __future__ import annotations

import torch

from benchmarks import decisions


def test_a_quick_count_has_every_algorithm() -> None:
    found = decisions.measured(quick=True)
    assert set(found["algorithms"]) == set(decisions.ALGORITHMS)
    for shares in found["algorithms"].values():
        assert 0 < shares["error"] < 2e-6 and shares["relus"] < 1e-3 and shares["windows"] < 1e-2


def test_what_differs_is_counted() -> None:
    layer = next(decisions.layers(1, 32, 1 / 16))
    assert decisions.counted(layer, "auto")["relus"] == 0
    flipped = layer._replace(full=-layer.full, windows=decisions.winners((-layer.full).relu()))
    counts = decisions.counted(flipped, "direct")
    assert counts["relus"] == int((layer.full != 0).sum())
    assert 0 < counts["windows"] <= layer.windows.numel()


def test_a_window_of_zeros_has_no_winner() -> None:
    assert torch.equal(decisions.winners(torch.zeros(1, 1, 2, 2)), torch.tensor([[[[-1]]]]))
