"""How tiles are tuned, kept and found again. A clock that the tests set stands for the GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this platform")

from vgg_fast.dispatch import table, tiles
from vgg_fast.dispatch.tiles import Call, Row, Tile
from vgg_fast.triton import launch, tuning

GPU = torch.device("cuda", 0)
WIDE = Call("fprop", "half", 256, 28, 28, 256, 512)
NARROW = Call("fprop", "half", 100, 7, 9, 20, 24, True)


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """A Hopper GPU that can't launch anything, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VGG_FAST_AUTOTUNE", raising=False)
    monkeypatch.setattr(launch, "family", lambda device: "sm_90")
    monkeypatch.setattr(launch, "name", lambda device: "NVIDIA Test 9000")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_spent", 0.0)
    monkeypatch.setattr(tuning, "_compile", lambda call, tile, device: None)
    tuning.forget()
    yield
    tuning.forget()


class Measured:
    """Milliseconds for each tile, 5 by default; "wrong" and "fails" as their names say."""

    def __init__(self, **milliseconds: float) -> None:
        self.milliseconds, self.calls = milliseconds, []

    def __call__(self, call: Call, tile: Tile, device: torch.device):
        self.calls.append((call, tile))
        if tile.num_stages == self.milliseconds.get("fails"):
            raise RuntimeError("out of resource: shared memory\nand more")
        wrong = tile.num_stages == self.milliseconds.get("wrong")
        return self.milliseconds.get(f"pixels_{tile.pixels}", 5.0), torch.full((4,), 1.0 + wrong)


@pytest.fixture
def measured(monkeypatch):
    def use(**milliseconds: float) -> Measured:
        fake = Measured(**milliseconds)
        monkeypatch.setattr(tuning, "_measure", fake)
        return fake

    return use


def test_what_the_table_serves_is_never_tuned(measured) -> None:
    fake = measured()
    row = tiles.find(tiles.shipped(), "sm_90", WIDE)
    assert tuning.choice_for(WIDE, GPU).tile == row.tile and not fake.calls


def test_what_it_does_not_is_tuned_once_and_kept_on_disk(measured, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tuning.time, "monotonic", lambda: 0.0)
    fake = measured(pixels_32=2.0)
    tile = tuning.choice_for(NARROW, GPU).tile
    assert tile.pixels == 32 and len(fake.calls) > 3
    tuned = len(fake.calls)
    assert tuning.choice_for(NARROW, GPU).tile == tile
    tuning.forget()  # as another process would start
    assert tuning.choice_for(NARROW, GPU).tile == tile and len(fake.calls) == tuned
    (row,) = json.loads(tuning.cache_file(GPU).read_text())["rows"]
    assert row["origin"].startswith("measured on NVIDIA Test 9000 with triton")
    assert row["batch"] == [64, 127] and row["pool"] is True
    assert capsys.readouterr().err == ""  # it took no two seconds


def test_a_batch_of_another_size_class_is_tuned_for_itself(measured) -> None:
    fake = measured()
    tuning.choice_for(NARROW, GPU)
    tuned = len(fake.calls)
    tuning.choice_for(NARROW._replace(n=65), GPU)
    assert len(fake.calls) == tuned
    tuning.choice_for(NARROW._replace(n=8), GPU)
    assert len(fake.calls) > tuned


def test_autotune_0_tunes_nothing(measured, monkeypatch) -> None:
    monkeypatch.setenv("VGG_FAST_AUTOTUNE", "0")
    fake = measured(pixels_32=2.0)
    row = tiles.find(tiles.shipped(), "sm_90", NARROW)
    assert tuning.choice_for(NARROW, GPU).tile == row.tile and not fake.calls
    assert not tuning.cache_file(GPU).exists()


def test_autotune_must_be_a_number(measured, monkeypatch) -> None:
    monkeypatch.setenv("VGG_FAST_AUTOTUNE", "no")
    with pytest.raises(ValueError, match="VGG_FAST_AUTOTUNE='no' isn't a number"):
        tuning.choice_for(NARROW, GPU)


def test_the_seconds_of_a_process_are_an_end(measured, monkeypatch, capsys) -> None:
    now = [0.0]
    monkeypatch.setattr(tuning.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("VGG_FAST_AUTOTUNE", "10")
    fake = measured()

    def slow(call: Call, tile: Tile, device: torch.device):
        now[0] += 3.0
        return fake(call, tile, device)

    monkeypatch.setattr(tuning, "_measure", slow)
    tuning.choice_for(NARROW, GPU)
    assert len(fake.calls) == 4  # the fourth begins at 9 seconds
    tuning.choice_for(NARROW._replace(c=22), GPU)
    assert len(fake.calls) == 4
    said = capsys.readouterr().err.splitlines()
    assert "tuning fprop of 100x20x7x9 to 24 (half)" in said[0] and "up to 10 s" in said[0]
    assert said[1] == "vgg_fast: 4 tiles in 12 s; VGG_FAST_AUTOTUNE=0 turns this off"


def test_nothing_is_timed_while_a_graph_is_captured(measured, monkeypatch) -> None:
    fake = measured(pixels_32=2.0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuning.choice_for(NARROW, GPU).tile.pixels == 64 and not fake.calls
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tuning.choice_for(NARROW, GPU).tile.pixels == 32


def test_a_tile_that_is_wrong_or_fails_never_wins(measured) -> None:
    fake = measured(wrong=3, fails=1)
    row, timings = tuning.tune(NARROW, GPU, 100, fake)
    assert row.tile.num_stages not in (1, 3)
    problems = {timing.tile.num_stages: timing.problem for timing in timings}
    assert problems[3] == "its result differs by 1.0e+00"
    assert problems[1] == "RuntimeError: out of resource: shared memory"


def test_if_every_tile_fails_the_tables_own_is_taken_and_nothing_kept(monkeypatch) -> None:
    def broken(call: Call, tile: Tile, device: torch.device):
        raise RuntimeError("no driver")

    monkeypatch.setattr(tuning, "_measure", broken)
    assert tuning.choice_for(NARROW, GPU).tile == tiles.find(tiles.shipped(), "sm_90", NARROW).tile
    assert not tuning.cache_file(GPU).exists()


def test_a_large_batch_is_tuned_as_a_part(measured) -> None:
    fake = measured()
    tuning.tune(WIDE._replace(h=224, w=224), GPU, 1, fake)
    (call,) = {call for call, _ in fake.calls}
    assert 1 <= call.n < 256 and 4 * call.n * 224 * 224 * 512 <= tuning.BYTES


@pytest.mark.parametrize("kernel", ["fprop", "dgrad", "wgrad"])
def test_candidates_are_possible_and_the_tables_own_comes_first(kernel: str) -> None:
    for c, k in ((64, 64), (512, 512), (20, 24)):
        call = WIDE._replace(kernel=kernel, c=c, k=k)
        found = tuning.candidates(call, "sm_90")
        assert found[0] == tiles.find(tiles.shipped(), "sm_90", call).tile
        assert len(found) == len(set(found)) > 4
        assert any(tile.descriptors for tile in found) == (c % 64 == 0)


def test_an_unreadable_cache_is_passed_over(measured, capsys) -> None:
    measured()
    file = tuning.cache_file(GPU)
    file.parent.mkdir(parents=True)
    file.write_text("{")
    tuning.choice_for(WIDE, GPU)
    assert "can't be read, and is ignored" in capsys.readouterr().err


def test_a_disk_that_cannot_be_written_is_no_error(measured, monkeypatch, capsys) -> None:
    measured()

    def full(path, rows) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(table, "write", full)
    tuning.choice_for(NARROW, GPU)
    assert "the winner isn't kept: no space left" in capsys.readouterr().err


def test_newer_rows_replace_those_of_the_same_calls() -> None:
    tile = Tile(64, 64, 16, 4, 2)
    old = [Row("sm_90", "fprop", "half", tile, "old", c=(c, c)) for c in (1, 2)]
    new = [Row("sm_90", "fprop", "half", tile, "new", c=(2, 2))]
    assert [row.origin for row in table.merged(new, old)] == ["new", "old"]


@pytest.mark.parametrize("family", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", ["fprop", "dgrad", "wgrad"])
def test_a_measured_row_for_some_multiples_leaves_other_channels_their_last_resort(
    kernel: str, family: str
) -> None:
    measured = Row(family, kernel, "half", Tile(64, 64, 16, 4, 2), "measured", multiple=64)
    rows = table.merged([measured], tiles.shipped())
    call = Call(kernel, "half", 8, 56, 56, 64, 128)
    assert tiles.find(rows, family, call) == measured
    odd = call._replace(c=24, k=40)
    assert tiles.find(rows, family, odd) == tiles.find(tiles.shipped(), family, odd) is not None


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["fprop", "wgrad"])
def test_what_was_compiled_ahead_is_what_a_launch_looks_for(kernel: str) -> None:
    program = (
        "import torch\n"
        "from triton.runtime.jit import JITFunction\n"
        "from benchmarks.gpu import host\n"
        "from vgg_fast.dispatch import tiles\n"
        "from vgg_fast.triton import trial, tuning\n"
        "host.launch_nothing()\n"
        f"call = tiles.Call({kernel!r}, 'half', 64, 4, 4, 64, 64)\n"
        "tile, cpu = tiles.find(tiles.shipped(), 'sm_90', call).tile, torch.device('cpu')\n"
        "tuning._compile(call, tile, cpu)\n"
        "JITFunction._do_compile = None\n"
        "trial.prepare(call, tile, torch.bfloat16, cpu).run()\n"
        "print('nothing was compiled')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "nothing was compiled" in run.stdout, run.stderr
