"""python -m benchmarks.speedrun: runs of a category, their record, and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tyro

from benchmarks.record import SPEEDRUN, newest, newest_speedruns
from benchmarks.speedrun import __main__ as speedrun
from benchmarks.speedrun import tables
from benchmarks.speedrun.categories import CATEGORIES, PROGRAM_OF_ALL
from vgg_fast.models import VGG
from vgg_fast.train.config import model_options, resolved
from vgg_fast.train.folder import SUMMARY
from vgg_fast.train.options import Config, with_values


@pytest.fixture(scope="module")
def record_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speedrun")
    arguments = ["--quick", "--only", "92.0", "--runs", str(folder / "runs")]
    (path,) = speedrun.main([*arguments, "--output", str(folder)])
    # Again: what has ended isn't trained again.
    before = (folder / "runs" / "92.0" / SUMMARY).stat().st_mtime_ns
    (path,) = speedrun.main([*arguments, "--output", str(folder)])
    after = json.loads((folder / "runs" / "92.0" / SUMMARY).read_text())
    assert before and len(after["runs"]) == 2
    return path


def test_the_record_has_every_seed(record_file: Path) -> None:
    assert record_file.name.startswith(f"{SPEEDRUN}92.0-")
    record = json.loads(record_file.read_text())
    assert [run["seed"] for run in record["runs"]] == [0, 1]
    assert record["command"].startswith("python -m vgg_fast.train --fused --preset record")
    assert record["test_accuracy"]["mean"] == pytest.approx(
        sum(run["test_accuracy"] for run in record["runs"]) / 2
    )
    options = model_options(Config(**{**record["config"], "output_dir": None}))
    assert record["parameters"] == sum(p.numel() for p in VGG(**options).parameters())


def test_quick_records_are_not_shown(record_file: Path) -> None:
    assert newest_speedruns(record_file.parent) == []
    assert newest(record_file.parent) == ([], [])
    assert list(tables.readme([])) == ["not measured yet."]


def test_tables_have_the_highest_accuracy_first(record_file: Path, tmp_path: Path) -> None:
    record = json.loads(record_file.read_text())
    record["options"]["quick"] = False
    for name, date in (("92.0", "2026-01-01"), ("94.0", "2026-01-02"), ("92.0", "2026-01-03")):
        one = {**record, "category": name, "date": f"{date}T00:00:00+00:00"}
        (tmp_path / f"{SPEEDRUN}{name}-{date}.json").write_text(json.dumps(one))
    found = newest_speedruns(tmp_path)
    assert [(r["category"], r["date"][:10]) for r in found] == [
        ("94.0", "2026-01-02"),
        ("92.0", "2026-01-03"),
    ]
    text = "\n".join(tables.measured(found))
    assert text.index("94.0 %") < text.index("92.0 %") and record["command"] in text
    assert "| 93.0 % | not measured yet |" in text
    assert text.count("| seed 1 |") == 2 and "2026-01-01" not in text
    assert text.startswith("| target | mean of all runs |")


def test_a_machine_is_named_once_with_all_commits(record_file: Path) -> None:
    record = {**json.loads(record_file.read_text()), "date": "2026-01-01T00:00:00+00:00"}
    commits = [{"hash": name, "dirty": False} for name in ("abc1234", "def5678")]
    *_, footer = tables.readme([{**record, "commit": commit} for commit in commits])
    assert footer.count("2026-01-01") == 1 and "commits abc1234, def5678. On an H100" in footer


@pytest.mark.parametrize("name", CATEGORIES)
def test_every_category_is_a_plain_vgg(name: str) -> None:
    command = CATEGORIES[name].command(3)
    assert command[: len(PROGRAM_OF_ALL)] == PROGRAM_OF_ALL and command[-2:] == ("--seeds", "3")
    config = resolved(tyro.cli(Config, args=with_values(command[3:])))
    assert not (config.batch_norm or config.average_views or config.init)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "99.9"], "no category '99.9'"),
        (["--seeds", "1"], "--seeds must be at least 2"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        speedrun.main(arguments)


def test_runs_of_another_recipe_are_refused(record_file: Path) -> None:
    runs = str(record_file.parent / "runs")
    with pytest.raises(SystemExit, match="holds runs of another recipe"):
        speedrun.main(["--only", "92.0", "--runs", runs])
