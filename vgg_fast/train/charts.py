"""Curves, a confusion matrix and small pictures, for a page that may be dark or light.

What is drawn in SVG has classes instead of colors: the page's style sheet has both sets of them.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.image import imsave
from torch import Tensor

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 350, 30, 194  # of the plot
MOST_MARKERS = 60
CELL = 40
MOST_NUMBERS = 20  # classes; with more of them a cell is too small for its count
MOST_NAMES = 60
LINES = 4  # for which the style sheet has a class


class Line(NamedTuple):
    """A curve: what the legend calls it, and a value for every epoch."""

    name: str
    values: Sequence[float]


class Plane(NamedTuple):
    """What a chart's corners stand for."""

    first: float
    last: float
    low: float
    high: float

    def at(self, epoch: float, value: float) -> tuple[float, float]:
        """Where a value is drawn; the only epoch stands in the middle."""
        along = (epoch - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        up = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return LEFT + along * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)


def curves(title: str, epochs: Sequence[int], lines: Sequence[Line], is_share: bool = False) -> str:
    """An <svg> of values by epoch; what isn't finite is left out.

    Args:
        title: for those who hear the page.
        epochs: rising; at least one.
        lines: what is drawn, at most 4.
        is_share: the values are shown in percent. Otherwise the axis begins at 0.
    """
    finite = [value for line in lines for value in line.values if math.isfinite(value)] or [0.0]
    rounds = ticks(min(finite) if is_share else min(0.0, *finite), max(finite))
    plane = Plane(epochs[0], epochs[-1], rounds[0], rounds[-1])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for value in rounds:
        _, y = plane.at(epochs[0], value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 3.5, _number(value, is_share), "end"))
    for epoch in sorted({round(tick) for tick in ticks(epochs[0], epochs[-1])}):
        if epochs[0] <= epoch <= epochs[-1]:
            x, _ = plane.at(epoch, plane.low)
            parts.append(_text(x, BOTTOM + 16, str(epoch), "middle"))
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 3, "epoch", "middle"))
    x = float(LEFT)
    for number, line in enumerate(lines[:LINES]):
        parts += _line(plane, epochs, line, f"line{number}", is_share)
        if len(lines) > 1:
            parts.append(f'<path class="line{number}" d="M{x:.0f} 10h16"/>')
            parts.append(_text(x + 21, 14, line.name, "start"))
            x += 36 + 6.5 * len(line.name)
    return "".join([*parts, "</svg>"])


def _line(
    plane: Plane, epochs: Sequence[int], line: Line, style: str, is_share: bool
) -> Iterator[str]:
    path, pen = [], "M"
    markers = []
    for epoch, value in zip(epochs, line.values, strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        x, y = plane.at(epoch, value)
        path.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
        told = html.escape(f"epoch {epoch}, {line.name}: {_number(value, is_share)}")
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="3"'
        markers.append(f'<circle class="{style}" {place}><title>{told}</title></circle>')
    yield f'<path class="{style}" d="{"".join(path)}"/>'
    if len(markers) <= MOST_MARKERS:
        yield from markers


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers, the first at or below ``low`` and the last at or above ``high``."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(m for m in (1, 2, 2.5, 5, 10) if m * unit >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [number * step for number in range(first, last + 1)]


def confusion(counts: Tensor, classes: Sequence[str]) -> str:
    """An <svg> of how often which class (row) was taken for which (column).

    Args:
        counts: (classes, classes).
        classes: their names.
    """
    many, total = len(classes), counts.sum(1).clamp(min=1)
    longest = max(map(len, classes)) if many <= MOST_NAMES else 0
    # Names are as large beside many cells as beside few.
    scale = max(1.0, many / MOST_NUMBERS)
    margin, top, right = (round(scale * (8 + width * longest)) for width in (7.2, 5, 3.5))
    size = CELL * many
    style = f"font-size:{13 * scale:.0f}px"
    box = f"0 0 {margin + size + right} {top + size + 4}"
    parts = [f'<svg viewBox="{box}" style="{style}" role="img" aria-label="confusion matrix">']
    for row in range(many):
        middle = CELL * (row + 0.5)
        if many <= MOST_NAMES:
            parts.append(_text(margin - 6, top + middle + 4, classes[row], "end"))
            turn = f"translate({margin + middle + 2:.0f} {top - 5}) rotate(-40)"
            parts.append(f'<text transform="{turn}">{html.escape(classes[row])}</text>')
        for column in range(many):
            count = int(counts[row, column])
            if not count:
                continue
            share = count / int(total[row])
            told = html.escape(f"{classes[row]} taken for {classes[column]}: {count}")
            x, y = margin + CELL * column, top + CELL * row
            kind = "right" if row == column else "wrong"
            # The square root makes a confusion of 2 % visible next to a diagonal of 95 %.
            parts.append(
                f'<rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{CELL - 2}" '
                f'height="{CELL - 2}" fill-opacity="{0.85 * math.sqrt(share):.2f}">'
                f"<title>{told}</title></rect>"
            )
            if many <= MOST_NUMBERS:
                parts.append(_text(x + CELL / 2, y + CELL / 2 + 4.5, str(count), "middle", "count"))
    frame = f'x="{margin}" y="{top}" width="{size}" height="{size}"'
    return "".join([*parts, f'<rect class="frame" {frame}/>', "</svg>"])


def picture(image: Tensor) -> str:
    """A uint8 image, (height, width) or (3, height, width), as the address of an <img>."""
    written = io.BytesIO()
    values = image.cpu()
    if values.dim() == 3:
        values = values[0] if len(values) == 1 else values.permute(1, 2, 0)
    if values.dim() == 3:
        imsave(written, values.contiguous().numpy(), format="png")
    else:
        imsave(written, values.numpy(), format="png", cmap="gray_r", vmin=0, vmax=255)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def _text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text{kind} {place}>{html.escape(words)}</text>"


def _number(value: float, is_share: bool) -> str:
    return f"{100 * value:.4g} %" if is_share else f"{value:.4g}"
