"""The operators among Python threads, in forked processes, and in a DataLoader's workers."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.cases import CONVOLUTIONS, Shape
from tests.operators import Arguments, assert_same, forward_backward, random_arguments

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


class Features(Dataset):
    """Items that a fused convolution computes."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        results = forward_backward("conv3x3_relu_pool", self.arguments)
        return results.output + index


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_data_loader_workers(threads) -> None:
    threads(2)
    arguments = random_arguments("conv3x3_relu_pool", SHAPE, torch.float32)
    threads(1)
    expected = forward_backward("conv3x3_relu_pool", arguments).output  # as a worker computes it
    threads(2)
    forward_backward("conv3x3_relu_pool", arguments)  # the parent's pool of threads is running
    loader = DataLoader(
        Features(arguments), num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for index, batch in enumerate(loader):
        assert torch.equal(batch[0], expected + index)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_with_one_thread(threads) -> None:
    threads(2)
    arguments = random_arguments("conv3x3_relu", SHAPE, torch.float32)
    forward_backward("conv3x3_relu", arguments)
    threads(1)
    expected = forward_backward("conv3x3_relu", arguments)
    child = os.fork()
    if child == 0:
        try:
            assert_same(forward_backward("conv3x3_relu", arguments), expected)
            os._exit(0)
        except BaseException:
            os._exit(1)
    deadline = time.monotonic() + 60
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            break
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the forked process hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status) == 0
