"""Markdown of the records of benchmarks.gpu, for docs/performance/gpu.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from benchmarks import pictures
from benchmarks.gpu import figures
from benchmarks.record import Record
from benchmarks.tables import NOT_YET, head, picture, table_row
from seed_layers import SeedLayer
from vgg_fast.dispatch.choices import BACKENDS


def measured(gpus: list[Record]) -> Iterator[str]:
    """What is to be reached, and every group of each GPU's newest record."""
    if not gpus:
        yield f"On NVIDIA GPUs: {NOT_YET}."
        yield ""
        yield from _targets({})
    for number, record in enumerate(gpus):
        if number:
            yield ""
        for name in pictures.of_a_gpu(record):
            words = f"Time relative to vgg_fast on {record['device']}"
            yield picture(name, f"{words}; the numbers are in the table.")
            yield ""
        yield (
            f"On {record['device']}, {record['dtype'].removeprefix('torch.')}, torch "
            f"{record['torch']}, {record['date'][:10]}:"
        )
        yield ""
        yield from _targets(record)
        yield ""
        yield "Milliseconds of vgg_fast, and the peers' time relative to vgg_fast:"
        yield ""
        yield from _groups(record)
        yield from _backends(record)


def _targets(record: Record) -> Iterator[str]:
    """What the GPU kernels are to reach, and further measurements, found or not."""
    yield (
        "What the GPU kernels are built to reach on an NVIDIA H200, in bfloat16, channels_last, "
        "256 images, and what `make gpu` found; each is a ratio of two things in one run:"
    )
    yield ""
    yield from head("against", "to reach", "found", words=2)
    for figure in figures.FIGURES:
        line = figure.line(record)
        bound = f"{figure.at_least:g} ×" if figure.at_least else f"≤ {figure.at_most:g}"
        found = NOT_YET if line["found"] is None else f"{line['found']:.2f}"
        missed = " (not reached)" if line["reached"] is False else ""
        yield table_row(figure.name, figure.against, bound, found + missed)
    yield ""
    yield (
        "For information, the seed network at 224² and VGG-16: milliseconds of vgg_fast, and the "
        "time of eager channels_last relative to vgg_fast:"
    )
    yield ""
    yield from head("forward", "training step")
    for variant in figures.VARIANTS:
        cells = (_information(record, variant.group(train)) for train in (False, True))
        yield table_row(f"{variant.name}, batch {variant.batch}", *cells)


def _information(record: Record, group: str) -> str:
    peers = record.get("groups", {}).get(group, {}).get("peers", {})
    if "vgg_fast" not in peers or "eager channels_last" not in peers:
        return NOT_YET
    times = peers["eager channels_last"]["relative_time"]
    return f"{peers['vgg_fast']['median_ms']:.2f} ms, {times:.2f} ×"


def _groups(record: Record) -> Iterator[str]:
    peers = list(dict.fromkeys(p for g in record["groups"].values() for p in g["peers"]))
    others = [peer for peer in peers if peer != "vgg_fast"]
    yield from head("vgg_fast, ms", *others)
    for name, group in record["groups"].items():
        ours = group["peers"].get("vgg_fast")
        cells = [f"{ours['median_ms']:.3f}" if ours else "–"]
        for peer in others:
            theirs = group["peers"].get(peer, {})
            cells.append(f"{theirs['relative_time']:.2f}" if "relative_time" in theirs else "–")
        yield table_row(name, *cells)
    yield ""
    yield from _missing(record)


def _backends(record: Record) -> Iterator[str]:
    """Each layer by each backend, as a part of the product's rate where that is known."""
    groups = record.get("backends")
    if not groups:
        return
    product = record.get("ceilings", {}).get("product_tflops")
    rate = f", of which a matrix product has {product:.0f} in the same run" if product else ""
    yield f"Each layer by each backend, in TFLOP/s{rate}:"
    yield ""
    yield from head(*BACKENDS)
    for layer in (SeedLayer(*fields) for fields in record["layers"]):
        for work, passes in (("forward", 1), ("backward", 1 + (layer.c > 3))):
            name = figures.layer_name(layer, record["batch"], work)
            done = passes * figures.operations(layer, record["batch"])
            cells = (_rate(groups[name], backend, done, product) for backend in BACKENDS)
            yield table_row(name, *cells)
    yield ""


def _rate(group: Record, backend: str, operations: float, product: float | None) -> str:
    if backend not in group["peers"]:
        return "–"
    rate = operations / group["peers"][backend]["median_ms"] / 1e9
    return f"{rate:.0f}" + (f" ({100 * rate / product:.0f} %)" if product else "")


def _missing(record: Record) -> Iterator[str]:
    """The peers of a GPU's record that were not timed, once for each reason."""
    told = [
        f"{peer}: {problem}"
        for group in record["groups"].values()
        for peer, problem in group.get("problems", {}).items()
    ]
    for text, count in Counter(told).items():
        yield f"- {text} ({count} of {len(record['groups'])} rows)"
