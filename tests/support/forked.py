"""What test_concurrency.py runs in processes of their own: the operators in forked children."""

from __future__ import annotations

import os
import sys
import time

import torch
from torch.utils.data import DataLoader, Dataset

from tests.support.cases import Shape
from tests.support.operators import Arguments, assert_same, forward_backward, random_arguments

SHAPE = Shape(2, 20, 35, 18, 23)


class Features(Dataset):
    """Items that a fused convolution computes."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        results = forward_backward("conv3x3_relu_pool", self.arguments)
        return results.output + index


def forked_data_loader_workers() -> None:
    torch.set_num_threads(2)
    arguments = random_arguments("conv3x3_relu_pool", SHAPE, torch.float32)
    torch.set_num_threads(1)
    expected = forward_backward("conv3x3_relu_pool", arguments).output  # as a worker computes it
    torch.set_num_threads(2)
    forward_backward("conv3x3_relu_pool", arguments)  # the parent's pool of threads is running
    loader = DataLoader(
        Features(arguments), num_workers=2, multiprocessing_context="fork", timeout=600
    )
    for index, batch in enumerate(loader):
        assert torch.equal(batch[0], expected + index)


def a_forked_process() -> None:
    torch.set_num_threads(2)
    arguments = random_arguments("conv3x3_relu", SHAPE, torch.float32)
    forward_backward("conv3x3_relu", arguments)
    torch.set_num_threads(1)
    expected = forward_backward("conv3x3_relu", arguments)
    child = os.fork()
    if child == 0:
        try:
            assert_same(forward_backward("conv3x3_relu", arguments), expected)
            os._exit(0)
        except BaseException:
            os._exit(1)
    deadline = time.monotonic() + 600
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            break
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            sys.exit("the forked process hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status) == 0


if __name__ == "__main__":
    {f.__name__: f for f in (a_forked_process, forked_data_loader_workers)}[sys.argv[1]]()
