"""Put what a run measured in front of the tables: ``python -m benchmarks.gpu.adopt FILE``.

Rows of the same calls that stood there before give way. Commit the two tables with the record.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.gpu import record
from vgg_fast.dispatch import choices, table, tiles


def adopt(file: Path, tile_table: Path, choice_table: Path) -> tuple[int, int]:
    """The numbers of tiles and of choices that were put in front.

    Raises:
        ValueError: the file holds neither.
    """
    found = record.read(file)
    new_tiles = [tiles.Row.load(line) for line in found.get("tiles", [])]
    new_choices = [choices.Row.load(line) for line in found.get("choices", [])]
    if not new_tiles and not new_choices:
        raise ValueError(f"{file} holds no tiles and no choices")
    table.write(tile_table, table.merged(new_tiles, tiles.read(tile_table)))
    table.write(choice_table, table.merged(new_choices, choices.read(choice_table)))
    return len(new_tiles), len(new_choices)


def main(arguments: list[str] | None = None) -> None:
    """The command ``python -m benchmarks.gpu.adopt``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.adopt", description=__doc__)
    parser.add_argument("file", type=Path, help="a record of benchmarks.gpu")
    options = parser.parse_args(arguments)
    try:
        counts = adopt(options.file, tiles.SHIPPED, choices.SHIPPED)
    except (OSError, ValueError) as error:
        raise SystemExit(f"benchmarks.gpu.adopt: {error}") from error
    print(f"{counts[0]} tiles and {counts[1]} choices stand in front of the tables now")


if __name__ == "__main__":
    main()
