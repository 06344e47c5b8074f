"""The README's first numbers, on small invented records."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks import report, summary
from benchmarks.gpu import figures
from benchmarks.pictures import summary as bars
from benchmarks.pictures.style import COLORS
from tests.support.records import MACHINE
from tests.support.report import put

README = (
    "# Title\n<!-- report:summary -->\nold\n<!-- /report:summary -->\n"
    "<!-- report:speedrun -->\n<!-- /report:speedrun -->\n"
)
SVG = "{http://www.w3.org/2000/svg}"


def way(seconds: float, ratio: float, mebibytes: int | None = None) -> dict:
    times = {name: {"median": t, "q1": t, "q3": t} for name, t in (("s", seconds), ("r", ratio))}
    found = {"seconds": times["s"], "ratio": times["r"], "precision": "fp32", "error": 1e-6}
    return found if mebibytes is None else {**found, "memory": {"bytes": mebibytes << 20}}


def record(rows: list[dict], **more) -> dict:
    return {
        "schema": 3,
        **MACHINE,
        "options": {"quick": False},
        "rows": rows,
        **more,
    }


def network(name: str, **peers) -> dict:
    return {"name": name, "title": name, "kind": "forward", "rounds": 5, "peers": peers}


TRAINING = network(
    "seed-training-b16",
    vgg_fast=way(0.5, 1.0, 100),
    eager=way(9.0, 18.0, 900),
    channels_last=way(2.0, 4.0, 250),
    compile=way(1.0, 2.0, 50),
)
LPIPS = {"name": "lpips", "ways": {"vgg_fast": way(0.04, 1.0), "compile": {"problem": "no"}}}


def models(backend: str | None, **summaries) -> dict:
    return record([], options={"backend": backend}, summary={"cases": 7, "equal": 6, **summaries})


def mean(value: float, cases: int) -> dict:
    return {"geometric_mean": value, "cases": cases, "slower": 0}


def table(*records) -> str:
    return "\n".join(summary.readme(*records))


def test_without_records_every_row_says_so_and_nothing_is_drawn(tmp_path) -> None:
    lines = table([], [], {}, []).splitlines()
    assert lines[2:] == [line for line in lines if "| not measured yet |" in line]
    assert len(lines) == 2 + 5
    assert bars.save(summary.found([], []), tmp_path) == [] and not list(tmp_path.iterdir())


def test_time_and_memory_are_ours_and_multiples_of_it() -> None:
    text = table([record([TRAINING])], [], {}, [])
    row = "| **500 ms** / 100 MiB | **4.00 ×** / 2.50 × | **2.00 ×** / 0.50 × |\n"
    assert f"| Training step, time / memory: VGG-11, 16 images at 224² {row}" in text
    assert "18.00" not in text  # eager in its slower format
    assert "| Inference: VGG-16, one image at 224² | not measured yet | – | – |\n" in text


def test_what_a_peer_lacks_is_left_out() -> None:
    text = table([], [], {}, [record([LPIPS])])
    assert "4 pairs at 256² | **40 ms** | – | – |\n" in text
    broken = {"name": "lpips", "ways": {"vgg_fast": {"problem": "no"}, "compile": way(1.0, 1.0)}}
    assert "4 pairs at 256² | not measured yet | – | – |\n" in table([], [], {}, [record([broken])])


def test_only_the_newest_machine_speaks() -> None:
    older = record([network("vgg16-forward-b1", vgg_fast=way(9.0, 1.0))], cpu="Another CPU")
    text = table([record([TRAINING]), older], [], {}, [])
    assert "one image at 224² | not measured yet" in text and "Another" not in text


def test_third_party_models_stand_against_what_they_replace() -> None:
    found = {
        None: models(None, forward=mean(1.5, 6), training=mean(1.25, 5)),
        "vgg_fast": models("vgg_fast", forward=mean(3.0, 4)),
    }
    text = table([], [], found, [])
    assert "| equal: 6 of 7 ¹, 6 of 7 ² | **1.50 ×** / **1.25 ×** ¹ | **3.00 ×** / – ² |\n" in text
    assert "\n¹ Geometric means of 6 and 5 models: `fuse(model)`, relative to eager" in text
    compiled = '`torch.compile(model, backend="vgg_fast")`, relative'
    assert f"\n² Geometric means of 4 models: {compiled}" in text
    del found[None]
    assert "| equal: 6 of 7 ² | not measured yet | **3.00 ×** / – ² |" in table([], [], found, [])


def test_a_gpus_training_step() -> None:
    peers = {
        "vgg_fast": {"median_ms": 12.34, "relative_time": 1.0},
        "eager channels_last": {"median_ms": 30.0, "relative_time": 2.5},
    }
    gpu = {"device": "Invented GPU", "dtype": "torch.bfloat16", "batch": 256, "groups": {}}
    assert "On an NVIDIA GPU | not measured yet |" in table([], [gpu], {}, [])
    gpu["groups"] = {f"{figures.TRAINING}, batch 256": {"peers": peers}}
    row = "VGG-11, bfloat16, batch 256 | **12.3 ms** | **2.50 ×** | – |"
    assert f"| Training step on Invented GPU: {row}" in table([], [gpu], {}, [])


def test_a_machine_is_named_once_with_its_commits() -> None:
    changed = {"hash": "def5678", "dirty": True}
    records = [record([]), record([], commit=changed), record([]), record([], commit=None)]
    place = "2 threads of Invented CPU (avx2), torch 2.15.0, 2026-01-02"
    assert summary.machines(records) == [f"{place}, commits abc1234, def5678 with changes"]
    assert summary.machines(records, commits=False) == [place]
    other = record([], cpu="Another CPU", commit=None)
    assert summary.machines([other, records[0]])[0] == place.replace("Invented", "Another")


def rectangles(picture: str) -> dict[str, list[float]]:
    """The lengths of a picture's bars, by peer; the legend's squares aren't among them."""
    found: dict[str, list[float]] = {}
    for rectangle in ET.fromstring(picture).iter(f"{SVG}rect"):
        if float(rectangle.get("x", 0)) >= bars.LEFT and rectangle.get("rx") is None:
            found.setdefault(rectangle.get("class"), []).append(float(rectangle.get("width")))
    return found


def test_bars_are_as_long_as_their_ratios_and_lie_within_the_picture() -> None:
    found = summary.found([record([TRAINING])], [record([LPIPS])])
    picture = bars.svg(found)
    lengths = rectangles(picture)
    unit = lengths["vgg_fast"][0]
    assert lengths["vgg_fast"] == [unit] * 3  # two times, and one of them has its memory
    assert lengths["channels_last"] == pytest.approx([4 * unit, 2.5 * unit], abs=0.2)
    assert lengths["compile"] == pytest.approx([2 * unit, 0.5 * unit], abs=0.2)
    assert bars.LEFT + max(map(max, lengths.values())) <= bars.WIDTH - bars.RIGHT
    words = [text.text for text in ET.fromstring(picture).iter(f"{SVG}text")]
    assert {"1 (500 ms)", "1 (100 MiB)", "4.00 ×", "not measured"} <= set(words)
    assert words[-1] == "float32, 2 threads of Invented CPU (avx2), torch 2.15.0, 2026-01-02"
    height = float(ET.fromstring(picture).get("height"))
    assert all(0 < float(t.get("y")) < height for t in ET.fromstring(picture).iter(f"{SVG}text"))


def test_ours_is_drawn_without_peers() -> None:
    alone = network("vgg16-forward-b1", vgg_fast=way(0.04, 1.0))
    lengths = rectangles(bars.svg(summary.found([record([alone])], [])))
    assert lengths == {"vgg_fast": [bars.WIDTH - bars.LEFT - bars.RIGHT]}


def test_the_picture_follows_the_readers_colours_and_names_no_font_file() -> None:
    picture = bars.svg(summary.found([record([TRAINING])], []))
    assert "prefers-color-scheme: dark" in picture and "url(" not in picture
    assert all(COLORS[peer] in picture for peer in bars.BARS)


def test_the_report_writes_both(root, monkeypatch) -> None:
    (root / "README.md").write_text(README, encoding="utf-8")
    drawn = []
    monkeypatch.setattr(bars, "save", lambda *arguments: drawn.append(arguments) or [])
    report.main(["--root", str(root)])
    text = (root / "README.md").read_text(encoding="utf-8")
    assert "16 images at 224² | not measured yet |" in text and "old" not in text
    assert drawn == [([], root / "docs" / "images")]
    limits = {"fma_gflops": 100.0, "gemm_gflops": 90.0, "copy_gbs": 10.0}
    put(root, "a.json", record([TRAINING], limits=limits, growth={}))
    assert "| **500 ms** / 100 MiB |" in report.documents(root)[root / "README.md"]
