"""The steps of a run, by worth: what the first minutes on a GPU must tell comes first."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.gpu import ahead, candidates, counters, figures, peers, tests
from benchmarks.gpu.figures import LAYERS, PROBE
from benchmarks.gpu.run import Run
from benchmarks.gpu.winners import adopted, winners
from seed_layers import SeedLayer
from vgg_fast.dispatch import choices
from vgg_fast.dispatch.tiles import Call, calls_of

PROBED = ("triton", "cpp", "cpp sm_90a")
PROBED_WORK = ("fprop", "backward", "dgrad", "wgrad")
PROBED_BATCHES = (16, 256)
PROBE_ROUNDS = 3


def compiling(run: Run) -> None:
    """Triton's kernels, by all cores."""
    ahead.compile_ahead(run, PROBED_BATCHES)


def probe(run: Run) -> None:
    """Every backend's kernels at every layer: whether they run, are right, and how fast they are.

    What expand takes is what a backward pass takes beyond its two products.
    """
    batches = [min(batch, run.batch) for batch in PROBED_BATCHES]
    for batch in dict.fromkeys(reversed(batches)):  # the large one tells most
        for layer in run.layers:
            for work in PROBED_WORK:
                name = figures.work_name(layer, batch, work)
                entry = run.group(
                    PROBE, name, _spec(layer, batch, work), _on(run, PROBED),
                    _that_failed(run, layer), base="triton", rounds=PROBE_ROUNDS,
                )  # fmt: skip
                _remember(run, layer, entry)


def _spec(layer: SeedLayer, batch: int, work: str) -> dict[str, Any]:
    return {"kind": "layer", "layer": layer, "batch": batch, "work": work}


def _on(run: Run, backends: tuple[str, ...]) -> list[str]:
    """The C++ kernels of a GPU and Triton's run on GPUs only; elsewhere all is "vgg_fast"'s."""
    if run.options.device != "cpu":
        return list(backends)
    return ["vgg_fast"] + [name for name in backends if name == "reference"]


def _that_failed(run: Run, layer: SeedLayer) -> dict[str, str]:
    return {backend: why for (where, backend), why in run.failed.items() if where == layer}


def _remember(run: Run, layer: SeedLayer, entry: Mapping[str, Any]) -> None:
    """A backend that crashed, hung or was wrong at a layer isn't asked for it again."""
    for backend, why in entry["problems"].items():
        if backend in choices.BACKENDS and figures.is_failure(why):
            told = why if why.startswith("left out") else f"left out: it {why}"
            run.failed.setdefault((layer, backend), told)


def ceilings(run: Run) -> None:
    """The rates that all else is held against."""
    run.do("ceilings", rounds=run.options.rounds, milliseconds=run.options.milliseconds)


def profile(run: Run) -> None:
    """The kernels of one training step, ours and eager's."""
    names = ["vgg_fast", peers.EAGER]
    run.do("profile", spec=_network(run, train=True), names=names)


def layers(run: Run) -> None:
    """Each layer by each backend; the fastest is adopted, and compared with the peers."""
    run.found["layers"] = [list(layer) for layer in run.layers]
    for layer in run.layers:
        for work in ("forward", "backward"):
            name = figures.layer_name(layer, run.batch, work)
            entry = run.group(
                "backends", name, _spec(layer, run.batch, work), _on(run, choices.BACKENDS),
                _that_failed(run, layer), base="triton",
            )  # fmt: skip
            _remember(run, layer, entry)
        rows = winners(run.found["backends"], layer, run.batch, run.found["device"])
        run.found.setdefault("choices", []).extend(row.dump() for row in rows)
        run.pool.choices = adopted(run.found["choices"], run.file)
        for work in ("forward", "backward"):
            others = [candidates.ALONE, candidates.GRAPH, candidates.APEX]
            names = ["vgg_fast", peers.EAGER, *(others if work == "forward" else [])]
            name = figures.layer_name(layer, run.batch, work)
            run.group(LAYERS, name, _spec(layer, run.batch, work), [*names, *_further(run)])


def _further(run: Run) -> Iterator[str]:
    """The names that further modules give their candidates; each says them once."""
    for module in run.options.peers:
        yield from importlib.import_module(module).NAMES


def frozen(run: Run) -> None:
    """Each layer with a frozen weight: the gradient of its input, by the bits that are kept."""
    for layer in run.layers:
        name = figures.layer_name(layer, run.batch, "frozen")
        names = ["vgg_fast", *_on(run, PROBED), peers.EAGER]
        spec = _spec(layer, run.batch, "frozen")
        run.group(LAYERS, name, spec, names, _that_failed(run, layer))


def _network(run: Run, train: bool, **others: Any) -> dict[str, Any]:
    """The seed network, or what ``others`` make of it."""
    spec = {"kind": "network", "batch": run.batch, "train": train, "dtype": "bfloat16"}
    return {**spec, "tf32": False, "options": run.network, **others}


def _names(run: Run, train: bool) -> list[str]:
    graph = [] if train else [candidates.GRAPH]
    return ["vgg_fast", "eager", peers.EAGER, *graph, candidates.APEX]


def forward(run: Run) -> None:
    """The seed network, inference."""
    name = f"{figures.FORWARD}, batch {run.batch}"
    run.group(LAYERS, name, _network(run, train=False), _names(run, False))


def training(run: Run) -> None:
    """The seed network, a training step under autocast."""
    name = f"{figures.TRAINING}, batch {run.batch}"
    run.group(LAYERS, name, _network(run, train=True), _names(run, True))


def memory(run: Run) -> None:
    """The peak memory of a training step, each in a process of its own."""
    for name in ("vgg_fast", peers.EAGER):
        run.pool.restart()
        run.do("memory", spec=_network(run, train=True), name=name)


def compiled(run: Run) -> None:
    """The three comparisons with max-autotune: first block, forward, training step."""
    names = ["vgg_fast", peers.EAGER, peers.COMPILE]
    for kind, name, train in (
        ("block", figures.BLOCK, True),
        ("network", figures.FORWARD, False),
        ("network", figures.TRAINING, True),
    ):
        spec = _network(run, train, kind=kind)
        run.group(LAYERS, figures.compiled_name(name, run.batch), spec, names)


def launching(run: Run) -> None:
    """What the host takes for a launch."""
    names = ["vgg_fast", *_on(run, ("triton", "cpp")), peers.EAGER]
    run.do("launching", names=list(dict.fromkeys(names)))


def more(run: Run) -> None:
    """For information: other dtypes, batches of 1 and 32, VGG-16 on three channels."""
    vgg16 = {"conv_arch": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), "in_channels": 3}
    on_cpu = run.options.device == "cpu"
    for variant in figures.VARIANTS[:1] if on_cpu else figures.VARIANTS:
        options = {**run.network, **(vgg16 if variant.vgg16 else {})}
        dtype = str(variant.dtype).removeprefix("torch.")
        for train in (False, True):
            spec = _network(
                run, train, batch=variant.batch, dtype=dtype, tf32=variant.tf32, options=options
            )
            run.group(LAYERS, variant.group(train), spec, _names(run, train))


def tuning(run: Run) -> None:
    """Tiles for Triton's calls that no row was measured for, those first that lose most."""
    layers = sorted(run.layers, key=lambda layer: -_lost(run, layer))
    wanted = dict.fromkeys(call for layer in layers for call in calls(layer, run.batch))
    run.do("tune", calls=list(wanted), seconds=max(1.0, run.seconds_left() - 5))


def calls(layer: SeedLayer, batch: int) -> list[Call]:
    """The calls of Triton's kernels that a layer makes, forward and backward, in 16 bits."""
    sizes = (batch, layer.c, layer.size, layer.size, layer.k)
    operators = (layer.op, f"{layer.op}_backward")
    return [call for operator in operators for call in calls_of(operator, "half", *sizes)]


def _lost(run: Run, layer: SeedLayer) -> float:
    """What Triton's kernels take beyond what the layer's operations need at the product's rate."""
    product = run.found.get("ceilings", {}).get("product_tflops") or float("inf")
    taken = 0.0
    for work, passes in (("forward", 1), ("backward", 2)):
        name = figures.layer_name(layer, run.batch, work)
        found = run.found.get("backends", {}).get(name, {}).get("peers", {}).get("triton")
        if found:
            floor = passes * figures.operations(layer, run.batch) / product / 1e9
            taken += found["median_ms"] - floor
    return taken


Steps = dict[str, tuple[float, Callable[[Run], None]]]

# Seconds of each, in this order; what one leaves over, those behind it share.
FIRST: Steps = {
    "compiling": (20, compiling),
    "probe": (60, probe),
    "ceilings": (10, ceilings),
    "profile": (20, profile),
    "counters": (45, counters.counters),
    "layers": (70, layers),
    "forward": (20, forward),
    "training": (30, training),
    "memory": (20, memory),
    "short tests": (75, tests.short),
    "tuning": (60, tuning),
}
SECOND: Steps = {
    "compiling": (20, compiling),
    "ceilings": (10, ceilings),
    "compiled": (150, compiled),
    "tests": (200, tests.every),
    "frozen": (25, frozen),
    "launching": (10, launching),
    "more": (60, more),
}
PLANS = {"first": FIRST, "second": SECOND}
STEPS = {**SECOND, **FIRST}
