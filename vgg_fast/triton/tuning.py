"""Which tile serves a call on this machine: measured here, from the shipped table, or tuned now.

A call that the shipped table serves only with a last resort is tuned when it comes for the first
time, within the seconds that ``VGG_FAST_AUTOTUNE`` grants a process (20; 0 tunes nothing, and makes
a run predictable). Winners stay on disk, so the next process finds them.

Triton's own autotuner tunes one kernel, whose arguments are there; here a tile decides which kernel
runs, and how large its workspace is (docs/performance/gpu.md). The timer, ``do_bench``, is
Triton's. Tuning runs on tensors of its own, never on the caller's, and no tile is taken whose
result isn't the table's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vgg_fast.dispatch import environment, table, tiles
from vgg_fast.dispatch.tiles import Call, Row, Tile
from vgg_fast.triton import launch, trial

QUIET = 2.0  # seconds after which tuning says what takes so long
BYTES = 1 << 28  # of the largest tensor that tuning makes; larger batches are tuned as a part
TYPES = {
    "half": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
}

_lock = threading.RLock()
_spent = 0.0
_chosen: dict[tuple[Call, torch.device], Choice] = {}


class Choice:
    """The tile that serves a call, and what was made ready for it."""

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        self.ready: dict[Hashable, Any] = {}
        """Plans and launches, by what else they depend on; forgotten with the choice."""


class Timing(NamedTuple):
    """What became of one tile."""

    tile: Tile
    milliseconds: float
    problem: str = ""


def choice_for(call: Call, device: torch.device) -> Choice:
    """The tile that ``call`` takes on ``device``; looked up once, then remembered."""
    return _chosen.get((call, device)) or _choose(call, device)


def _choose(call: Call, device: torch.device) -> Choice:
    with _lock:
        row = row_for(call, device)
        if row.last_resort and may_tune(device):
            if torch.cuda.is_current_stream_capturing():
                return Choice(row.tile)  # nothing can be timed here; the next call may
            row = tune(call, device, seconds_left())[0]
            if not row.last_resort:
                remember([row], device)
        choice = _chosen[call, device] = Choice(row.tile)
        return choice


def row_for(call: Call, device: torch.device) -> Row:
    """The row that serves ``call``: of this machine's measurements, else of the shipped table."""
    family = launch.family(device)
    row = tiles.find(measured_here(device), family, call)
    shipped = table.preferring(tiles.shipped(), launch.name(device))
    row = row or tiles.find(shipped, family, call)
    assert row, f"the tile table has no row for {call}"  # its last rows fit everything
    return row


def may_tune(device: torch.device) -> bool:
    """Whether tuning is possible, and allowed for some seconds more."""
    return device.type == "cuda" and seconds_left() > 0


def seconds_left() -> float:
    """What is left of the seconds that ``VGG_FAST_AUTOTUNE`` grants.

    Raises:
        ValueError: it isn't a number.
    """
    return environment.autotune_seconds() - _spent


# ------------------------------------------------------------------------------------------ tuning


def tune(
    call: Call,
    device: torch.device,
    seconds: float,
    measure: Callable[[Call, Tile, torch.device], tuple[float, Tensor]] | None = None,
) -> tuple[Row, list[Timing]]:
    """Time the candidates until ``seconds`` are over; the winner's row, and all timings.

    If none could be timed, the row is the table's own.

    Args:
        call: what is computed.
        device: the GPU to tune for.
        seconds: when they are over, no further tile is timed.
        measure: gives the milliseconds of a call with a tile, and its result.
    """
    global _spent
    started = time.monotonic()
    measure = measure or _measure
    family = launch.family(device)
    found = candidates(call, family)
    part = _small_enough(call)
    timings: list[Timing] = []
    expected: Tensor | None = None
    said = False
    # Compiling takes ten times as long as timing: all cores do it, ahead of what is timed.
    threads = ThreadPoolExecutor(max(1, min(16, (os.cpu_count() or 1) - 1)))
    compiled = [threads.submit(_compile, part, tile, device) for tile in found]
    for tile, ready in zip(found, compiled, strict=True):
        elapsed = time.monotonic() - started
        if timings and elapsed > seconds:
            break
        if elapsed > QUIET and not said:
            said = True
            _say(f"tuning {_name(call)}: {len(found)} tiles, up to {seconds:.0f} s ...")
        try:
            ready.result()
            milliseconds, result = measure(part, tile, device)
        except Exception as error:  # too large for this GPU, say: no winner, and no reason to stop
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            timings.append(Timing(tile, float("inf"), reason))
            continue
        expected = result if expected is None else expected
        difference = _difference(result, expected)
        wrong = "" if difference < 1e-2 else f"its result differs by {difference:.1e}"
        timings.append(Timing(tile, float("inf") if wrong else milliseconds, wrong))
    threads.shutdown(wait=False, cancel_futures=True)
    elapsed = time.monotonic() - started
    _spent += elapsed
    if said:
        _say(f"{len(timings)} tiles in {elapsed:.0f} s; VGG_FAST_AUTOTUNE=0 turns this off")
    best = min(timings, key=lambda timing: timing.milliseconds)
    if best.milliseconds == float("inf"):
        return row_for(call, device), timings
    row = measured_row(call, family, best.tile, _origin(device, best), launch.name(device))
    return row, timings


def candidates(call: Call, family: str) -> list[Tile]:
    """The tiles that can compute ``call``, the likeliest first, because time may end the search.

    The table's own, what is near it, then the other tiles of its arithmetic and what is near those.
    """
    own = tiles.find(tiles.shipped(), family, call)
    rows = [row for row in tiles.shipped() if (row.family, row.kernel) == (family, call.kernel)]
    others = [row.tile for row in rows if row.arithmetic == call.arithmetic]
    first = [own.tile, *_variants(own.tile)] if own else []
    near = [variant for tile in others for variant in _variants(tile)]
    found = dict.fromkeys(tile for tile in [*first, *others, *near] if _possible(tile, call))
    return list(found)


def _variants(tile: Tile) -> Iterator[Tile]:
    for stages in (tile.num_stages - 1, tile.num_stages + 1):
        if 1 <= stages <= 5:
            yield replace(tile, num_stages=stages)
    if tile.descriptors and tile.programs:
        yield replace(tile, flatten=not tile.flatten)
        yield replace(tile, programs=3 - tile.programs, flatten=False)
    for images in (1, 4, 16):  # patches with longer rows, which a box may load faster
        yield replace(tile, images=images)
    yield replace(tile, pixels=tile.pixels // 2)
    if tile.pixels < 256:
        yield replace(tile, pixels=tile.pixels * 2)


def _possible(tile: Tile, call: Call) -> bool:
    if not tile.descriptors:
        return tile.pixels >= 16
    if call.kernel == "wgrad":
        whole = tile.pixels <= 2 * call.n and tile.images == 64  # its pixels are images
    else:
        whole = call.c % tile.block_c == 0
    return whole and call.aligned and call.c % 16 == 0 and call.k % 16 == 0 and tile.pixels >= 32


def measured_row(call: Call, family: str, tile: Tile, origin: str, gpu: str | None = None) -> Row:
    """The row of the table for calls like this one, of batches within a factor of two."""
    low = 1 << (call.n.bit_length() - 1) if call.n else 0
    side = max(call.h, call.w)
    return Row(
        family, call.kernel, call.arithmetic, tile, origin,
        c=(call.c, call.c), k=(call.k, call.k), side=(side, side), batch=(low, max(1, 2 * low - 1)),
        pool=call.pool if call.kernel in ("fprop", "direct", "direct_wgrad") else None, gpu=gpu,
    )  # fmt: skip


def _small_enough(call: Call) -> Call:
    largest = 4 * call.h * call.w * max(call.c, call.k)
    return call._replace(n=max(1, min(call.n, BYTES // largest)))


def _compile(call: Call, tile: Tile, device: torch.device) -> None:
    on_it = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on_it, launch.compiling_only():
        trial.prepare(call, tile, TYPES[call.arithmetic], torch.device("meta")).run()


def _measure(call: Call, tile: Tile, device: torch.device) -> tuple[float, Tensor]:
    ready = trial.prepare(call, tile, TYPES[call.arithmetic], device)
    ready.run()
    result = ready.result().clone()
    return float(triton.testing.do_bench(ready.run, warmup=5, rep=20)), result


def _difference(actual: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    error = float((actual.double() - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def _origin(device: torch.device, best: Timing) -> str:
    return (
        f"measured on {launch.name(device)} with triton {triton.__version__}: "
        f"{best.milliseconds:.4f} ms"
    )


def _name(call: Call) -> str:
    return f"{call.kernel} of {call.n}x{call.c}x{call.h}x{call.w} to {call.k} ({call.arithmetic})"


def _say(text: str) -> None:
    print(f"vgg_fast: {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------- the disk


@functools.cache
def measured_here(device: torch.device) -> tuple[Row, ...]:
    """The rows that were measured on this GPU with this Triton; none if there is no such file."""
    if device.type != "cuda":
        return ()
    try:
        return tiles.read(cache_file(device))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        _say(f"{cache_file(device)} can't be read, and is ignored: {error}")
        return ()


def remember(rows: list[Row], device: torch.device) -> None:
    """Keep measured rows for this process, and for the next if the disk can be written."""
    with _lock:
        every = table.merged(rows, measured_here(device))
        try:
            table.write(cache_file(device), every)
        except OSError as error:
            _say(f"the winner isn't kept: {error}")
        forget()


def forget() -> None:
    """Look everything up again: the file of measured rows, and each call's tile."""
    measured_here.cache_clear()
    _chosen.clear()


def cache_file(device: torch.device) -> Path:
    """Where a GPU's measured rows are: in ``$XDG_CACHE_HOME/vgg_fast`` or ``~/.cache/vgg_fast``."""
    gpu = re.sub(r"\W+", "-", launch.name(device)).strip("-").lower()
    return environment.cache_folder() / f"tiles-{gpu}-triton-{triton.__version__}.json"
