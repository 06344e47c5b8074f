"""What the suites under pytest-benchmark share: ``pytest benchmarks``.

One group for each work, one row for each peer; ``work`` and ``peer`` are parameters, so
``--benchmark-group-by=param:peer``, ``--benchmark-json`` and ``--benchmark-compare`` do what they
do elsewhere. pytest-benchmark runs the peers one after another; for numbers to compare closely,
``python -m benchmarks.run`` has them take turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import cost, reference
from benchmarks.peers import DEFAULT_PEERS, PEERS, Unavailable, precision
from benchmarks.timing import turn
from benchmarks.work import Work, works

# The suites, by the function's name; single operators are few and quick, and all are run.
SUITES: dict[str, Callable[[Work], bool]] = {
    "test_operator": lambda work: work.level == "operator",
    "test_block": lambda work: work.level == "block",
    "test_network": lambda work: work.level == "network" and work.kind != "training step",
    "test_training_step": lambda work: work.kind == "training step",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vgg_fast")
    group.addoption("--quick", action="store_true", help="tiny networks and layers: a smoke test")
    group.addoption(
        "--all-shapes",
        action="store_true",
        help="every network at every batch of benchmarks/shapes.py; hours on a CPU. "
        "-k and a test's full name choose among all of them anyway",
    )
    group.addoption(
        "--layer-batch", type=int, default=1, help="images of a layer's or block's batch"
    )
    group.addoption("--threads", type=int, default=None, help="CPU threads of every peer")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--threads") is not None:
        torch.set_num_threads(config.getoption("--threads"))


def _works(config: pytest.Config) -> dict[str, Work]:
    return works(config.getoption("--quick"), config.getoption("--layer-batch"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes ``work`` and ``peer`` every pair of its suite."""
    if "work" not in metafunc.fixturenames:
        return
    config = metafunc.config
    named = config.getoption("keyword") or any("::" in argument for argument in config.args)
    every = config.getoption("--all-shapes") or named
    belongs = SUITES[metafunc.function.__name__]
    chosen = [
        work.name
        for work in _works(config).values()
        if belongs(work) and (every or work.in_report or work.level != "network")
    ]
    peers = PEERS if named else DEFAULT_PEERS
    pairs = [pytest.param(work, peer, id=f"{work}-{peer}") for work in chosen for peer in peers]
    metafunc.parametrize(("work", "peer"), pairs)


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Check a peer's results against fp64, then time it."""
    config = request.config
    option = config.getoption

    def measured(work_name: str, name: str) -> None:
        work = dataclasses.replace(_works(config)[work_name], device=option("--device"))
        peer = PEERS[name]
        try:
            benchmark.extra_info["version"] = peer.version()
            for reason in cost.lacking(work):
                raise Unavailable(reason)
            call = peer.prepare(work)
        except Unavailable as reason:
            pytest.skip(f"{name} {reason}")
        error = reference.error(work, call.results(call.run(call.setup())))
        benchmark.extra_info |= {"error": error, "threads": torch.get_num_threads()}
        assert error <= reference.limit(work, precision(peer, work)), "it computes something else"
        benchmark.group = work.title
        if work.kind == "backward":
            rounds = int(float(option("benchmark_max_time")) / turn(call, 1))
            rounds = max(option("benchmark_min_rounds"), min(rounds, 1000))
            benchmark.pedantic(call.run, setup=lambda: ((call.setup(),), {}), rounds=rounds)
        else:
            benchmark(call.run, None)

    return measured
