"""python -m benchmarks.plan: what is timed, what is said of it, and its table."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.plan import __main__ as plan
from benchmarks.plan import grid, measure, tables
from benchmarks.plan.grid import Shape, shapes
from benchmarks.record import newest_plans
from tests.support.records import MACHINE
from tests.support.report import made, put
from vgg_fast import cpu

SHAPES = (Shape(1, 4, 16, 16), Shape(2, 9, 3, 32), Shape(1, 14, 32, 16), Shape(1, 12, 1, 16))


@pytest.fixture(autouse=True)
def settings():
    """As they were before, whatever a test does."""
    before = cpu.get()
    yield
    assert cpu.get() == before


def test_the_grid_is_bounded_and_always_in_the_same_order() -> None:
    found = shapes(torch.float32)
    assert found == shapes(torch.float32) and len(set(found)) == len(found) > 600
    assert {shape.images for shape in found} == set(grid.IMAGES)
    assert {shape.size for shape in found} == set(grid.SIZES)
    assert {(shape.in_channels, shape.out_channels) for shape in found} == set(grid.CHANNELS)
    assert max(shape.operations for shape in found) <= grid.MOST_OPERATIONS
    assert max(shape.bytes(torch.float32) for shape in found) <= grid.MOST_BYTES
    # Half a sample has half of the large ones.
    large = [shape.size > 30 for shape in found]
    assert sum(large[: len(large) // 2]) == pytest.approx(sum(large) / 2, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_pass_runs_by_each_algorithm_and_the_plans_choice_is_one(shape, dtype) -> None:
    for which, call in measure.calls(shape, dtype).items():
        names = measure.possible(shape, dtype, which)
        chosen = measure.planned(shape, dtype, which)
        assert {"direct", "winograd2", "winograd4"} <= {*names} and chosen in names
        with cpu.use("auto"):
            by_itself = call()
        with cpu.use(chosen):
            forced = call()
        pairs = [(by_itself, forced)] if which == "forward" else zip(by_itself, forced, strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_only_what_the_pass_wants_is_computed() -> None:
    found = measure.calls(SHAPES[0], torch.float32)
    elements = [[tensor.numel() > 0 for tensor in found[name]()] for name in measure.PASSES[1:]]
    assert elements == [[True, False, False], [False, True, True]]
    assert found["forward"]().shape == (1, 16, 4, 4)


def test_the_weight_is_kept_in_the_forward_pass_alone(monkeypatch) -> None:
    kept = []
    monkeypatch.setattr(measure, "_repeats", lambda seconds: kept.append(cpu.kept_weights()) or 1)
    cpu.release_workspaces()
    measure.measured(Shape(1, 14, 32, 16), torch.float32, quick=True)
    count = len(measure.possible(Shape(1, 14, 32, 16), torch.float32, "forward"))
    assert kept[count - 1] > 0 and not any(kept[count:])


def test_the_ratio_is_that_to_the_fastest_within_each_round() -> None:
    times = {"a": [1.0, 10.0, 1.0], "b": [2.0, 20.0, 2.0], "c": [0.9, 11.0, 1.1]}
    assert measure.fastest(times, "b") == ("a", 2.0)
    assert measure.fastest(times, "a") == ("a", 1.0)


def test_what_seems_wrong_is_measured_again(monkeypatch) -> None:
    shape, dtype = SHAPES[0], torch.float32
    for loss, rounds in ((1.2, measure.ROUNDS + measure.MORE_ROUNDS), (1.0, measure.ROUNDS)):
        monkeypatch.setattr(measure, "fastest", lambda *_, loss=loss: ("direct", loss))
        assert {row["rounds"] for row in measure.measured(shape, dtype)} == {rounds}


def row(which: str, ratio: float, size: int = 14) -> dict:
    return {
        "pass": which,
        **Shape(2, size, 64, 128)._asdict(),
        "chosen": "winograd4",
        "best": "winograd4" if ratio == 1 else "direct",
        "ratio": ratio,
        "rounds": 5,
        "seconds": {"direct": 1e-3, "winograd4": ratio * 1e-3},
    }


def record(rows: list[dict], **more) -> dict:
    return {
        **MACHINE,
        "options": {"quick": False, "minutes": 15.0},
        "dtype": "float32",
        "grid": 600,
        "interrupted": False,
        "rows": rows,
        "summary": tables.summary(rows),
        **more,
    }


ROWS = [
    *(row("forward", ratio) for ratio in (1.0, 1.05, 2.0)),
    *(row("input gradient", 1.0) for _ in range(3)),
    *(row("weight gradient", ratio, size) for ratio, size in ((1.0, 14), (1.1, 14), (1.5, 7))),
]


def test_how_often_the_plan_is_near() -> None:
    found = tables.summary(ROWS)
    assert found["forward"] == {
        "shapes": 3,
        "near": 2,
        "share": 2 / 3,
        "mean": pytest.approx(1.281, rel=1e-3),
    }
    assert found["input gradient"]["share"] == found["input gradient"]["mean"] == 1
    assert found["all"]["shapes"] == 9 and found["all"]["near"] == 6
    assert tables.worst(record(ROWS), "weight gradient", 1) == [
        "64→128 at 7², batch 2: winograd4 takes 1.50 times as long as direct"
    ]
    assert len(tables.worst(record(ROWS), "weight gradient", 9)) == 2


def test_the_notebook_has_a_table_of_the_newest_record(root) -> None:
    assert "The plan's choices: not measured yet." in made(root)["plan"]
    put(root, "plan-a.json", record(ROWS))
    later = {"date": "2026-03-01T00:00:00+00:00"}
    put(root, "plan-b.json", record(ROWS[:1], date="2025-01-01T00:00:00+00:00"))
    put(root, "plan-c.json", record(ROWS[:1], options={"quick": True}, **later))
    put(root, "plan-d.json", record(ROWS[:1], interrupted=True, **later))
    put(root, "plan-e.json", record(ROWS[3:6], dtype="bfloat16", **later))
    pages = made(root)
    plan = pages["plan"]
    assert "In float32, 3 of the grid's 600 shapes, on 2 threads of Invented CPU (avx2)" in plan
    assert "| forward | 3 | 66.7 % | 21.9 % |\n" in plan
    assert "| all | 9 | 66.7 % |" in plan
    assert (
        "- forward, 64→128 at 14², batch 2: winograd4 takes 2.00 times as long as direct\n" in plan
    )
    assert plan.index("In bfloat16") < plan.index("In float32")
    assert "On CPUs: not measured yet." in pages["networks"]  # it is no record of benchmarks.run
    assert len(newest_plans(root / "benchmarks" / "results")) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quick_run_shows_that_everything_runs(tmp_path, capsys, dtype) -> None:
    path = tmp_path / "folder" / "plan.json"
    assert plan.main(["--quick", "--dtype", dtype, "--output", str(path)]) == path
    found = json.loads(path.read_text(encoding="utf-8"))
    count = len(shapes(torch.float32, quick=True))
    assert len(found["rows"]) == 3 * count and found["grid"] == count
    assert found["dtype"] == dtype and found["cpu"] and found["versions"]["torch"]
    assert found["summary"] == tables.summary(found["rows"])
    for measured in found["rows"]:
        assert measured["rounds"] == 2 and measured["ratio"] >= 1
        assert measured["chosen"] in measured["seconds"] and measured["best"] in measured["seconds"]
        assert min(measured["seconds"].values()) > 0
    printed = capsys.readouterr().out
    assert "weight gradient" in printed and "are within 5 % of the fastest" in printed


def test_by_itself_a_quick_run_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    assert plan.main(["--quick"]) is None and list(tmp_path.iterdir()) == []
    assert "No file was written" in capsys.readouterr().out


def test_what_was_measured_when_it_is_interrupted_is_shown(tmp_path, monkeypatch, capsys) -> None:
    done = []

    def measured(shape, *_) -> list[dict]:
        if done:
            raise KeyboardInterrupt
        done.append(shape)
        return ROWS

    monkeypatch.setattr(plan, "measured", measured)
    path = tmp_path / "plan.json"
    plan.main(["--quick", "--output", str(path)])
    assert json.loads(path.read_text(encoding="utf-8"))["interrupted"]
    assert "66.7 % are within" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="interrupted before anything was measured"):
        plan.main(["--quick"])


def test_after_its_minutes_it_begins_no_shape(tmp_path, monkeypatch) -> None:
    now = [0.0]

    def measured(*_) -> list[dict]:
        now[0] += 70
        return ROWS

    monkeypatch.setattr(plan, "measured", measured)
    monkeypatch.setattr(plan.time, "perf_counter", lambda: now[0])
    path = tmp_path / "plan.json"
    plan.main(["--quick", "--minutes", "2", "--output", str(path)])
    assert len(json.loads(path.read_text(encoding="utf-8"))["rows"]) == 2 * len(ROWS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "benchmarks.plan: --threads must be at least 1, but it is 0"),
        (["--minutes", "0"], "benchmarks.plan: --minutes must be above 0, but it is 0"),
        (["--minutes", "nan"], "benchmarks.plan: --minutes must be above 0, but it is nan"),
        (["--worst", "-1"], "benchmarks.plan: --worst can't be negative, but it is -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message) -> None:
    with pytest.raises(SystemExit, match=f"^{message}$"):
        plan.main(["--quick", *arguments])
