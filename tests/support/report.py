"""A checkout with documents and records for benchmarks/report.py."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import report

README = (
    "# Title\n<!-- report:models -->\n<!-- /report:models -->\n"
    "<!-- report:features -->\n<!-- /report:features -->\n"
    "<!-- report:results -->\nold\n<!-- /report:results -->\n"
    "<!-- report:decisions -->\n<!-- /report:decisions -->\n"
    "<!-- report:speedrun -->\n<!-- /report:speedrun -->\nafter\n"
)
TRAININGS = (
    "<!-- report:speedrun -->\n<!-- /report:speedrun -->\n"
    "<!-- report:seed-network -->\n<!-- /report:seed-network -->\n"
)
NOTEBOOK = (
    "<!-- report:floor -->\n<!-- /report:floor -->\n"
    "<!-- report:plan -->\n<!-- /report:plan -->\n"
    "<!-- report:models -->\n<!-- /report:models -->\n"
    "<!-- report:features -->\n<!-- /report:features -->\n"
    "<!-- report:measured -->\n<!-- /report:measured -->\n"
)


def checkout(root: Path) -> Path:
    """Documents with markers, and no record yet."""
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "docs").mkdir()
    (root / "README.md").write_text(README, encoding="utf-8")
    (root / "docs" / "performance.md").write_text(NOTEBOOK, encoding="utf-8")
    (root / "docs" / "record.md").write_text(TRAININGS, encoding="utf-8")
    return root


def put(root: Path, name: str, content: dict) -> None:
    """Add a record."""
    path = root / "benchmarks" / "results" / name
    path.write_text(json.dumps(content), encoding="utf-8")


def made(root: Path) -> tuple[str, str]:
    """README and notebook, as the records want them."""
    report.main(["--root", str(root)])
    readme, notebook = root / "README.md", root / "docs" / "performance.md"
    return readme.read_text(encoding="utf-8"), notebook.read_text(encoding="utf-8")
