"""``python -m vgg_fast.demo``: the page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def test_without_gradio(call: Any, run_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = call("demo", run_in)
    assert code == 1 and err == (
        "python -m vgg_fast.demo: gradio isn't installed, and the page needs it: pip install "
        "gradio\n"
    )


def test_a_port_that_is_none(call: Any, run_in: Path) -> None:
    code, _, err = call("demo", run_in, "--port", "70000")
    assert code == 1 and "--port must be from 1 to 65535, but it is 70000" in err


def test_a_picture_and_a_drawing(run_in: Path, picture: Any) -> None:
    pytest.importorskip("gradio", reason="the page needs it")
    from vgg_fast.trained import network
    from vgg_fast.trained.demo import page

    functions = {f.api_name: f.fn for f in page(network.load(run_in, "cpu")).fns.values()}
    of_picture, of_drawing = functions["picture"], functions["drawing"]
    likely = of_picture(picture(0), "auto")
    assert max(likely, key=likely.get) == "Ankle boot" and sum(likely.values()) == pytest.approx(1)
    assert of_picture(None, "auto") is None
    canvas = Image.new("RGBA", (280, 280))
    assert of_drawing({"composite": canvas}) is None and of_drawing(None) is None
    shape = Image.new("RGBA", (280, 280), "black")
    canvas.paste(shape, (0, 0), picture(0).resize((280, 280)))
    drawn = of_drawing({"composite": canvas})
    assert max(drawn, key=drawn.get) == "Ankle boot"
