"""The figures and the roofline that benchmarks.gpu draws from its record."""

from __future__ import annotations

import sys

import pytest

from benchmarks.gpu import candidates, figures, roofline
from seed_layers import SEED_LAYERS


def invented_record() -> dict:
    """What a run on a GPU would have written, with round numbers in place of measured ones."""
    layers = list(dict.fromkeys(SEED_LAYERS))
    groups = {}
    for layer in layers:
        ms = figures.operations(layer, 256) / 1e9 / 600  # 600 TFLOP/s
        groups[figures.layer_name(layer, 256, "forward")] = {
            "peers": {
                "vgg_fast": {"median_ms": ms, "relative_time": 1.0},
                candidates.ALONE: {"median_ms": 1.1 * ms, "relative_time": 1.1},
            },
            "problems": {},
        }
    for name, times in ((figures.BLOCK, 5.0), (figures.FORWARD, 1.6), (figures.TRAINING, 1.3)):
        groups[figures.compiled_name(name, 256)] = {
            "peers": {"vgg_fast": {"median_ms": 1.0}, "compile": {"relative_time": times}},
            "problems": {},
        }
    return {
        "device": "Invented GPU",
        "batch": 256,
        "groups": groups,
        "layers": [list(layer) for layer in layers],
        "ceilings": {"product_tflops": 800.0, "copy_tbs": 4.0},
        "peak_bytes": {"vgg_fast": 40, "eager channels_last": 100},
        "steps": {},
    }


def test_figures_are_read_off_the_record() -> None:
    found = figures.lines(invented_record())
    assert [line["found"] for line in found.values()] == pytest.approx(
        [0.75, 1.1, 5.0, 1.6, 1.3, 0.4]
    )
    assert [line["reached"] for line in found.values()] == [True, True, True, True, False, True]
    printed = figures.text(invented_record())
    assert printed.count("not reached") == 1 and figures.NOT_YET not in printed


def test_what_was_not_measured_is_said() -> None:
    text = figures.text({"groups": {}, "batch": 256})
    assert text.count(figures.NOT_YET) == len(figures.FIGURES) and "reached" not in text


def test_operations_and_bytes_of_a_layer() -> None:
    first, second = SEED_LAYERS[0], SEED_LAYERS[2]
    assert figures.operations(first, 1) == 2 * 9 * 64 * 224 * 224
    # 224² values, 576 weights, and 64 · 112² outputs of two bytes with one of argmax.
    assert figures.traffic(first, 1) == 2 * (224**2 + 576) + 3 * 64 * 112**2
    assert figures.traffic(second, 1) == 2 * (56**2 * (128 + 256) + 9 * 128 * 256)


def test_the_roofline_is_drawn(tmp_path) -> None:
    assert roofline.draw(invented_record(), tmp_path / "roofline.svg") == ""
    picture = (tmp_path / "roofline.svg").read_text()
    assert picture.startswith("<?xml") and len(roofline.points(invented_record())) == 8


def test_no_roofline_without_matplotlib_or_measurements(tmp_path, monkeypatch) -> None:
    file = tmp_path / "roofline.svg"
    assert "no ceilings" in roofline.draw({"device": "GPU"}, file)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib can't be imported" in roofline.draw(invented_record(), file)
    assert not file.exists()
