"""benchmarks/report.py and pictures.py, on small invented records."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from benchmarks import floor, report
from tests.cases import SEED_LAYERS

README = "# Title\n<!-- report:results -->\nold\n<!-- /report:results -->\nafter\n"
NOTEBOOK = (
    "<!-- report:floor -->\n<!-- /report:floor -->\n"
    "<!-- report:measured -->\n<!-- /report:measured -->\n"
)


def contender(seconds: float, ratio: float, **more) -> dict:
    return {
        "precision": "fp32",
        "version": "1",
        "error": 1e-6,
        "seconds": {"median": seconds, "q1": seconds * 0.9, "q3": seconds * 1.1},
        "ratio": {"median": ratio, "q1": ratio * 0.9, "q3": ratio * 1.1},
        **more,
    }


def row(name: str, title: str, kind: str, contenders: dict) -> dict:
    return {
        "name": name,
        "title": title,
        "kind": kind,
        "shape": [4, 1, 224, 224],
        "rounds": 5,
        "command": f"python -m benchmarks.run --only {name}",
        "contenders": contenders,
    }


def record(date: str = "2026-01-02T03:04:05+00:00", cpu: str = "Invented CPU") -> dict:
    rows = [
        row(
            "network-training-b16",
            "Seed network at 224², batch 16: training step",
            "training step",
            {
                "fused": contender(2.0, 1.0, memory={"bytes": 100 << 20}),
                "eager": contender(5.0, 2.5, memory={"bytes": 250 << 20}),
                "ncnn": {"precision": "fp32", "problem": "isn't installed (pip install ncnn)"},
            },
        )
    ]
    for kind, ratios in (("forward", (2.0, 8.0)), ("backward", (1.5, 0.5))):
        for layer, ratio in zip(SEED_LAYERS[:2], ratios, strict=True):
            contenders = {"fused": contender(1.0, 1.0), "eager": contender(ratio, ratio)}
            title = f"{layer.op} {layer.c}→{layer.k} at {layer.size}², batch 4: {kind}"
            rows.append(row(f"{layer.op}-{layer}-{kind}", title, kind, contenders))
    return {
        "schema": 1,
        "date": date,
        "cpu": cpu,
        "threads": 2,
        "instruction_set": "avx2",
        "versions": {"torch": "2.15.0"},
        "commit": {"hash": "abc1234", "dirty": True},
        "options": {"quick": False},
        "limits": {"fma_gflops": 100.0, "gemm_gflops": 90.0, "copy_gbs": 10.0},
        "rows": rows,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (tmp_path / "docs" / "performance.md").write_text(NOTEBOOK, encoding="utf-8")
    return tmp_path


def put(root: Path, name: str, content: dict) -> None:
    path = root / "benchmarks" / "results" / name
    path.write_text(json.dumps(content), encoding="utf-8")


def made(root: Path) -> tuple[str, str]:
    report.main(["--root", str(root)])
    files = (root / "README.md", root / "docs" / "performance.md")
    return tuple(path.read_text(encoding="utf-8") for path in files)  # type: ignore[return-value]


def test_without_records_nothing_is_claimed(root) -> None:
    readme, notebook = made(root)
    assert "On CPUs: not measured yet." in readme and "GPUs: not measured yet." in readme
    assert "old" not in readme and readme.endswith("after\n")
    assert " ms |" not in notebook and notebook.count("not measured yet") >= len(SEED_LAYERS)
    assert not (root / "docs" / "images").exists()


def test_ratios_quartiles_means_and_memory(root) -> None:
    put(root, "a.json", record())
    readme, notebook = made(root)
    step = "| Seed network at 224², batch 16: training step"
    assert f"{step} | **2.50** (2.25–2.75) | – |" in readme
    assert f"{step}: peak memory | 2.50 | – |" in readme
    assert "2 layers of the seed network: forward, geometric mean | 4.00 | – |" in readme
    assert "2 layers of the seed network: backward, geometric mean | 0.87 | – |" in readme
    assert "2 threads of Invented CPU (avx2), torch 2.15.0, 2026-01-02, commit abc1234" in readme
    assert "with changes" in readme
    assert "| 1.0e-06 | 250 MiB |" in notebook


def test_scaling_is_told_where_it_was_measured(root) -> None:
    put(root, "a.json", record())
    assert "From 1 to" not in made(root)[0]
    scaled = record()
    times = {"median": 1.9, "q1": 1.85, "q3": 1.95}
    scaled["scaling"] = {"work": scaled["rows"][0]["name"], "threads": 2, "ratio": times}
    put(root, "a.json", scaled)
    readme, _ = made(root)
    assert "From 1 to 2 threads vgg_fast becomes **1.90** (1.85–1.95) times as fast" in readme


def test_a_contender_that_could_not_take_part_is_listed(root) -> None:
    put(root, "a.json", record())
    readme, notebook = made(root)
    assert "- ncnn isn't installed (pip install ncnn) (network-training-b16)" in readme
    assert "| ncnn | isn't installed (pip install ncnn) |" in notebook


def test_the_floor_is_the_longer_of_computing_and_moving(root) -> None:
    first, second = SEED_LAYERS[:2]
    limits = record()["limits"]
    assert floor.seconds(second, 16, limits) == floor.operations(second, 16) / 100e9
    narrow = {**limits, "copy_gbs": 0.1}
    assert floor.seconds(first, 16, narrow) == floor.moved_bytes(first, 16) / 0.1e9
    assert floor.operations(first, 1) == 2 * 9 * 64 * 224 * 224
    assert floor.moved_bytes(first, 1) == 4 * (224 * 224 + 64 * 112 * 112 + 9 * 64)
    # 9 · 16 multiplications of a tile become 36, and the transforms cost a part of the gain.
    assert all(1 < floor.predicted_gain(layer) < 4 for layer in SEED_LAYERS[1:])
    assert floor.predicted_gain(first) < 1


def test_the_newest_record_of_a_machine_counts_and_trials_do_not(root) -> None:
    newer = record(date="2026-02-01T00:00:00+00:00")
    newer["rows"][0]["contenders"]["eager"] = contender(6.0, 3.0)
    quick = copy.deepcopy(record(date="2026-03-01T00:00:00+00:00"))
    quick["options"]["quick"] = True
    for name, content in (("a", newer), ("b", record()), ("c", quick), ("d.partial", quick)):
        put(root, f"{name}.json", content)
    put(root, "other.json", record(cpu="Another CPU"))
    readme, notebook = made(root)
    assert "**3.00**" in readme and "**2.50**" not in readme
    assert notebook.index("On 2 threads of Invented") < notebook.index("On 2 threads of Another")
    assert "2026-03-01" not in readme + notebook


def test_gpu_records_of_benchmarks_gpu(root) -> None:
    peers = {
        "fused": {"median_ms": 0.5, "times_fused": 1.0},
        "compile": {"median_ms": 0.6, "times_fused": 1.2},
    }
    gpu = {"date": "2026-01-01T00:00:00", "device": "Invented GPU", "dtype": "torch.bfloat16"}
    put(root, "g.json", {**gpu, "torch": "2.15.0", "groups": {"layer": {"peers": peers}}})
    readme, _ = made(root)
    assert "On Invented GPU, bfloat16" in readme and "| layer | 0.500 | 1.20 |" in readme
    assert "On CPUs: not measured yet." in readme


def test_the_pictures_are_drawn_and_the_same_again(root) -> None:
    put(root, "a.json", record())
    made(root)
    names = [f"speedup-{what}.{kind}" for what in ("network", "layers") for kind in ("svg", "png")]
    images = root / "docs" / "images"
    before = {name: (images / name).read_bytes() for name in names}
    assert before["speedup-network.png"].startswith(b"\x89PNG")
    assert b"<svg" in before["speedup-layers.svg"]
    made(root)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_check_finds_a_stale_table_and_changes_nothing(root) -> None:
    put(root, "a.json", record())
    with pytest.raises(SystemExit, match="not what the records say"):
        report.main(["--root", str(root), "--check"])
    assert (root / "README.md").read_text(encoding="utf-8") == README
    made(root)
    report.main(["--root", str(root), "--check"])


@pytest.mark.parametrize("content", ["{", "[]", '{"options": {}}'])
def test_a_file_that_is_no_record_is_named(root, content) -> None:
    (root / "benchmarks" / "results" / "bad.json").write_text(content)
    with pytest.raises(SystemExit, match=r"bad\.json is no record"):
        report.main(["--root", str(root)])
    assert (root / "README.md").read_text(encoding="utf-8") == README


def test_missing_markers_and_files_are_named(root) -> None:
    (root / "docs" / "performance.md").write_text("nothing")
    with pytest.raises(SystemExit, match=r"performance\.md lacks the markers <!-- report:floor"):
        report.main(["--root", str(root)])
    assert (root / "README.md").read_text(encoding="utf-8") == README
    (root / "README.md").unlink()
    with pytest.raises(SystemExit, match=r"README\.md can't be read"):
        report.main(["--root", str(root)])
