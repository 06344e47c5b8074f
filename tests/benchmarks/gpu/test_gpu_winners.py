"""The fastest tiles and backends that benchmarks.gpu finds, and how the tables adopt them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import adopt, figures, record, steps
from seed_layers import SEED_LAYERS
from tests.support.gpu_benchmark import QUICK, main
from vgg_fast.dispatch import choices, table, tiles
from vgg_fast.triton import tuning


def test_a_winner_of_the_tuning_becomes_a_row(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_compile", lambda call, tile, device: None)
    monkeypatch.setattr(tuning, "_measure", lambda call, tile, device: (tile.pixels, torch.ones(2)))
    step = steps.Step(main.parse([*QUICK, "--layers=2"]), tmp_path / "part.json", 3600)
    steps.tuning(step)
    rows = [tiles.Row.load(line) for line in record.read(step.file)["tiles"]]
    kernels = ["direct", "direct_wgrad", "fprop", "dgrad", "wgrad"]
    assert [row.kernel for row in rows] == kernels
    assert all(row.origin.startswith("measured on the interpreter") for row in rows)
    assert rows[2].c == (64, 64) and rows[2].pool is True
    assert "measured" in capsys.readouterr().out
    steps.run("tuning", main.parse([*QUICK, "--layers=2"]), tmp_path / "late.json", 0.5)
    assert len(record.read(tmp_path / "late.json")["untuned"]) == 5


def test_the_fastest_backend_of_each_pass_becomes_a_row(tmp_path) -> None:
    step = steps.Step(main.parse([*QUICK[:2], "--batch=256"]), tmp_path / "part.json", 10)
    layer = SEED_LAYERS[2]
    times = {"forward": (3.0, 2.0, 4.0, 5.0), "forward and backward": (9.0, 10.0, 9.0, 9.5)}
    step.found["groups"] = {
        figures.layer_name(layer, 256, what != "forward"): {
            "peers": {b: {"median_ms": t} for b, t in zip(choices.BACKENDS, ms, strict=True)},
            "problems": {},
        }
        for what, ms in times.items()
    }
    ahead, back = steps._winners(step, layer)
    assert (ahead.backend, ahead.operator) == ("cpp", "conv3x3_relu")
    assert (back.backend, back.operator) == ("reference", "conv3x3_relu_backward")
    assert "cpp 8.000 ms, cpp sm_90a 5.000 ms, reference 4.500 ms, triton" in back.origin
    assert (back.c, back.k, back.side, back.batch) == ((128, 128), (256, 256), (56, 56), (256, 511))
    for group in step.found["groups"].values():
        group["problems"]["cpp"] = "its result differs from vgg_fast's"
    assert steps._winners(step, layer)[0].backend == "triton"  # wrong never wins
    ahead_of_all = {"median_ms": 1.0}
    step.found["groups"][figures.layer_name(layer, 256, False)]["peers"][choices.HOPPER] = (
        ahead_of_all
    )
    assert steps._winners(step, layer)[0].backend == choices.HOPPER


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
