"""What docs/performance/gpu.md says of a GPU's record, and without one."""

from __future__ import annotations

from benchmarks.gpu import figures
from seed_layers import SEED_LAYERS
from tests.support.report import made, page_of, put


def test_without_a_record_every_figure_is_to_be_measured(root) -> None:
    gpu = made(root)["gpu"]
    assert "On NVIDIA GPUs: not measured yet." in gpu and "\nold\n" not in gpu
    figures_and_variants = len(figures.FIGURES) + 2 * len(figures.VARIANTS)
    assert gpu.count("| not measured yet") == figures_and_variants


def test_gpu_records_of_benchmarks_gpu(root) -> None:
    peers = {
        "vgg_fast": {"median_ms": 0.5, "relative_time": 1.0},
        "compile": {"median_ms": 0.6, "relative_time": 1.2},
    }
    gpu = {"date": "2026-01-01T00:00:00", "device": "Invented GPU", "dtype": "torch.bfloat16"}
    put(root, "g.json", {**gpu, "torch": "2.15.0", "groups": {"layer": {"peers": peers}}})
    pages = made(root)
    gpu = pages["gpu"]
    assert "On Invented GPU, bfloat16" in gpu and "| layer | 0.500 | 1.20 |" in gpu
    assert "On NVIDIA GPUs: not measured yet." not in gpu
    assert "On CPUs: not measured yet." in pages["networks"]
    assert "](../images/speedup-invented-gpu.svg)" in gpu
    assert (root / "docs" / "images" / "speedup-invented-gpu.svg").exists()
    page = page_of(root)
    assert "Invented GPU, bfloat16" in page and "<td>1.20</td>" in page


def test_the_figures_to_reach_are_read_off_a_gpus_record(root) -> None:
    variant = figures.VARIANTS[1]
    peers = {
        "vgg_fast": {"median_ms": 2.5, "relative_time": 1.0},
        "eager channels_last": {"median_ms": 5.0, "relative_time": 2.0},
        "compile": {"median_ms": 4.0, "relative_time": 1.6},
    }
    problems = {"apex": "isn't installed"}
    found = {
        "date": "2026-01-01T00:00:00",
        "device": "Invented GPU",
        "device_type": "cuda",
        "dtype": "torch.bfloat16",
        "torch": "2.15.0",
        "batch": 256,
        "peak_bytes": {"vgg_fast": 60, "eager channels_last": 100},
        "groups": {
            figures.compiled_name(figures.FORWARD, 256): {"peers": peers, "problems": problems},
            variant.group(True): {"peers": peers, "problems": problems},
        },
    }
    put(root, "a.json", found)
    put(root, "b.json", {**found, "date": "2026-02-01T00:00:00", "only": ["forward"], "groups": {}})
    gpu = made(root)["gpu"]
    assert '| seed network at 224²: forward | `torch.compile(mode="max-autotune")`' in gpu
    assert "| 1.5 × | 1.60 |" in gpu
    assert "| eager channels_last with AMP | ≤ 0.5 | 0.60 (not reached) |" in gpu
    assert f"| {variant.name}, batch 32 | not measured yet | 2.50 ms, 2.00 × |" in gpu
    assert "- apex: isn't installed (2 of 2 rows)" in gpu
    assert gpu.count("not measured yet") == 4 + 2 * len(figures.VARIANTS) - 1


def test_each_gpu_has_its_part_newest_first(root) -> None:
    ours = {"median_ms": 0.5, "relative_time": 1.0}
    group = {"peers": {"vgg_fast": ours}, "problems": {"apex": "isn't installed"}}
    for month, name in ((1, "Older"), (2, "Newer")):
        found = {"date": f"2026-0{month}-01T00:00:00", "device": f"{name} GPU"}
        found |= {"dtype": "torch.float16", "torch": "2", "groups": {"layer": group}}
        put(root, f"{name}.json", found)
    newer, older = made(root)["gpu"].split("\n\nOn Older GPU, float16")
    assert "\nOn Newer GPU, float16" in newer
    assert "to reach | found |" in newer and "to reach | found |" in older


def test_what_the_second_call_found_fills_up_the_first(root) -> None:
    facts = {"device": "Invented GPU", "dtype": "torch.bfloat16", "torch": "2", "batch": 256}
    ours = {"vgg_fast": {"median_ms": 0.5, "relative_time": 1.0}}
    layer = {"peers": {**ours, "eager": {"median_ms": 1.0, "relative_time": 2.0}}, "problems": {}}
    compiled = {"peers": {**ours, "compile": {"median_ms": 1.0, "relative_time": 1.75}}}
    date = "2026-01-01T00:00:00"
    put(root, "a.json", {**facts, "date": date, "plan": "first", "groups": {"layer": layer}})
    name = figures.compiled_name(figures.BLOCK, 256)
    second = {**facts, "date": date, "plan": "second", "groups": {name: compiled}}
    put(root, "b.json", {**second, "device_type": "cuda"})
    gpu = made(root)["gpu"]
    assert gpu.count("On Invented GPU, bfloat16") == 1
    assert "| layer | 0.500 | 2.00 | – |" in gpu
    assert "| 4 × | 1.75 (not reached) |" in gpu


def test_each_backend_is_held_against_the_products_rate(root) -> None:
    layer = SEED_LAYERS[2]
    ms = figures.operations(layer, 256) / 1e9 / 700  # at 700 TFLOP/s
    backends = {
        figures.layer_name(layer, 256, "forward"): {"peers": {"triton": {"median_ms": ms}}},
        figures.layer_name(layer, 256, "backward"): {"peers": {"cpp": {"median_ms": 4 * ms}}},
    }
    found = {"date": "2026-01-01T00:00:00", "device": "Invented GPU", "dtype": "torch.bfloat16"}
    found |= {"torch": "2", "batch": 256, "groups": {"a": {"peers": {}, "problems": {}}}}
    found |= {"layers": [list(layer)], "ceilings": {"product_tflops": 800.0}, "backends": backends}
    put(root, "a.json", found)
    gpu = made(root)["gpu"]
    assert "in TFLOP/s, of which a matrix product has 800 in the same run" in gpu
    assert f"| {figures.layer_name(layer, 256, 'forward')} | 700 (88 %) | – | – | – |" in gpu
    assert f"| {figures.layer_name(layer, 256, 'backward')} | – | 350 (44 %) | – | – |" in gpu
