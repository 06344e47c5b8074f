"""How benchmarks.gpu times peers, and compares what they compute."""

from __future__ import annotations

import torch

from benchmarks.gpu import clock


class FakeClock:
    """Each call takes the milliseconds that it returns, and is written down."""

    def __init__(self) -> None:
        self.log: list[tuple[float, int]] = []

    def __call__(self, call, repeats: int) -> float:
        self.log.append((call(), repeats))
        return self.log[-1][0]


def test_peers_take_turns_and_run_equally_long() -> None:
    fake = FakeClock()
    times = clock.interleaved({"vgg_fast": lambda: 2.0, "eager": lambda: 5.0}, fake, 3, 10)
    assert times == {"vgg_fast": [2.0] * 3, "eager": [5.0] * 3}
    assert fake.log == [(2.0, 1), (5.0, 1), *[(2.0, 5), (5.0, 2)] * 3]


def test_summary_gives_medians_spread_and_ratios() -> None:
    found = clock.summary({"vgg_fast": [1.0, 2.0, 9.0], "eager": [3.0, 4.0, 5.0]})
    assert found["eager"] == {
        "median_ms": 4.0,
        "fastest_ms": 3.0,
        "slowest_ms": 5.0,
        "relative_time": 2.0,
    }


def test_a_peer_that_computes_something_else_is_named() -> None:
    ones = torch.ones(4)
    found = clock.disagreements({"vgg_fast": ones, "eager": [ones * 1.001], "compile": ones * 2})
    assert list(found) == ["compile"] and "differs from vgg_fast's by 1.0e+00" in found["compile"]
