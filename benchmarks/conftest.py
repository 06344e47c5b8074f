"""What the suites under pytest-benchmark share: ``pytest benchmarks``.

One group for each work, one row for each contender. pytest-benchmark runs them one after another;
for numbers to compare closely, ``python -m benchmarks.run`` has them take turns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.peers import PEERS, TORCH_PEERS, Unavailable
from benchmarks.timing import turn
from benchmarks.work import Work, works

NETWORKS = ("network-", "fast-", "vgg16-")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vgg_fast")
    group.addoption("--quick", action="store_true", help="tiny networks and layers: a smoke test")
    group.addoption("--layer-batch", type=int, default=1, help="images of a single layer's batch")
    group.addoption("--threads", type=int, default=None, help="CPU threads of every contender")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--threads") is not None:
        torch.set_num_threads(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes ``work`` and ``peer`` every pair that its function's name asks for."""
    if "work" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    whole = metafunc.function.__name__ == "test_network"
    pairs = []
    for work in works(option("--quick"), option("--layer-batch")).values():
        if work.name.startswith(NETWORKS) != whole:
            continue
        peers = tuple(PEERS) if whole and work.kind == "forward" else TORCH_PEERS
        pairs += [pytest.param(work, peer, id=f"{work.name}-{peer}") for peer in peers]
    metafunc.parametrize(("work", "peer"), pairs)


@functools.lru_cache(maxsize=1)
def _exact(work: Work) -> list[Tensor]:
    return reference.exact(work)


@pytest.fixture
def measure(benchmark, request: pytest.FixtureRequest) -> Callable[[Work, str], None]:
    """Check a contender's results against fp64, then time it."""

    def measured(work: Work, name: str) -> None:
        peer = PEERS[name]
        try:
            benchmark.extra_info["version"] = peer.version()
            call = peer.prepare(work)
        except Unavailable as reason:
            pytest.skip(f"{name} {reason}")
        error = reference.error(call.results(call.run(call.setup())), _exact(work))
        benchmark.extra_info |= {"error": error, "threads": torch.get_num_threads()}
        assert error <= reference.limit(work, peer.precision), "it computes something else"
        benchmark.group = work.title
        if work.kind == "backward":
            option = request.config.getoption
            rounds = int(float(option("benchmark_max_time")) / turn(call, 1))
            rounds = max(option("benchmark_min_rounds"), min(rounds, 1000))
            benchmark.pedantic(call.run, setup=lambda: ((call.setup(),), {}), rounds=rounds)
        else:
            benchmark(call.run, None)

    return measured
