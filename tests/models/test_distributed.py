"""Wrappers around training: DDP on two processes, activation checkpointing, autocast."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.support.seed import assert_same_numbers, gradients_of, images, seed_network

RANK = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.support.seed import gradients_of, images, seed_network

rank, store, result = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
net = seed_network(dropout=0.0)
ddp = DistributedDataParallel(net)
found = gradients_of(net, ddp, images(4)[2 * rank : 2 * rank + 2])
torch.save(found, f"{result}.{rank}")
dist.destroy_process_group()
"""


@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)
def test_ddp_averages_the_gradients_of_two_processes(tmp_path) -> None:
    net = seed_network(dropout=0.0)
    halves = [gradients_of(net, net, images(4)[half]) for half in (slice(0, 2), slice(2, 4))]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store"), str(tmp_path / "out")],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    for rank in range(2):
        found = torch.load(tmp_path / f"out.{rank}")
        expected = {name: (halves[0][name] + halves[1][name]) / 2 for name in found}
        expected["logits"] = halves[rank]["logits"]
        assert_same_numbers(found, expected)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    net = seed_network(dropout=0.0)
    expected = gradients_of(net, net, images())
    whole = gradients_of(net, lambda x: checkpoint(net, x, use_reentrant=False), images())
    parts = gradients_of(
        net, lambda x: checkpoint_sequential(net, 3, x, use_reentrant=False), images()
    )
    for found in (whole, parts):
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


def test_activation_checkpointing_with_dropout_and_autocast() -> None:
    net = seed_network()
    found = []
    for call in (net, lambda x: checkpoint_sequential(net, 3, x, use_reentrant=False)):
        torch.manual_seed(5)

        def step(x, call=call):
            with torch.autocast("cpu", torch.bfloat16):
                return call(x)

        found.append(gradients_of(net, step, images()))
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor), name
