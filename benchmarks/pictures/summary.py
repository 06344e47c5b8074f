"""The README's bars: time and memory of vgg_fast, torch.compile and eager execution.

Written without matplotlib, so that its words are text in the reader's font. It brings a ground of
its own: on a page that is dark while its reader's system is light, or the other way round, words
that follow the system would vanish.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.pictures.style import COLORS
from benchmarks.summary import OURS, Found, machines, milliseconds

BARS = {OURS: "vgg_fast", "compile": "torch.compile", "channels_last": "eager, channels_last"}
WIDTH, LEFT, RIGHT = 800, 264, 130  # LEFT holds what is measured, RIGHT a bar's number
TOP, BAR, GAP, FOOT = 74, 17, 17, 36
STYLE = f"""
    .ground {{ fill: #ffffff }}
    text {{ fill: #1f2328; font: 14px system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif }}
    .title {{ font-size: 16px; font-weight: 600 }}
    .what {{ font-weight: 600 }}
    .small {{ fill: #59636e; font-size: 12px }}
    .number {{ font-size: 13px }}
    .ours {{ font-weight: 600 }}
    .axis {{ stroke: #59636e }}
    {" ".join(f".{peer} {{ fill: {COLORS[peer]} }}" for peer in BARS)}
    @media (prefers-color-scheme: dark) {{
      .ground {{ fill: #0d1117 }}
      text {{ fill: #e6edf3 }}
      .small {{ fill: #9198a1 }}
      .axis {{ stroke: #9198a1 }}
    }}
  """


@dataclass(frozen=True)
class Group:
    """The bars of one work; ours is 1 long, and ``ours`` says what that is."""

    title: str
    detail: str
    ours: str
    ratios: dict[str, float]


def groups(measured: list[Found]) -> Iterator[Group]:
    """A group for each work's time, and one for its memory."""
    for one in measured:
        title, detail = one.work.title, one.work.detail
        yield Group(f"{title}: time", detail, milliseconds(one.seconds), one.times)
        if one.memory:
            mebibytes = f"{one.memory / 2**20:.0f} MiB"
            yield Group(f"{title}: memory", "the same, at the peak", mebibytes, one.memories)


def svg(measured: list[Found]) -> str | None:
    """The picture; None if nothing was measured."""
    drawn = list(groups(measured))
    if not drawn:
        return None
    longest = max([1.0, *(ratio for group in drawn for ratio in group.ratios.values())])
    scale = (WIDTH - LEFT - RIGHT) / longest
    body, y = [], float(TOP)
    for group in drawn:
        body += _group(group, y, scale)
        y += len(BARS) * BAR + GAP
    where = "; ".join(machines((one.record for one in measured), commits=False))
    height = round(y - GAP + FOOT)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">',
            f"  <title>{_words(drawn)}</title>",
            f"  <style>{STYLE}</style>",
            f'  <rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>',
            _text(16, 26, "Time and memory relative to vgg_fast: shorter is better", "title"),
            *_legend(),
            *body,
            f'  <path class="axis" d="M{LEFT} {TOP - 5}V{y - GAP + 5:g}"/>',
            _text(16, height - 13, f"float32, {where}", "small"),
            "</svg>\n",
        ]
    )


def save(measured: list[Found], folder: Path) -> list[Path]:
    """As summary.svg; returns the files, none if there is nothing to draw."""
    picture = svg(measured)
    if picture is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "summary.svg"
    path.write_text(picture, encoding="utf-8")
    return [path]


def _legend() -> Iterator[str]:
    x = LEFT
    for peer, name in BARS.items():
        yield f'  <rect class="{peer}" x="{x}" y="44" width="12" height="12" rx="2"/>'
        yield _text(x + 18, 55, name, "number")
        x += 44 + 7 * len(name)


def _group(group: Group, y: float, scale: float) -> Iterator[str]:
    middle = y + len(BARS) * BAR / 2
    yield _text(16, middle - 4, group.title, "what")
    yield _text(16, middle + 14, group.detail, "small")
    for peer in BARS:
        ratio = 1.0 if peer == OURS else group.ratios.get(peer)
        if ratio is None:
            yield _text(LEFT + 8, y + BAR - 5, "not measured", "small")
        else:
            length = ratio * scale
            yield (
                f'  <rect class="{peer}" x="{LEFT}" y="{y:g}" width="{length:.1f}" '
                f'height="{BAR - 2}"/>'
            )
            number = f"1 ({group.ours})" if peer == OURS else f"{ratio:.2f} ×"
            look = "number ours" if peer == OURS else "number"
            yield _text(round(LEFT + length + 7, 1), y + BAR - 5, number, look)
        y += BAR


def _text(x: float, y: float, words: str, look: str) -> str:
    return f'  <text class="{look}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def _words(drawn: list[Group]) -> str:
    """The same for those who can't see it."""
    told = []
    for group in drawn:
        ratios = (f"{BARS[peer]} {ratio:.2f} times" for peer, ratio in group.ratios.items())
        told.append(f"{group.title} ({group.detail}): {', '.join(['vgg_fast 1', *ratios])}")
    return escape("; ".join(told))
