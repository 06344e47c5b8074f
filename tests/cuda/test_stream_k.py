"""The cut of a weight's gradient into equal runs: csrc/cuda/common/stream_k.cuh, by g++ alone."""

from __future__ import annotations

import ctypes
import itertools
from collections import defaultdict

import pytest

from tests.support.emulated import emulation, longs
from tests.support.stream_k import Cut

# Fewer and more tiles than run at a time; steps below, at and above the least of a run, prime ones
CASES = list(itertools.product((1, 3, 5, 12, 40), (1, 7, 8, 9, 31, 49, 200, 1009), (1, 4, 12)))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulation(tmp_path_factory, "cuda_stream_k.cpp")))
    loaded.slots.restype = loaded.pieces.restype = ctypes.c_int64
    return loaded


def cut_of(library, tiles, steps, at_a_time, most_waves=1, most_steps=2**31 - 1) -> Cut:
    numbers = (ctypes.c_int32 * 4)()
    sizes = (tiles, steps, at_a_time, most_waves, most_steps)
    library.cut_into_runs(*map(ctypes.c_int64, sizes), numbers)
    return Cut(*numbers)


def pieces_of(library, cut: Cut) -> list[tuple[int, int, int, int, int]]:
    """Run, tile, first step, steps and slot of each piece, in the order of the runs."""
    room = longs(*[0] * 5 * (cut.runs + cut.tiles))
    count = library.pieces((ctypes.c_int32 * 4)(*cut), room)
    return [tuple(room[5 * i : 5 * i + 5]) for i in range(count)]


@pytest.mark.parametrize(("tiles", "steps", "at_a_time"), CASES)
def test_every_step_of_every_tile_is_in_one_piece(library, tiles, steps, at_a_time):
    cut = cut_of(library, tiles, steps, at_a_time)
    taken = defaultdict(list)
    for _, tile, first, count, _ in pieces_of(library, cut):
        assert count > 0
        taken[tile] += range(first, first + count)
    assert {tile: sorted(found) for tile, found in taken.items()} == {
        tile: list(range(steps)) for tile in range(tiles)
    }


@pytest.mark.parametrize(("tiles", "steps", "at_a_time"), CASES)
def test_runs_are_equal_but_for_the_last(library, tiles, steps, at_a_time):
    cut = cut_of(library, tiles, steps, at_a_time)
    of_run = defaultdict(int)
    for run, _, _, count, _ in pieces_of(library, cut):
        of_run[run] += count
    *others, last = (of_run[run] for run in range(cut.runs))
    assert set(others) <= {cut.run_steps} and 0 < last <= cut.run_steps
    assert cut.runs <= at_a_time


@pytest.mark.parametrize(("tiles", "steps", "at_a_time"), CASES)
def test_a_tile_s_pieces_lie_in_slots_one_behind_the_other(library, tiles, steps, at_a_time):
    cut = cut_of(library, tiles, steps, at_a_time)
    numbers = (ctypes.c_int32 * 4)(*cut)
    slots = defaultdict(list)
    for _, tile, _, _, slot in pieces_of(library, cut):
        slots[tile].append(slot)
    for tile, found in slots.items():
        ends = longs(0, 0)
        library.slots_of_tile(numbers, tile, ends)
        assert found == list(range(ends[0], ends[1] + 1))
    every = [slot for found in slots.values() for slot in found]
    assert len(set(every)) == len(every) and max(every) < library.slots(numbers)


@pytest.mark.parametrize(("tiles", "steps", "at_a_time"), CASES)
def test_blocks_at_work_read_the_same_pixels(library, tiles, steps, at_a_time):
    # One place for each run of a tile, and one for all rests of tiles before.
    cut = cut_of(library, tiles, steps, at_a_time)
    if cut.run_steps > steps:
        return  # a block goes through whole tiles
    places, elapsed = defaultdict(set), defaultdict(int)
    for run, _, first, count, _ in pieces_of(library, cut):
        for step in range(count):
            places[elapsed[run] + step].add(first + step)
        elapsed[run] += count
    assert max(map(len, places.values())) <= -(-steps // cut.run_steps) + 1


def test_little_work_is_left_in_whole_tiles(library):
    assert cut_of(library, 72, 4, 132) == (72, 4, 72, 4)
    assert cut_of(library, 72, 15, 132).run_steps == 9
    assert cut_of(library, 3, 49, 132).run_steps == 8


def test_more_waves_are_taken_only_by_long_runs(library):
    for steps in (1, 9, 50, 300, 2000, 30000):
        cut = cut_of(library, 36, steps, 132, most_waves=4)
        assert cut.runs <= 132 or cut.run_steps >= 64
    assert 3 * 132 < cut.runs <= 4 * 132


def test_a_bound_on_a_run_takes_more_waves(library):
    for tiles, steps in itertools.product((1, 5, 36, 144), (1, 255, 256, 257, 10_000, 401_408)):
        cut = cut_of(library, tiles, steps, 132, most_waves=4, most_steps=256)
        assert cut.run_steps <= 256
        assert cut.runs <= 132 or cut.busy_share() > 0.95


def test_as_many_steps_as_a_gpu_s_memory_holds(library):
    cut = cut_of(library, 4096, 2**25, 132)
    first, last = pieces_of(library, cut)[0], pieces_of(library, cut)[-1]
    assert first == (0, 0, 0, 2**25, 0)
    assert last[0] == cut.runs - 1 and last[1] == 4095 and last[2] + last[3] == 2**25
