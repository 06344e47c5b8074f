"""A checkout with documents and records for benchmarks/report.py."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import page, report


def markers(*names: str) -> str:
    """Blocks that the report replaces."""
    return "".join(f"<!-- report:{name} -->\nold\n<!-- /report:{name} -->\n" for name in names)


README = f"# Title\n{markers('summary', 'speedrun')}after\n"
TRAININGS = markers("speedrun", "seed-network")
INSTALL = markers("import")
PAGES = {  # of docs/performance/, without those that have no table
    "floor": markers("floor"),
    "plan": markers("plan"),
    "numbers": markers("decisions"),
    "networks": markers("networks"),
    "models": markers("models", "every-model"),
    "features": markers("features", "every-way"),
    "gpu": markers("gpus"),
    "measured": markers("measured"),
}


def checkout(root: Path) -> Path:
    """Documents with markers, and no record yet."""
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "docs" / "performance").mkdir(parents=True)
    (root / "README.md").write_text(README, encoding="utf-8")
    (root / "docs" / "record.md").write_text(TRAININGS, encoding="utf-8")
    (root / "docs" / "tutorial").mkdir()
    (root / "docs" / "tutorial" / "install.md").write_text(INSTALL, encoding="utf-8")
    for name, text in PAGES.items():
        (root / "docs" / "performance" / f"{name}.md").write_text(text, encoding="utf-8")
    return root


def put(root: Path, name: str, content: dict) -> None:
    """Add a record."""
    path = root / "benchmarks" / "results" / name
    path.write_text(json.dumps(content), encoding="utf-8")


def made(root: Path) -> dict[str, str]:
    """The pages of docs/performance/ by name, as the records want them."""
    report.main(["--root", str(root)])
    folder = root / "docs" / "performance"
    return {name: (folder / f"{name}.md").read_text(encoding="utf-8") for name in PAGES}


def page_of(root: Path) -> str:
    """Everything on one page of HTML."""
    return page.of(root / "benchmarks" / "results")
