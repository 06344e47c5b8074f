"""benchmarks/report.py: what it reads, what it replaces, and when it refuses."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

from benchmarks import pictures, report
from seed_layers import SEED_LAYERS
from tests.support.records import MODELS, models_record, peer, record
from tests.support.report import INSTALL, PAGES, README, TRAININGS, made, put

OLD = {"README.md": README, "record.md": TRAININGS, "install.md": INSTALL} | {
    f"{n}.md": t for n, t in PAGES.items()
}


def documents(root: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in root.rglob("*.md")}


def test_without_records_nothing_is_claimed(root) -> None:
    pages = made(root)
    for name, text in pages.items():
        assert "not measured yet" in text.lower() and "\nold\n" not in text, name
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert "not measured yet" in readme and readme.endswith("after\n")
    assert " ms |" not in pages["floor"]
    assert pages["floor"].count("not measured yet") >= len(SEED_LAYERS)
    assert not (root / "docs" / "images").exists()


def test_the_newest_record_of_a_machine_counts_and_trials_do_not(root) -> None:
    newer = record(date="2026-02-01T00:00:00+00:00")
    newer["rows"][0]["peers"]["eager"] = peer(6.0, 3.0)
    quick = copy.deepcopy(record(date="2026-03-01T00:00:00+00:00"))
    quick["options"]["quick"] = True
    for name, content in (("a", newer), ("b", record()), ("c", quick), ("d.partial", quick)):
        put(root, f"{name}.json", content)
    put(root, "other.json", record(cpu="Another CPU"))
    pages = made(root)
    networks, measured = pages["networks"], pages["measured"]
    assert "**3.00**" in networks and "**2.50**" not in networks
    # A line right below a table would be its next row.
    newer, other = measured.split("\n\nOn 2 threads of Another CPU")
    assert "\nOn 2 threads of Invented CPU" in newer and "Invented CPU" not in other
    assert "2026-03-01" not in "".join(pages.values())


def test_the_documents_pictures_are_drawn_and_the_same_again(root) -> None:
    put(root, "a.json", record())
    made(root)
    names = [f"{name}.svg" for name in (*pictures.IN_DOCUMENTS, "summary")]
    images = root / "docs" / "images"
    before = {name: (images / name).read_bytes() for name in names}
    assert all(b"<svg" in content for content in before.values())
    made(root)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_pictures_stand_where_the_pages_look_for_them(root) -> None:
    put(root, "a.json", record())
    put(root, "models-a.json", models_record(MODELS))
    shown = [
        (root / "docs" / "performance" / source).resolve()
        for text in made(root).values()
        for source in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    ]
    assert len(shown) == 4 and all(path.exists() for path in shown)


def test_check_finds_a_stale_table_and_changes_nothing(root) -> None:
    put(root, "a.json", record())
    with pytest.raises(SystemExit, match="not what the records say"):
        report.main(["--root", str(root), "--check"])
    assert documents(root) == OLD
    made(root)
    report.main(["--root", str(root), "--check"])


@pytest.mark.parametrize("name", PAGES)
def test_check_names_the_page_that_is_stale(root, name) -> None:
    put(root, "a.json", record())
    made(root)
    path = root / "docs" / "performance" / f"{name}.md"
    path.write_text(PAGES[name], encoding="utf-8")
    with pytest.raises(SystemExit, match=rf"^\S*/{name}\.md: not what the records say"):
        report.main(["--root", str(root), "--check"])


@pytest.mark.parametrize("content", ["{", "[]", '{"options": {}}'])
@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("bad", "benchmarks.run"),
        ("decisions-bad", "benchmarks.decisions"),
        ("models-bad", "benchmarks.models"),
        ("features-bad", "benchmarks.features"),
        ("plan-bad", "benchmarks.plan"),
        ("speedrun-bad", "benchmarks.speedrun"),
        ("seed-network-bad", "benchmarks.seed_network"),
    ],
)
def test_a_file_that_is_no_record_is_named(root, name, program, content) -> None:
    (root / "benchmarks" / "results" / f"{name}.json").write_text(content)
    with pytest.raises(SystemExit, match=rf"{name}\.json isn't a record of {program} "):
        report.main(["--root", str(root)])
    assert documents(root) == OLD


@pytest.mark.parametrize("name", PAGES)
def test_missing_markers_are_named_and_nothing_is_written(root, name) -> None:
    path = root / "docs" / "performance" / f"{name}.md"
    path.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match=rf"{name}\.md lacks the markers <!-- report:\S+ --> and"):
        report.main(["--root", str(root)])
    assert documents(root) == OLD | {f"{name}.md": "nothing"}


@pytest.mark.parametrize("name", ["README.md", "docs/performance/gpu.md"])
def test_missing_files_are_named(root, name) -> None:
    (root / name).unlink()
    with pytest.raises(SystemExit, match=rf"{name} can't be read"):
        report.main(["--root", str(root)])
