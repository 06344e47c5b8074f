"""One page of HTML with everything that the records say; it needs no other file.

``python -m benchmarks.report --page FILE`` writes it, and the documentation site has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from benchmarks import pictures, tables
from benchmarks.features import record as of_features
from benchmarks.features.tables import growth as features_growth
from benchmarks.features.tables import problems as features_problems
from benchmarks.models import record as of_models
from benchmarks.pictures import style
from benchmarks.record import (
    COLUMNS,
    Record,
    cells,
    limits,
    machine,
    newest,
    newest_features,
    newest_models,
    timed,
)

CAPTIONS = {
    "speedup-network": (
        "Whole networks",
        "Time relative to vgg_fast. Right of the line vgg_fast is faster. "
        "Whiskers: quartiles over all rounds.",
    ),
    "speedup-layers": (
        "Layer by layer",
        "The same for each convolution of the seed network with its ReLU and pooling.",
    ),
    "roofline": (
        "Roofline",
        "Forward passes of the layers, counted in operations of the definition. Winograd's "
        "F(4×4, 3×3) needs up to 4 times fewer, so its roof is higher.",
    ),
    "growth-batch": ("Time against batch size", "For each image."),
    "growth-side": ("Time against image side", ""),
    "growth-width": ("Time against width", "The channels of all layers, multiplied."),
    "growth-threads": ("Time against threads", ""),
    "memory": ("Memory", "Resident memory at the peak of one training step."),
    "error-speed": (
        "Error against speed",
        "Left and low is better. Hollow marks compute in bf16.",
    ),
}


def of(results: Path) -> str:
    """The page of the newest records in a folder.

    Raises:
        SystemExit: a file isn't a record; the message names it.
    """
    cpus, gpus = newest(results)
    return html(cpus, gpus, tables.shown(newest_models(results)), newest_features(results))


def html(
    cpus: list[Record], gpus: list[Record], models: list[Record], features: list[Record]
) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("page.html.j2")
    return (
        template.render(
            cpus=[_cpu(record, number) for number, record in enumerate(cpus)],
            models=[_models(record) for record in models],
            features=[_features(record, number) for number, record in enumerate(features)],
            gpus=_gpus(gpus),
        )
        + "\n"
    )


def _cpu(record: Record, number: int) -> dict[str, Any]:
    drawn = pictures.of_a_cpu(record)
    return {
        "title": machine(record),
        "limits": limits(record),
        "versions": record["versions"],
        "minutes": record.get("seconds", 0) / 60,
        "pictures": [
            (*CAPTIONS[name], style.inline(figure, f"m{number}-{name}"))
            for name, figure in drawn.items()
        ],
        "columns": COLUMNS,
        "rows": [_row(row, record) for row in record["rows"]],
        "growth": _markdown_cells(tables.growth(record)),
        "later": [r["title"] for r in record["rows"] if "measured_later" in r],
    }


def _row(row: Record, record: Record) -> dict[str, Any]:
    problems = {n: f["problem"] for n, f in row["peers"].items() if "problem" in f}
    return {
        "title": row["title"],
        "command": row["command"],
        "peers": {
            name: (f"{found['seconds']['median'] * 1e3:.3g}", *cells(row, name, record))
            for name, found in timed(row).items()
        },
        "problems": problems,
    }


def _markdown_cells(lines: Any) -> list[list[str]]:
    """The cells of a Markdown table, its heading first."""
    table = [line for line in lines if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table]


def _models(record: Record) -> dict[str, Any]:
    figures = pictures.of_models(record)
    return {
        "title": tables.MODELS[record["options"]["backend"]].replace("`", ""),
        "machine": machine(record),
        "pictures": [style.inline(figure, name) for name, figure in figures.items()],
        "columns": of_models.COLUMNS,
        "rows": [(row, of_models.cells(row)) for row in record["rows"]],
        "missing": record["missing"],
    }


def _features(record: Record, number: int) -> dict[str, Any]:
    figures = pictures.of_features(record)
    return {
        "title": machine(record),
        "pictures": [style.inline(fig, f"f{number}-{name}") for name, fig in figures.items()],
        "told": [line[2:].replace("**", "") for line in features_growth(record)],
        "columns": of_features.COLUMNS,
        "rows": [
            (
                row["title"],
                {
                    name: of_features.cells(way)
                    for name, way in row["ways"].items()
                    if of_features.has_numbers(way)
                },
            )
            for row in record["rows"]
            if row["ways"]
        ],
        "problems": [line[2:] for line in features_problems(record)],
    }


def _gpus(records: list[Record]) -> list[dict[str, Any]]:
    found = []
    for record in records:
        figures = pictures.of_a_gpu(record)
        peers = list(dict.fromkeys(p for g in record["groups"].values() for p in g["peers"]))
        found.append(
            {
                "title": f"{record['device']}, {record['dtype'].removeprefix('torch.')}, "
                f"torch {record['torch']}, {record['date'][:10]}",
                "pictures": [style.inline(figure, name) for name, figure in figures.items()],
                "peers": peers,
                "groups": record["groups"],
            }
        )
    return found
