"""How benchmarks.gpu times candidates."""

from __future__ import annotations

from benchmarks.gpu import clock


class FakeClock:
    """Each call takes the milliseconds that it returns, and is written down."""

    def __init__(self) -> None:
        self.log: list[tuple[float, int]] = []

    def __call__(self, call, repeats: int) -> float:
        self.log.append((call(), repeats))
        return self.log[-1][0]


def test_candidates_take_turns_and_run_equally_long() -> None:
    fake = FakeClock()
    calls = {"vgg_fast": lambda: 2.0, "eager": lambda: 5.0}
    times = list(clock.interleaved(calls, fake, 3, 10))
    begun = [("vgg_fast", None), ("eager", None)]
    assert times == begun + [("vgg_fast", 2.0), ("eager", 5.0)] * 3
    assert fake.log == [(2.0, 1), (5.0, 1), *[(2.0, 5), (5.0, 2)] * 3]


def test_whoever_runs_first_was_named_before() -> None:
    """So that a candidate that hangs when it is timed has a name."""
    fake = FakeClock()
    for name, taken in clock.interleaved({"hangs": lambda: 1.0}, fake, 1, 10):
        assert (name, taken, fake.log) == ("hangs", None, [])
        break


def test_summary_gives_medians_spread_and_ratios() -> None:
    times = {"vgg_fast": [1.0, 2.0, 9.0], "eager": [3.0, 4.0, 5.0]}
    spread = {"median_ms": 4.0, "fastest_ms": 3.0, "slowest_ms": 5.0}
    assert clock.summary(times, "vgg_fast")["eager"] == {**spread, "relative_time": 2.0}
    assert clock.summary(times, "another")["eager"] == spread
