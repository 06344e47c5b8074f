"""Put what a run measured in front of the tables: ``python -m benchmarks.gpu.adopt FILE``.

Rows of the same calls that stood there before give way. Commit the two tables with the record.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.gpu import record
from vgg_fast.dispatch import choices, table_file, tiles


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
    table_file.write(tile_table, table_file.merged(new_tiles, tiles.read(tile_table)))
    same = {_calls(row) for row in new_choices}
    older = [row for row in choices.read(choice_table) if _calls(row) not in same]
    lines = ",\n".join(json.dumps(row.dump(), ensure_ascii=False) for row in new_choices + older)
    choice_table.write_text(f'{{\n"rows": [\n{lines}\n]\n}}\n', encoding="utf-8")
    return len(new_tiles), len(new_choices)


def _calls(row: choices.Row) -> tuple:
    return row.family, row.operator, row.kind, row.c, row.k, row.side, row.batch, row.multiple


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
