"""The processes of one run, as torchrun starts them: who they are, what they share, how they end.

A rank is one of these processes, and its number. Where there is only one, as without torchrun,
nothing here does anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from vgg_fast.train import output
from vgg_fast.train.config import TrainingError

# A rank that dies closes its connections, and the others know at once. This is for machines that
# vanish without a word; a rank that saves, or compiles, may be late by less.
TIMEOUT = timedelta(minutes=5)
# For the one that fetches the data.
DATA_TIMEOUT = timedelta(minutes=30)
# What torchrun says to each process.
ENVIRONMENT = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    *("MASTER_ADDR", "MASTER_PORT"),
)

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A process among those of its run, and among those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    machine: int = 0


_here = Place()
_store: dist.Store | None = None


def rank() -> int:
    """The number of this process."""
    return _here.rank


def size() -> int:
    """How many processes there are."""
    return _here.size


def local_rank() -> int:
    """The number of this process among those of this machine."""
    return _here.local_rank


def local_size() -> int:
    """How many processes are on this machine."""
    return _here.local_size


def is_first() -> bool:
    """Whether this is the process that prints and writes files."""
    return _here.rank == 0


# ------------------------------------------------------------------------------ beginning and end


def find_place() -> None:
    """Learn from the environment who this process is; only the first prints from here on.

    Raises:
        TrainingError: the environment names several processes, but not in torchrun's way.
    """
    global _here
    _here = Place()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise TrainingError(
            f"WORLD_SIZE is set and {missing[0]} isn't: start several processes with torchrun, or "
            "unset WORLD_SIZE"
        )
    try:
        numbers = [int(os.environ[name]) for name in ENVIRONMENT[:5]]
    except ValueError:
        raise TrainingError(
            "the environment's RANK and WORLD_SIZE aren't numbers: start several processes with "
            "torchrun, or unset WORLD_SIZE"
        ) from None
    _here = Place(*numbers)
    if not is_first():
        output.give_up()


@contextlib.contextmanager
def first_of_machine_speaks() -> Iterator[None]:
    """A block whose standard error shows once, as all processes of a machine write the same."""
    if _here.local_rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The block in which the ranks can talk to each other.

    Raises:
        TrainingError: they can't be reached.
    """
    global _store
    if _here.size == 1:
        yield
        return
    try:
        _store, _, _ = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        is_gpu = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_gpu else "gloo",
            store=_store,
            rank=_here.rank,
            world_size=_here.size,
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the other processes can't be reached at {os.environ['MASTER_ADDR']}, port "
            f"{os.environ['MASTER_PORT']}: look at what they say, and give every machine's "
            "torchrun the same --nnodes and --rdzv-endpoint"
        ) from error
    yield
    # Not after an error: it might wait for a rank that has ended.
    dist.destroy_process_group()
    _store = None


def leave(code: int) -> NoReturn:
    """End this process with ``code``.

    Of several ranks each ends at once, without Python's own ending: a thread of Gloo may let go of
    its last tensor just then, which aborts the process.
    """
    if _here.size == 1:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def complain(message: object) -> None:
    """Print why the run ends to standard error, unless another rank has said why already."""
    if _is_first_to_complain():
        output.complain(message)
        _tell_torchrun(str(message))


def is_of_others(error: Exception) -> bool:
    """Whether ``error`` comes from the end of another rank; it is told, if that one didn't."""
    if _here.size == 1:
        return False
    if not _is_first_to_complain():
        return True
    if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
        return False
    output.complain(
        "another process of this run has ended, or doesn't answer any more, and so this one ends: "
        "--resume continues from the state that was saved last"
    )
    return True


def _is_first_to_complain() -> bool:
    if _store is None:
        return _here.local_rank == 0
    try:
        return _store.add("complaints", 1) == 1
    except RuntimeError:  # whoever keeps it has gone: said twice is better than never
        return True


def _tell_torchrun(message: str) -> None:
    """Have torchrun show ``message`` where it would say that it knows no reason."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is not None and _here.size > 1:
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            text = json.dumps({"message": {"message": message, "extraInfo": details}})
            Path(file).write_text(text, "utf-8")


# ------------------------------------------------------------------------------- what they share


def from_first(value: T) -> T:
    """The ``value`` of the first rank."""
    if _here.size == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def of_all(value: T) -> list[T]:
    """The ``value`` of each rank."""
    if _here.size == 1:
        return [value]
    found: list[Any] = [None] * _here.size
    dist.all_gather_object(found, value)
    return found


def most(*values: float) -> list[float]:
    """The highest that any rank has, of each of ``values``."""
    if _here.size == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return shared.tolist()


def total(values: Tensor) -> Tensor:
    """The sum of ``values`` over all ranks."""
    if _here.size == 1:
        return values
    shared = values.clone()
    dist.all_reduce(shared)
    return shared


def wait_for_all() -> None:
    """Return when every rank has come here."""
    most(0)


def first_of_machine_first(make: Callable[[], T]) -> T:
    """``make()`` on one process of each machine, and then on the others, which find its files."""
    if _store is None:
        return make()
    key = f"made on {_here.machine}"
    if _here.local_rank == 0:
        try:
            return make()
        finally:  # if it failed, the others will
            _store.set(key, "")
    _store.wait([key], DATA_TIMEOUT)
    return make()


def require_same(values: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    """Refuse ranks that were started with different options.

    Args:
        values: of all options.
        but: names of those that may differ.

    Raises:
        TrainingError: on every rank; the message names the first difference.
    """
    # As text, because "nan" doesn't equal itself.
    found = of_all({name: str(value) for name, value in values.items() if name not in but})
    for other, theirs in enumerate(found):
        for name, value in found[0].items():
            if theirs[name] != value:
                option = "--" + name.replace("_", "-")
                raise TrainingError(
                    f"process {other} has {option} {theirs[name]}, and process 0 has {option} "
                    f"{value}: start all of them with the same options"
                )


def require_same_images(digest: str) -> None:
    """Refuse ranks that found different data.

    Raises:
        TrainingError: on every rank.
    """
    found = of_all(digest)
    for other, theirs in enumerate(found):
        if theirs != found[0]:
            raise TrainingError(
                f"process {other} has found other images than process 0: name the folder with "
                "the same data on every machine with --data-root"
            )


def require_equal_parts(batch_size: int) -> None:
    """Refuse a batch that can't be cut evenly.

    Raises:
        TrainingError: on every rank.
    """
    rest = batch_size % _here.size
    if rest:
        nearest = max(batch_size - rest, _here.size)
        raise TrainingError(
            f"a batch of {batch_size} images can't be cut into {_here.size} equal parts, one for "
            f"each process: give --batch-size {nearest}, or another multiple of {_here.size}"
        )
