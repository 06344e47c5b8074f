"""The tables of docs/performance/ that are of CPUs, on small invented records."""

from __future__ import annotations

from benchmarks import floor
from seed_layers import SEED_LAYERS
from tests.support.records import peer, record
from tests.support.report import made, put


def test_ratios_quartiles_means_and_memory(root) -> None:
    put(root, "a.json", record())
    pages = made(root)
    networks = pages["networks"]
    step = "| Seed network at 224², batch 16: training step"
    assert f"{step} | **2.50** (2.25–2.75) |\n" in networks
    assert f"{step}: peak memory | 2.50 |\n" in networks
    assert "2 layers of the seed network: forward, geometric mean | 4.00 |\n" in networks
    assert "2 layers of the seed network: backward, geometric mean | 0.87 |\n" in networks
    made_by = (
        "2 threads of Invented CPU (avx2), torch 2.15.0, 2026-01-02, commit abc1234 with changes"
    )
    assert made_by in networks and made_by in pages["measured"]
    assert "| 250 MiB |" in pages["measured"]


def test_the_tables_are_where_they_belong(root) -> None:
    put(root, "a.json", record())
    pages = made(root)
    heads = {
        "floor": "| layer, 16 images |",
        "networks": "geometric mean |",
        "measured": "| of the limit | of Winograd's limit |",
        "numbers": "Not measured yet.",
        "gpu": "| forward | training step |",
    }
    for name, head in heads.items():
        assert [page for page, text in pages.items() if head in text] == [name]


def test_variants_of_a_peer_are_among_the_rows_alone(root) -> None:
    found = record()
    half, finer = "channels_last bf16 mode", "channels_last tf32 mode"
    for name in (half, finer):
        seconds = peer(4.0, 2.0, precision=name.split()[1], error=1e-3)
        found["rows"][0]["peers"][name] = seconds
    put(root, "a.json", found)
    pages = made(root)
    assert f"| | eager | {half} |\n" in pages["networks"] and finer not in pages["networks"]
    # The limit in bf16 is an eighth of the time that was taken; in TF32 none is known.
    measured = pages["measured"]
    assert f"|  | {half} | 2.00 | 1.80–2.20 | 5 | 1.0e-03 | 2 % |" in measured
    assert f"|  | {finer} | 2.00 | 1.80–2.20 | 5 | 1.0e-03 | – | – |" in measured


def test_how_often_rounding_decides_is_told_if_it_was_measured(root) -> None:
    put(root, "a.json", record())
    assert "Not measured yet." in made(root)["numbers"]
    torch, ours = ({"relus": r, "windows": 0.0, "error": 2e-7} for r in (1.2e-7, 3e-8))
    decided = {**record(), "decisions": {"algorithms": {"torch": torch, "auto": ours}}}
    put(root, "decisions-a.json", decided)
    put(root, "decisions-b.json", {**decided, "date": "2025-01-01", "cpu": "An older one"})
    numbers = made(root)["numbers"]
    assert "On 2 threads of Invented CPU" in numbers
    assert "| PyTorch | 1e-07 | 0e+00 | 2.0e-07 |\n| vgg_fast, `auto` | 3e-08 |" in numbers


def test_the_share_of_the_limit_is_that_of_the_rows_precision(root) -> None:
    put(root, "a.json", record())
    measured = made(root)["measured"]
    # 5e10 operations at 100 GFLOP/s are half a second of 2; with 2e10, the fifth of a second.
    assert (
        "(`seed-training-b16`) | vgg_fast | 1.00 | 0.90–1.10 | 5 | 1.0e-06 | 25 % | 10 %"
        in measured
    )
    # In bf16 at 500 GFLOP/s a tenth of a second of 2; 5e8 bytes at 10 GB/s a twentieth.
    assert "bf16`) | vgg_fast | 1.00 | 0.90–1.10 | 5 | 1.0e-02 | 5 % | 2 %" in measured


def test_growth_is_told_with_its_exponents(root) -> None:
    put(root, "a.json", record())
    pages = made(root)
    line = "From 1 to 2 threads vgg_fast becomes **1.90** (1.85–1.95) times as fast"
    assert line in pages["networks"]
    assert "| batch | Seed network at 224², batch 16: forward | 1–4 | 0.50 |" in pages["measured"]


def test_a_peer_that_could_not_take_part_is_listed(root) -> None:
    put(root, "a.json", record())
    pages = made(root)
    line = "- ncnn: isn't installed (pip install ncnn) (1 of 6 rows)"
    assert line in pages["networks"] and line in pages["measured"]
    assert "| ncnn |" not in pages["networks"]  # no column for one that was never timed


def test_the_floor_names_what_binds(root) -> None:
    limits = {"fma_gflops": 100.0, "gemm_gflops": 90.0, "copy_gbs": 10.0}
    lines = list(floor.table(limits))[2:]
    assert len(lines) == len(SEED_LAYERS)
    assert "| 1→64 at 224² + pool | 0.9 |" in lines[0] and "| 9.2 ms |" in lines[0]
    assert "slower (0.26): direct" in lines[0] and "3.1 times as fast" in lines[1]
    assert "| memory |" in list(floor.table({**limits, "copy_gbs": 0.1}))[2]
