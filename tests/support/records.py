"""Small invented records, as benchmarks.run, .models and .gpu write them."""

from __future__ import annotations

from benchmarks.models import record as of_models
from seed_layers import SEED_LAYERS

MACHINE = {  # what benchmarks.record.environment() finds
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "Invented CPU",
    "threads": 2,
    "instruction_set": "avx2",
    "versions": {"torch": "2.15.0"},
    "commit": {"hash": "abc1234", "dirty": False},
}


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
        **MACHINE,
        "schema": 3,
        "date": date,
        "cpu": cpu,
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
