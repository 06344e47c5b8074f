"""What all pictures share: they are looked at on white and on black, and have no background."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# A grey with a contrast of 4.5 on white and 4.2 on GitHub's dark page.
INK = "#767676"
COLORS = {
    "vgg_fast": "#e5484d",
    "eager": "#8f8f8f",
    "channels_last": "#4c8dd6",
    "channels_last bf16 mode": "#9cc3ef",
    "compile": "#e0873a",
    "ipex settings": "#1f5fa8",
    "onnxruntime": "#3aa655",
    "openvino": "#a06cd5",
    "openvino bf16": "#c79bf0",
    "ncnn": "#b0793f",
    "cudnn": "#76b900",
    "apex": "#2f9e9e",
}
MARKERS = dict(zip(COLORS, "osDd^pvPX*<>", strict=True))


def color(peer: str) -> str:
    """A peer's; a GPU record names some otherwise."""
    return COLORS.get(peer, COLORS.get(peer.removeprefix("eager "), INK))


def plain(axes: Axes) -> None:
    """No frame; the ink for what is written."""
    axes.tick_params(which="both", colors=INK, labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    for part in (axes.xaxis.label, axes.yaxis.label, axes.title):
        part.set_color(INK)


def grid(axes: Axes) -> None:
    axes.grid(True, which="major", color=INK, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)


def plain_numbers(axis: Axis) -> None:
    """A logarithmic axis with numbers as people write them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend(figure: Figure, panels: list[Axes], columns: int = 5) -> None:
    """One for all panels, above them."""
    entries = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    figure.legend(
        entries.values(),
        entries,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )


def save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date or random ids, the same record gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "vgg_fast", "svg.fonttype": "path"}):
        figure.savefig(path, transparent=True, metadata={"Date": None})
    return path


def inline(figure: Figure, name: str) -> str:
    """An <svg> for a page: its words are text, and take the page's colour."""
    written = io.StringIO()
    # Ids must differ from those of the page's other pictures.
    settings = {"svg.hashsalt": name, "svg.id": name, "svg.fonttype": "none"}
    with matplotlib.rc_context({k: v for k, v in settings.items() if k in matplotlib.rcParams}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
