"""The pages of the documentation, as the tests read them: README.md, CONTRIBUTING.md and docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OF_THE_SITE = tuple(sorted(p.relative_to(ROOT).as_posix() for p in DOCS.rglob("*.md")))
PAGES = ("README.md", "CONTRIBUTING.md", *OF_THE_SITE)
# Those that are read elsewhere than in the site, and link to it.
AROUND = tuple(
    sorted(
        {p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("examples/*.md")]}
        - set(PAGES)
    )
)
# What docs/conf.py makes when the site is built.
MADE_WITH_THE_SITE = (DOCS / "report.html",)

_FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1$\n?", re.MULTILINE | re.DOTALL)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str) -> Iterator[tuple[str, str]]:
    """(what stands behind the three ticks, what stands between them) of each block of code."""
    for found in _FENCE.finditer(text(page)):
        yield found[2].strip(), found[3]


def blocks(language: str, page: str) -> list[str]:
    return [code for name, code in fences(page) if name == language]


def prose(page: str) -> str:
    """The page without its blocks of code, and without code in a line."""
    return re.sub(r"`[^`\n]+`", "", without_blocks(page))


def without_blocks(page: str) -> str:
    return _FENCE.sub("", text(page))


def inline_code(page: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", without_blocks(page))


def links(page: str) -> list[tuple[str, str]]:
    """(path, anchor) of every link and picture that stays in the repository."""
    found = re.findall(r'\]\(([^)\s]+)(?: "[^"]*")?\)', prose(page))
    found += re.findall(r'(?:src|srcset|href)="([^"]+)"', prose(page))
    local = [target for target in found if "://" not in target and not target.startswith("mailto:")]
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in local)]


def anchors(page: str) -> set[str]:
    """What a link may name behind a #: the headings, as GitHub and MyST spell them, and ids."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} (.+)$", without_blocks(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    slugs = {slug if i == 0 else f"{slug}-{i}" for slug, n in found.items() for i in range(n + 1)}
    return slugs | set(re.findall(r'\b(?:id|name)="([^"]+)"', without_blocks(page)))


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the page's table that begins with ``heading``, without its first two lines."""
    found = text(page)
    rows = found[found.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]
