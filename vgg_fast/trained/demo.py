"""What ``python -m vgg_fast.demo`` does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

from vgg_fast.train.config import TrainingError
from vgg_fast.train.output import say
from vgg_fast.train.pictures import in_8_bits
from vgg_fast.trained import network, start
from vgg_fast.trained.formats import require
from vgg_fast.trained.network import Device, Trained
from vgg_fast.trained.pictures import Invert, as_image
from vgg_fast.trained.predict import ranked

NAME = "demo"
SHOWN = 5
CANVAS, BRUSH = 420, 24  # pixels
GREYS = ["#000000", "#606060", "#a8a8a8", "#ffffff"]
COLOURS = [*GREYS, "#c8433f", "#e08a2e", "#3a9b6e", "#2f6fb3", "#7c5cb5", "#7a5230"]


@dataclass
class Options:
    """Serve a page on this machine: drop a picture or draw one, and see its class."""

    run: tyro.conf.Positional[Path]
    """The folder of a run, or a checkpoint."""

    port: int = 7860
    """Of 127.0.0.1."""

    device: Device = "auto"
    """auto, cpu or cuda. auto takes a GPU if there is one."""

    fused: bool = True
    """With this package's kernels, if the network was trained with them."""


def demo(options: Options) -> int:
    """Serve the page until Ctrl-C.

    Returns:
        0.

    Raises:
        TrainingError: gradio is missing, the network can't be loaded, or the port is taken.
    """
    if not 1 <= options.port <= 65535:
        raise TrainingError(f"--port must be from 1 to 65535, but it is {options.port}")
    # Nothing is sent anywhere; gradio reads it when it is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    _require_gradio()
    trained = network.load(options.run, options.device, None if options.fused else False)
    say(trained.introduction())
    served = page(trained)
    try:
        served.launch(
            server_name="127.0.0.1",
            server_port=options.port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            footer_links=[],
            theme=_theme(),
        )
    except OSError as error:
        raise TrainingError(
            f"port {options.port} can't be opened: choose a free one with --port"
        ) from error
    say(f"the page is http://127.0.0.1:{options.port}; Ctrl-C ends it")
    served.block_thread()  # returns at Ctrl-C
    return 0


def page(trained: Trained) -> Any:
    """The page, a ``gradio.Blocks``: one tab for pictures, and one to draw on."""
    import gradio

    size, colours = trained.input.image_size, trained.input.channels
    about = (
        f"{len(trained.input.classes)} classes; the network sees {size} x {size} "
        f"{'grey' if colours == 1 else 'colour'} pixels."
    )

    def of_picture(picture: Image.Image | None, invert: Invert) -> dict[str, float] | None:
        return None if picture is None else _likely(trained, picture, invert)

    def of_drawing(drawing: dict[str, Any] | None) -> dict[str, float] | None:
        whole = drawing["composite"] if drawing else None
        if whole is None or all(low == high for low, high in whole.getextrema()):
            return None  # nothing is drawn yet
        return _likely(trained, whole, "auto")

    with gradio.Blocks(title="vgg_fast") as blocks:
        gradio.Markdown(f"# {trained.file.parent.name or trained.file.name}\n{about}")
        with gradio.Tab("Picture"), gradio.Row():
            with gradio.Column():
                picture = gradio.Image(
                    type="pil", image_mode=None, sources=["upload", "clipboard"], label="picture"
                )
                invert = gradio.Radio(["auto", "yes", "no"], value="auto", label="invert")
            seen = gradio.Label(label="class", num_top_classes=SHOWN)
        with gradio.Tab("Draw"), gradio.Row():
            drawing = gradio.Sketchpad(
                type="pil",
                canvas_size=(CANVAS, CANVAS),
                layers=False,
                brush=gradio.Brush(default_size=BRUSH, colors=GREYS if colours == 1 else COLOURS),
                placeholder="choose the brush, and draw",
                label="drawing",
            )
            drawn = gradio.Label(label="class", num_top_classes=SHOWN)
        for changed in (picture, invert):
            changed.change(of_picture, [picture, invert], seen, api_name="picture")
        drawing.change(of_drawing, drawing, drawn, api_name="drawing", show_progress="hidden")
    return blocks


# ------------------------------------------------------------------------------------------------


def _likely(trained: Trained, picture: Image.Image, invert: Invert) -> dict[str, float]:
    image, _ = as_image(in_8_bits(picture), trained, invert)
    (likely,) = ranked(trained, trained.input.prepared(image.unsqueeze(0)))
    return dict(likely)


def _require_gradio() -> None:
    require(("gradio",), "the page")
    from gradio import __version__ as version

    if int(version.partition(".")[0]) < 6:
        raise TrainingError(f"gradio {version} is too old for the page: pip install 'gradio>=6'")


def _theme() -> Any:
    """In the system's own fonts: gradio's would come from another host."""
    import gradio

    return gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def main(arguments: list[str] | None = None) -> int:
    """The command ``python -m vgg_fast.demo``; returns its exit code."""
    return start.run(NAME, Options, demo, arguments)
