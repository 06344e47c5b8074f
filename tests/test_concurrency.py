"""The operators among Python threads, in forked processes, and in a DataLoader's workers."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.cases import CONVOLUTIONS, Shape
from tests.operators import assert_same, forward_backward, random_arguments

SHAPE = Shape(2, 20, 35, 18, 23)


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_two_python_threads_at_once(op: str, threads) -> None:
    threads(2)
    cases = [random_arguments(op, SHAPE, torch.float32, seed) for seed in range(2)]
    expected = [forward_backward(op, case) for case in cases]
    failures: list[BaseException] = []
    start = threading.Barrier(len(cases))

    def work(index: int) -> None:
        try:
            torch.set_num_threads(2)  # each Python thread has a count of its own
            start.wait()
            for _ in range(20):
                assert_same(forward_backward(op, cases[index]), expected[index])
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures


@pytest.mark.parametrize("test", ["a_forked_process", "forked_data_loader_workers"])
def test_forks(test: str) -> None:
    """In a process of its own: autograd refuses to run in a child if its threads ran before."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.forked", test],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert run.returncode == 0, run.stderr
