"""What each rank has for itself: its GPU, its threads, and its random state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vgg_fast.train import ranks
from vgg_fast.train.config import TrainingError


def take_device(name: str) -> None:
    """From here on, "cuda" is this process's own GPU.

    Raises:
        TrainingError: there are fewer GPUs than processes, or ``name`` is that of a single one.
    """
    device = torch.device(name)
    if ranks.size() == 1 or device.type != "cuda":
        return
    if device.index is not None:
        raise TrainingError(
            f"--device {name} names one GPU, and each of {ranks.size()} processes takes its own: "
            "use --device cuda"
        )
    count = torch.cuda.device_count()
    if ranks.local_rank() >= count:
        raise TrainingError(
            f"there is no GPU for process {ranks.local_rank()} of this machine, where torch sees "
            f"{count}: start at most as many with --nproc-per-node, or use --device cpu"
        )
    torch.cuda.set_device(ranks.local_rank())


def fair_threads() -> int | None:
    """This process's share of the machine's cores; None leaves the number as it is.

    torchrun sets OMP_NUM_THREADS to 1 where it isn't set, and any other number is the user's.
    """
    if ranks.size() == 1 or os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    return max(1, _cores() // ranks.local_size())


def _cores() -> int:
    """Those that this process may use, of which each may run two threads."""
    processors = os.sched_getaffinity(0)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(topology.format(n)).read_text("ascii") for n in processors})
    except OSError:
        return len(processors)


def seed(number: int, step: int = 0) -> None:
    """Let dropout differ from rank to rank; the first keeps the random state that it has."""
    if ranks.rank() > 0:
        torch.manual_seed((number + (ranks.rank() << 32) + (step << 16)) % 2**63)


def random_states(device: torch.device) -> dict[str, Any]:
    """Of all ranks, as a checkpoint keeps them: the first's, and a list of the others'."""
    own = {"random": torch.get_rng_state()}
    if device.type == "cuda":
        own["random_cuda"] = torch.cuda.get_rng_state(device)
    first, *others = ranks.of_all(own)
    return {**first, "random_of_others": others} if others else {**first}


def restore_random(state: dict[str, Any], device: torch.device, number: int) -> None:
    """Go back to :func:`random_states`; other ranks than there were are seeded with ``number``."""
    found = [state, *state.get("random_of_others", [])]
    if ranks.rank() > 0 and len(found) != ranks.size():
        seed(number, state["step"])
        return
    own = found[ranks.rank()] if ranks.size() > 1 else state
    torch.set_rng_state(own["random"])
    if device.type == "cuda" and "random_cuda" in own:
        torch.cuda.set_rng_state(own["random_cuda"], device)
