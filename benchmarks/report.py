"""The tables and pictures of README.md and docs/: python -m benchmarks.report

They come from benchmarks/results/*.json and nowhere else: of each machine the newest record, and no
record of a --quick run. The tables replace what stands between the markers
``<!-- report:NAME -->`` and ``<!-- /report:NAME -->``. With --page FILE everything goes onto one
page of HTML, too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import import_time, page, pictures, seed_network, summary, tables
from benchmarks.features import tables as of_features
from benchmarks.gpu import tables as of_gpus
from benchmarks.pictures import summary as bars_of_summary
from benchmarks.plan import tables as of_plans
from benchmarks.record import (
    Record,
    newest,
    newest_decisions,
    newest_features,
    newest_import,
    newest_models,
    newest_plans,
    newest_seed_networks,
    newest_speedruns,
)
from benchmarks.speedrun import tables as of_speedruns

ROOT = Path(__file__).parent.parent


@dataclass
class Options:
    """Make the tables and pictures of the README and docs from the records."""

    root: Path = ROOT
    """The checkout: README.md, docs/ and benchmarks/results/ are in it."""
    check: bool = False
    """Change no document; exit with 1 if a table isn't what the records say."""
    page: Path | None = None
    """Write everything to this file as well, as one page of HTML that needs no other file."""


def replaced(text: str, name: str, lines: Iterator[str], path: Path) -> str:
    """``text`` with ``lines`` between the markers of ``name``.

    Raises:
        SystemExit: the file lacks the markers.
    """
    begin, end = f"<!-- report:{name} -->", f"<!-- /report:{name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"benchmarks.report: {path} lacks the markers {begin} and {end}")
    block = "\n".join([begin, *lines, end])
    return pattern.sub(lambda _: block, text, count=1)


def documents(root: Path) -> dict[Path, str]:
    """The files with tables, as the records in ``root`` want them."""
    results = root / "benchmarks" / "results"
    cpus, gpus = newest(results)
    models, features = newest_models(results), newest_features(results)
    pages = root / "docs" / "performance"
    parts = {
        root / "README.md": {
            "summary": summary.readme(cpus, gpus, models, features),
            "speedrun": of_speedruns.readme(newest_speedruns(results)),
        },
        root / "docs" / "record.md": {
            "speedrun": of_speedruns.measured(newest_speedruns(results)),
            "seed-network": seed_network.measured(newest_seed_networks(results)),
        },
        root / "docs" / "tutorial" / "install.md": {
            "import": import_time.told(newest_import(results)),
        },
        pages / "floor.md": {"floor": tables.floors(cpus)},
        pages / "plan.md": {"plan": of_plans.measured(newest_plans(results))},
        pages / "numbers.md": {"decisions": tables.decisions(newest_decisions(results))},
        pages / "networks.md": {"networks": tables.networks(cpus)},
        pages / "models.md": {
            "models": tables.gains(models),
            "every-model": tables.every_model(models),
        },
        pages / "features.md": {
            "features": of_features.relative(features),
            "every-way": of_features.measured(features),
        },
        pages / "gpu.md": {"gpus": of_gpus.measured(gpus)},
        pages / "measured.md": {"measured": tables.measured(cpus)},
    }
    found = {}
    for path, blocks in parts.items():
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            sys.exit(f"benchmarks.report: {path} can't be read ({error.strerror})")
        for name, lines in blocks.items():
            text = replaced(text, name, lines, path)
        found[path] = text
    return found


def draw(
    cpus: list[Record],
    gpus: list[Record],
    models: dict[str | None, Record],
    features: list[Record],
    seed_networks: list[Record],
    folder: Path,
) -> list[Path]:
    """What the documents show of the newest CPU's records, of every GPU's, and of the models'."""
    drawn = pictures.of_a_cpu(cpus[0]) if cpus else {}
    figures = {name: drawn[name] for name in pictures.IN_DOCUMENTS if name in drawn}
    for record in gpus:
        figures |= pictures.of_a_gpu(record)
    for record in tables.shown(models):
        figures |= pictures.of_models(record)
    for record in features[:1]:
        figures |= pictures.of_features(record)
    for record in seed_networks[:1]:
        figures |= pictures.of_a_training(record)
    found = summary.found(cpus, features)
    return pictures.save(figures, folder) + bars_of_summary.save(found, folder)


def write_page(file: Path, results: Path) -> None:
    try:
        file.write_text(page.of(results), encoding="utf-8")
    except OSError as error:
        sys.exit(f"benchmarks.report: {file} can't be written ({error.strerror})")
    print(file)


def main(arguments: list[str] | None = None) -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.report", args=arguments)
    found = documents(options.root)
    results = options.root / "benchmarks" / "results"
    if options.check:
        stale = [str(p) for p, text in found.items() if p.read_text(encoding="utf-8") != text]
        if stale:
            sys.exit(f"{', '.join(stale)}: not what the records say; run benchmarks.report")
    else:
        for path, text in found.items():
            path.write_text(text, encoding="utf-8")
            print(path)
        (cpus, gpus), models = newest(results), newest_models(results)
        features, trained = newest_features(results), newest_seed_networks(results)
        images = options.root / "docs" / "images"
        print(*draw(cpus, gpus, models, features, trained, images), sep="\n")
    if options.page:
        write_page(options.page, results)


if __name__ == "__main__":
    main()
