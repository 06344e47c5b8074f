"""The operators among Python threads, in forked processes, and in a DataLoader's workers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.support.cases import CONVOLUTIONS, Shape
from tests.support.operators import assert_same, forward_backward, random_arguments

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
        [sys.executable, "-m", "tests.support.forked", test],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_one_pool_of_threads() -> None:
    """The kernels run on torch's threads: no second OpenMP runtime, and no thread of their own."""
    code = """
import os, torch, threadpoolctl
torch.set_num_threads(2)
image, weight = torch.randn(2, 64, 28, 28), torch.randn(64, 64, 3, 3)
torch.nn.functional.conv2d(image, weight, padding=1)

def pools():
    return sorted((p["filepath"], p["num_threads"]) for p in threadpoolctl.threadpool_info())

def threads():
    return len(os.listdir("/proc/self/task"))

before = pools(), threads()
import vgg_fast.functional
for algorithm in ("winograd4", "direct"):
    with vgg_fast.cpu.use(algorithm):
        weight = weight.detach().requires_grad_()
        vgg_fast.functional.conv3x3_relu_pool(image, weight).sum().backward()
assert (pools(), threads()) == before, (before, pools(), threads())
assert [count for _, count in pools()].count(2) >= 1, pools()
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
