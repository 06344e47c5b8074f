"""The fastest tiles and backends that benchmarks.gpu finds, and how the tables adopt them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import adopt, figures, measurements, record, steps
from benchmarks.gpu import run as runs
from benchmarks.gpu.context import Context
from benchmarks.gpu.winners import adopted, winners
from seed_layers import SEED_LAYERS
from tests.support.gpu_benchmark import QUICK, main
from vgg_fast.dispatch import choices, table, tiles
from vgg_fast.triton import tuning


def test_a_winner_of_the_tuning_becomes_a_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_compile", lambda call, tile, device: None)
    monkeypatch.setattr(tuning, "_measure", lambda call, tile, device: (tile.pixels, torch.ones(2)))
    calls = [call for layer in SEED_LAYERS[:2] for call in steps.calls(layer, 1)]
    on_cpu = Context(torch.device("cpu"))
    found: dict = {}
    for line in measurements.tune(on_cpu, [list(call) for call in calls], 3600.0):
        record.merge(found, line.get("found", {}))
    rows = [tiles.Row.load(line) for line in found["tiles"]]
    kernels = ["direct", "direct_wgrad", "fprop", "dgrad", "wgrad"]
    assert [row.kernel for row in rows] == kernels
    assert all(row.origin.startswith("measured on the interpreter") for row in rows)
    assert all(row.gpu == "the interpreter" for row in rows)
    assert rows[2].c == (64, 64) and rows[2].pool is True
    (late,) = measurements.tune(on_cpu, [list(call) for call in calls], 0.5)
    assert len(late["found"]["untuned"]) == 5


def test_the_kernels_that_lose_most_are_tuned_first(tmp_path) -> None:
    run = runs.Run(main.parse(QUICK), {}, tmp_path / "record.json", 0.0)
    run.found = {"ceilings": {"product_tflops": 700.0}, "backends": {}}
    slow = SEED_LAYERS[4]
    for layer in run.layers:
        floor = figures.operations(layer, run.batch) / 700.0 / 1e9
        for work, passes in (("forward", 1), ("backward", 2)):
            ms = passes * floor + (1.0 if layer == slow else 0.5)
            entry = {"peers": {"triton": {"median_ms": ms}}}
            run.found["backends"][figures.layer_name(layer, run.batch, work)] = entry
    asked = []
    run.do = lambda job, **arguments: asked.append(arguments)
    steps.tuning(run)
    assert asked[0]["calls"][0] == steps.calls(slow, run.batch)[0]
    assert len(asked[0]["calls"]) == len(set(asked[0]["calls"])) == 21


LAYER = SEED_LAYERS[2]


def measured(**milliseconds: tuple[float, float]) -> dict:
    """The groups of a layer, forward and backward, by backend; spaces are underscores."""
    return {
        figures.layer_name(LAYER, 256, work): {
            "peers": {
                name.replace("_", " ", 1): {"median_ms": ms[which], "fastest_ms": ms[which]}
                for name, ms in milliseconds.items()
            },
            "problems": {},
        }
        for which, work in enumerate(("forward", "backward"))
    }


def test_the_fastest_backend_of_each_pass_becomes_a_row() -> None:
    times = {"triton": (3.0, 9.0), "cpp": (2.0, 8.0), "cpp_sm_90a": (4.0, 5.0)}
    groups = measured(**times, reference=(5.0, 4.5))
    ahead, back = winners(groups, LAYER, 256, "NVIDIA H200")
    assert (ahead.backend, ahead.operator) == ("cpp", "conv3x3_relu")
    assert (back.backend, back.operator) == ("reference", "conv3x3_relu_backward")
    assert "cpp 8.000 ms, cpp sm_90a 5.000 ms, reference 4.500 ms, triton" in back.origin
    assert (back.c, back.k, back.side, back.batch) == ((128, 128), (256, 256), (56, 56), (256, 511))
    assert back.gpu == "NVIDIA H200"


def test_what_failed_or_was_only_tried_never_wins() -> None:
    groups = measured(triton=(3.0, 9.0), reference=(5.0, 9.5))
    for group in groups.values():
        group["problems"]["cpp"] = "wrong: relative L2 error of output by 1.0e+00"
        group["peers"][choices.HOPPER] = {"median_ms": 0.1}  # its trial; then it was lost
    assert [row.backend for row in winners(groups, LAYER, 256, "GPU")] == ["triton", "triton"]


def test_the_only_one_that_is_right_is_a_row_if_another_failed() -> None:
    """The shipped table may name the one that failed."""
    groups = measured(reference=(5.0, 9.5))
    assert winners(groups, LAYER, 256, "GPU") == []
    for group in groups.values():
        group["problems"]["triton"] = "left out: it hung: it said nothing for 15 seconds"
    assert [row.backend for row in winners(groups, LAYER, 256, "GPU")] == 2 * ["reference"]


def test_winners_are_adopted_for_the_rest_of_the_run(tmp_path, monkeypatch) -> None:
    assert adopted([], tmp_path / "record.json") == ""
    rows = winners(measured(triton=(3.0, 9.0), cpp=(2.0, 10.0)), LAYER, 256, "GPU")
    file = adopted([row.dump() for row in rows], tmp_path / "record.json")
    assert file == str(tmp_path / "record.choices.json")
    monkeypatch.setenv("VGG_FAST_CHOICES", file)
    choices.forget()
    assert list(choices.rows())[:2] == rows


def test_rows_of_one_gpu_stand_beside_those_of_another(tmp_path) -> None:
    on_h200 = choices.Row("cpp", "measured", gpu="NVIDIA H200", c=(64, 64))
    on_h100 = choices.Row("triton", "measured", gpu="NVIDIA H100", c=(64, 64))
    both = table.merged([on_h100], [on_h200])
    assert both == [on_h100, on_h200]
    assert table.preferring(both, "NVIDIA H200") == [on_h200, on_h100]
    assert table.preferring(both, "NVIDIA GH200") == table.preferring(both, None) == both
    table.write(tmp_path / "table.json", both)
    assert choices.read(tmp_path / "table.json") == tuple(both)


def test_adopted_winners_stand_before_the_shipped_rows(tmp_path) -> None:
    tile_table, choice_table = tmp_path / "tiles.json", tmp_path / "choices.json"
    table.write(tile_table, tiles.shipped())
    choice_table.write_text(choices.SHIPPED.read_text())
    tile = tiles.Tile(128, 64, 64, 4, 3, descriptors=True)
    row = tiles.Row("sm_90", "fprop", "half", tile, "measured", c=(64, 64), k=(64, 64), pool=True)
    choice = choices.Row("reference", "measured", arithmetic="float32", c=(64, 64))
    file = tmp_path / "record.json"
    record.write({"tiles": [row.dump()], "choices": [choice.dump()]}, file)
    for _ in range(2):  # the second time, the first one's rows give way
        assert adopt.adopt(file, tile_table, choice_table) == (1, 1)
        choices.read.cache_clear()
        assert tiles.read(tile_table) == (row, *tiles.shipped())
        assert choices.read(choice_table) == (choice, *choices.read(choices.SHIPPED))


def test_a_record_without_winners_is_refused(tmp_path) -> None:
    record.write({"groups": {}}, tmp_path / "record.json")
    with pytest.raises(ValueError, match="holds no tiles and no choices"):
        adopt.adopt(tmp_path / "record.json", tmp_path / "tiles.json", tmp_path / "choices.json")
