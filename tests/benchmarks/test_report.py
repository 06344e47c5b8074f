"""benchmarks/report.py and what it draws and writes, on small invented records."""

from __future__ import annotations

import copy
import html.parser
import re

import pytest

from benchmarks import floor, pictures, report
from benchmarks.gpu import figures
from benchmarks.models import record as of_models
from benchmarks.pictures import dots
from seed_layers import SEED_LAYERS
from tests.support.report import README, made, put


def peer(seconds: float, ratio: float, **more) -> dict:
    return {
        "precision": "fp32",
        "version": "1",
        "error": 1e-6,
        "seconds": {"median": seconds, "q1": seconds * 0.9, "q3": seconds * 1.1},
        "ratio": {"median": ratio, "q1": ratio * 0.9, "q3": ratio * 1.1},
        **more,
    }


def row(name: str, title: str, kind: str, peers: dict) -> dict:
    return {
        "name": name,
        "title": title,
        "level": "operator" if name.startswith("conv") else "network",
        "kind": kind,
        "precision": "bf16" if name.endswith("bf16") else "fp32",
        "shape": [4, 1, 224, 224],
        "operations": {"direct": 5e10, "winograd": 2e10},
        "bytes": {"fp32": 1e9, "bf16": 5e8},
        "rounds": 5,
        "command": f"python -m benchmarks.run --only {name}",
        "peers": peers,
    }


def record(date: str = "2026-01-02T03:04:05+00:00", cpu: str = "Invented CPU") -> dict:
    rows = [
        row(
            "seed-training-b16",
            "Seed network at 224², batch 16: training step",
            "training step",
            {
                "vgg_fast": peer(2.0, 1.0, memory={"bytes": 100 << 20}),
                "eager": peer(5.0, 2.5, memory={"bytes": 250 << 20}),
                "ncnn": {"precision": "fp32", "problem": "isn't installed (pip install ncnn)"},
            },
        ),
        row(
            "seed-forward-b16-bf16",
            "Seed network at 224², batch 16: forward, bf16",
            "forward",
            {
                "vgg_fast": peer(2.0, 1.0, precision="bf16", error=1e-2),
                "eager": peer(1.0, 0.5, precision="bf16", error=1e-2),
            },
        ),
    ]
    for kind, ratios in (("forward", (2.0, 8.0)), ("backward", (1.5, 0.5))):
        for layer, ratio in zip(SEED_LAYERS[:2], ratios, strict=True):
            peers = {"vgg_fast": peer(1.0, 1.0), "eager": peer(ratio, ratio)}
            title = f"{layer.op} {layer.c}→{layer.k} at {layer.size}², batch 4: {kind}"
            rows.append(row(f"{layer.op}-{layer}-{kind}", title, kind, peers))
    return {
        "schema": 3,
        "date": date,
        "cpu": cpu,
        "threads": 2,
        "instruction_set": "avx2",
        "versions": {"torch": "2.15.0"},
        "commit": {"hash": "abc1234", "dirty": True},
        "options": {"quick": False},
        "limits": {
            "fma_gflops": 100.0,
            "gemm_gflops": 90.0,
            "gemm_bf16_gflops": 500.0,
            "copy_gbs": 10.0,
        },
        "rows": rows,
        "growth": {
            "batch": axis("images", [1.0, 4.0], [1.0, 2.0], 0.5),
            "threads": axis("threads", [1.0, 2.0], [2.0, 1.0], -1.0),
        },
    }


def axis(label: str, values: list[float], medians: list[float], exponent: float) -> dict:
    seconds = [{"median": m, "q1": m * 0.9, "q3": m * 1.1} for m in medians]
    fused = {"precision": "fp32", "seconds": seconds, "exponent": exponent}
    if label == "threads":
        fused["ratio"] = {"median": 1.9, "q1": 1.85, "q3": 1.95}
    absent = {"seconds": [None, None], "exponent": None, "problem": "isn't installed"}
    peers = {"vgg_fast": fused, "openvino": absent}
    title = "Seed network at 224², batch 16: forward"
    return {"title": title, "label": label, "values": values, "peers": peers}


def model(name: str, forward: float | None, training: float | None = None, **more) -> dict:
    found = {"eligible": 4, "replaced": 3, "equal": True, "error": 2e-6, "problem": None}
    ratios = {"forward": forward, "training": training}
    times = {kind: {"seconds": {}, "ratio": r} for kind, r in ratios.items() if r is not None}
    return {"name": name, "version": "1.2", **found, **times, "seconds": 3.0, **more}


def models_record(rows: list[dict], backend: str | None = None, **more) -> dict:
    """The newest one is of 2026-01-02, if nothing else is said."""
    options = {"only": "", "size": "full", "rounds": 5, "threads": 2, "backend": backend}
    options |= {"inference": False, "training": False}
    found = record()
    for name in ("schema", "limits", "growth"):
        del found[name]
    missing = {"absent.one": "absent isn't installed", "absent.two": "absent isn't installed"}
    summary = of_models.summary(rows)
    return {
        **found,
        "options": options,
        "rows": rows,
        "missing": missing,
        "summary": summary,
        **more,
    }


MODELS = [
    model("torchvision.vgg16", 2.0, 3.0),
    model("torchvision.resnet18", 0.5),
    model("torchvision.mobilenet", 1.1, 1.1, eligible=0, replaced=0),
    model("pattern.unet", 8.0, 0.9),
    model("lpips.wrong", None, equal=False, problem="result has another dtype"),
    {"name": "lpips.raises", "version": "1.2", "problem": "ValueError: no", "seconds": 0.1},
]


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
    assert f"{step} | **2.50** (2.25–2.75) |\n" in readme
    assert f"{step}: peak memory | 2.50 |\n" in readme
    assert "2 layers of the seed network: forward, geometric mean | 4.00 |\n" in readme
    assert "2 layers of the seed network: backward, geometric mean | 0.87 |\n" in readme
    assert "2 threads of Invented CPU (avx2), torch 2.15.0, 2026-01-02, commit abc1234" in readme
    assert "with changes" in readme and "| 250 MiB |" in notebook


def test_variants_of_a_peer_are_in_the_notebook_alone(root) -> None:
    found = record()
    half, finer = "channels_last bf16 mode", "channels_last tf32 mode"
    for name in (half, finer):
        seconds = peer(4.0, 2.0, precision=name.split()[1], error=1e-3)
        found["rows"][0]["peers"][name] = seconds
    put(root, "a.json", found)
    readme, notebook = made(root)
    assert f"| | eager | {half} |\n" in readme and finer not in readme
    # The limit in bf16 is an eighth of the time that was taken; in TF32 none is known.
    assert f"|  | {half} | 2.00 | 1.80–2.20 | 5 | 1.0e-03 | 2 % |" in notebook
    assert f"|  | {finer} | 2.00 | 1.80–2.20 | 5 | 1.0e-03 | – | – |" in notebook


def test_how_often_rounding_decides_is_told_if_it_was_measured(root) -> None:
    put(root, "a.json", record())
    assert "Not measured yet." in made(root)[0]
    torch, ours = ({"relus": r, "windows": 0.0, "error": 2e-7} for r in (1.2e-7, 3e-8))
    decided = {**record(), "decisions": {"algorithms": {"torch": torch, "auto": ours}}}
    put(root, "decisions-a.json", decided)
    put(root, "decisions-b.json", {**decided, "date": "2025-01-01", "cpu": "An older one"})
    readme, _ = made(root)
    assert "On 2 threads of Invented CPU" in readme
    assert "| PyTorch | 1e-07 | 0e+00 | 2.0e-07 |\n| vgg_fast, `auto` | 3e-08 |" in readme


def test_the_share_of_the_limit_is_that_of_the_rows_precision(root) -> None:
    put(root, "a.json", record())
    _, notebook = made(root)
    # 5e10 operations at 100 GFLOP/s are half a second of 2; with 2e10, the fifth of a second.
    assert (
        "(`seed-training-b16`) | vgg_fast | 1.00 | 0.90–1.10 | 5 | 1.0e-06 | 25 % | 10 %"
        in notebook
    )
    # In bf16 at 500 GFLOP/s a tenth of a second of 2; 5e8 bytes at 10 GB/s a twentieth.
    assert "bf16`) | vgg_fast | 1.00 | 0.90–1.10 | 5 | 1.0e-02 | 5 % | 2 %" in notebook


def test_growth_is_told_with_its_exponents(root) -> None:
    put(root, "a.json", record())
    readme, notebook = made(root)
    assert "From 1 to 2 threads vgg_fast becomes **1.90** (1.85–1.95) times as fast" in readme
    assert "| batch | Seed network at 224², batch 16: forward | 1–4 | 0.50 |" in notebook
    page = (root / "docs" / "report.html").read_text(encoding="utf-8")
    assert "Time against batch size" in page and "Time against image side" not in page


def test_a_peer_that_could_not_take_part_is_listed(root) -> None:
    put(root, "a.json", record())
    readme, notebook = made(root)
    line = "- ncnn: isn't installed (pip install ncnn) (1 of 6 rows)"
    assert line in readme and line in notebook
    assert "| ncnn |" not in readme  # no column for one that was never timed


def test_the_floor_names_what_binds(root) -> None:
    limits = {"fma_gflops": 100.0, "gemm_gflops": 90.0, "copy_gbs": 10.0}
    lines = list(floor.table(limits))[2:]
    assert len(lines) == len(SEED_LAYERS)
    assert "| 1→64 at 224² + pool | 0.9 |" in lines[0] and "| 9.2 ms |" in lines[0]
    assert "slower (0.26): direct" in lines[0] and "3.1 times as fast" in lines[1]
    assert "| memory |" in list(floor.table({**limits, "copy_gbs": 0.1}))[2]


def test_the_newest_record_of_a_machine_counts_and_trials_do_not(root) -> None:
    newer = record(date="2026-02-01T00:00:00+00:00")
    newer["rows"][0]["peers"]["eager"] = peer(6.0, 3.0)
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
        "vgg_fast": {"median_ms": 0.5, "relative_time": 1.0},
        "compile": {"median_ms": 0.6, "relative_time": 1.2},
    }
    gpu = {"date": "2026-01-01T00:00:00", "device": "Invented GPU", "dtype": "torch.bfloat16"}
    put(root, "g.json", {**gpu, "torch": "2.15.0", "groups": {"layer": {"peers": peers}}})
    readme, _ = made(root)
    assert "On Invented GPU, bfloat16" in readme and "| layer | 0.500 | 1.20 |" in readme
    assert "On CPUs: not measured yet." in readme
    assert "docs/images/speedup-invented-gpu.svg" in readme
    assert (root / "docs" / "images" / "speedup-invented-gpu.svg").exists()
    page = (root / "docs" / "report.html").read_text(encoding="utf-8")
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
            f"{figures.FORWARD}, batch 256": {"peers": peers, "problems": problems},
            variant.group(True): {"peers": peers, "problems": problems},
        },
    }
    put(root, "a.json", found)
    put(root, "b.json", {**found, "date": "2026-02-01T00:00:00", "only": ["forward"], "groups": {}})
    readme, _ = made(root)
    assert '| seed network at 224²: forward | `torch.compile(mode="max-autotune")`' in readme
    assert "| 1.5 × | 1.60 |" in readme
    assert "| eager channels_last with AMP | ≤ 0.5 | 0.60 (not reached) |" in readme
    assert f"| {variant.name}, batch 32 | not measured yet | 2.50 ms, 2.00 × |" in readme
    assert "- apex: isn't installed (2 of 2 rows)" in readme
    others = 5  # CPUs, the two ways of models, perceptual losses, and the record
    assert readme.count("not measured yet") == 4 + 2 * len(figures.VARIANTS) - 1 + others


def test_the_documents_pictures_are_drawn_and_the_same_again(root) -> None:
    put(root, "a.json", record())
    made(root)
    names = [f"{name}.svg" for name in pictures.IN_DOCUMENTS]
    images = root / "docs" / "images"
    before = {name: (images / name).read_bytes() for name in names}
    assert all(b"<svg" in content for content in before.values())
    made(root)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_models_of_other_people(root) -> None:
    put(root, "models-a.json", models_record(MODELS))
    readme, notebook = made(root)
    line = (
        "- `vgg_fast.fuse(model)`: 4 of 6 models compute the same; times as fast, geometric means: "
        "**2.00** forward (1 of 3 are below 0.95), **1.64** forward and backward "
        "(1 of 2 are below 0.95). On 2 threads of Invented CPU (avx2), torch 2.15.0, 2026-01-02"
    )
    assert line in readme
    assert readme.count("relative to `torch.compile(model)`: not measured yet.") == 1
    assert '<img src="docs/images/speedup-models.svg"' in readme
    assert "On CPUs: not measured yet." in readme  # it is no record of benchmarks.run
    assert "| torchvision.vgg16 | 1.2 | 4 | 3 | yes | 2e-06 | 2.00 | 3.00 |\n" in notebook
    assert "| torchvision.resnet18 | 1.2 | 4 | 3 | yes | 2e-06 | 0.50 | – |\n" in notebook
    assert "| lpips.wrong | 1.2 | 4 | 3 | NO | 2e-06 | – | – |\n" in notebook
    assert "| lpips.raises | 1.2 | – | – | – | – | – | – |\n" in notebook
    assert "- lpips.wrong: result has another dtype\n- lpips.raises: ValueError: no\n" in notebook
    assert "- absent.one, absent.two: absent isn't installed\n" in notebook
    images = root / "docs" / "images"
    assert [path.name for path in images.iterdir()] == ["speedup-models.svg"]


def test_the_compile_backend_has_a_record_of_its_own(root) -> None:
    rows = [model("torchvision.vgg16", 1.5, 1.25, replaced=None)]
    put(root, "models-vgg_fast-a.json", models_record(rows, backend="vgg_fast"))
    readme, notebook = made(root)
    assert "- `vgg_fast.fuse(model)`: not measured yet.\n" in readme
    assert (
        '- `torch.compile(model, backend="vgg_fast")`, relative to `torch.compile(model)`: 1 of 1 '
        "models compute the same; times as fast, geometric means: **1.50** forward (0 of 1 are "
        "below 0.95), **1.25** forward and backward"
    ) in readme
    assert "| torchvision.vgg16 | 1.2 | 4 | – | yes | 2e-06 | 1.50 | 1.25 |\n" in notebook
    assert "speedup-models" not in readme and "images/speedup-models-vgg_fast.svg" in notebook


def test_only_the_newest_record_of_all_models_counts(root) -> None:
    faster = [model("torchvision.vgg16", 4.0)]
    later = {"date": "2026-02-01T00:00:00+00:00"}
    options = models_record(faster)["options"]
    put(root, "models-a.json", models_record(MODELS))
    put(root, "models-b.json", models_record(faster, date="2025-12-31T00:00:00+00:00"))
    put(root, "models-c.partial.json", models_record(faster, **later))
    for name, part in {
        "d": {"only": "vgg"},
        "e": {"size": "small"},
        "f": {"rounds": 0},
        "g": {"training": True},
    }.items():
        put(root, f"models-{name}.json", models_record(faster, options=options | part, **later))
    readme, _ = made(root)
    assert "**2.00** forward" in readme and "4.00" not in readme
    put(root, "models-h.json", models_record(faster, **later))
    assert "**4.00** forward" in made(root)[0]


def test_the_picture_has_a_line_for_each_package_and_names_its_extremes() -> None:
    figure = dots.models(models_record([*MODELS, model("torchvision.vgg11", 1.5, 1.5)]))
    axes = figure.axes[0]
    # By their means, and what is from no package last; those without a ratio aren't there.
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "torchvision",
        "written without a package",
    ]
    named = [text.get_text() for text in axes.texts]
    assert named == ["vgg16", "resnet18", "vgg16", "vgg11", "unet", "unet"]
    assert dots.models(models_record([model("torchvision.mobilenet", 1.0, eligible=0)])) is None


class Page(html.parser.HTMLParser):
    """What a page asks for from elsewhere, its words, and whether its elements are closed."""

    EMPTY = ("meta", "br", "path", "use", "rect", "image", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not str(value).startswith("#"):
                self.asked.append(f"{tag} {name}={value}")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_has_everything_and_needs_nothing_else(root) -> None:
    first = record()
    first["rows"][0]["title"] = "A <b>bold</b> & title"
    put(root, "a.json", first)
    put(root, "b.json", record(cpu="Another CPU"))
    put(root, "models-a.json", models_record(MODELS))
    made(root)
    text = (root / "docs" / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == [] and page.asked == []
    assert "url(http" not in text and "@import" not in text
    assert text.count("<svg") == 15 and "currentColor" in text and "prefers-color-scheme" in text
    assert "A <b>bold</b> & title" in page.words
    for found in first["rows"]:
        assert found["command"] in page.words
    for words in (
        "Invented CPU",
        "Another CPU",
        "Roofline",
        "pip install ncnn",
        "25 %",
        "lpips.raises",
    ):
        assert words in page.words
    assert "Not measured yet" in page.words  # of GPUs
    ids = re.findall(r' id="(m\d[^"]*)"', text)
    assert len(ids) == len(set(ids))
    made(root)
    assert (root / "docs" / "report.html").read_text(encoding="utf-8") == text


def test_check_finds_a_stale_table_and_changes_nothing(root) -> None:
    put(root, "a.json", record())
    with pytest.raises(SystemExit, match="not what the records say"):
        report.main(["--root", str(root), "--check"])
    assert (root / "README.md").read_text(encoding="utf-8") == README
    made(root)
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
    assert (root / "README.md").read_text(encoding="utf-8") == README


def test_missing_markers_and_files_are_named(root) -> None:
    (root / "docs" / "performance.md").write_text("nothing")
    with pytest.raises(SystemExit, match=r"performance\.md lacks the markers <!-- report:floor"):
        report.main(["--root", str(root)])
    assert (root / "README.md").read_text(encoding="utf-8") == README
    (root / "README.md").unlink()
    with pytest.raises(SystemExit, match=r"README\.md can't be read"):
        report.main(["--root", str(root)])
