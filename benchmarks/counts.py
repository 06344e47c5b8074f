"""A guard against getting slower that no busy machine disturbs: instructions, counted by valgrind.

    python -m benchmarks.counts            compares with counts.json
    python -m benchmarks.counts --renew    writes it: for kernels that changed on purpose

Counts depend on the compiler, so counts.json has those of each compiler by its name and major
version. valgrind knows AVX2 but not AVX-512, whose kernels come from the same sources. Fewer
instructions aren't always faster, but a kernel that needs many more without being told so does
something that nobody meant.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from vgg_fast import info

FILE = Path(__file__).parent / "counts.json"
ROOT = FILE.parent.parent
SETS = ("avx2", "generic")
TOLERANCE = 0.03
"""Two runs differ by less than a thousandth, two machines by their C library's memset."""

MARKER = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void stop(const char* name) {
  CALLGRIND_DUMP_STATS_AT(name);  // stopping forgets
  CALLGRIND_STOP_INSTRUMENTATION;
}
"""
Counts = dict[str, int]


class Unavailable(Exception):
    """Why nothing can be counted or compared here."""


def compiler() -> str:
    """Of the library that is counted, as counts.json names it: "gcc 12"."""
    line = info._built().get("compiler", "")
    version = re.search(r"(\d+)\.\d+", line.partition(")")[2] or line)
    if version is None:
        raise Unavailable(f"the library's compiler isn't known: {line!r}")
    return f"{'clang' if 'clang' in line else 'gcc'} {version[1]}"


def require(instruction_set: str) -> None:
    """Raises: Unavailable: something that counting needs is missing."""
    if shutil.which("valgrind") is None:
        raise Unavailable("valgrind isn't installed: apt-get install valgrind")
    if _c_compiler() is None:
        raise Unavailable("there is no C compiler: apt-get install gcc")
    # Without AVX2 torch's own part of a call takes other instructions too, whichever kernels run.
    for needed in ("avx2", instruction_set):
        if needed not in info._cpu().get("instruction sets", ()):
            raise Unavailable(f"this processor doesn't run {needed}")


def committed(instruction_set: str) -> Counts:
    """Raises: Unavailable: there are none for this compiler."""
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    name = compiler()
    if instruction_set not in found.get(name, {}):
        known = ", ".join(found) or "nothing"
        raise Unavailable(
            f"the library is built by {name}, and {FILE.name} has the counts of {known}: "
            "make counts adds them"
        )
    counts: Counts = found[name][instruction_set]
    return counts


def count(instruction_set: str, cases: tuple[str, ...] = (), **environment: str) -> Counts:
    """The instructions of each case.

    Args:
        instruction_set: whose kernels: "avx2" or "generic".
        cases: of :mod:`benchmarks.counted`; all if none is named.
        environment: variables for the process that is counted.

    Raises:
        Unavailable: valgrind, its header or a C compiler is missing, or the set can't run here.
        RuntimeError: the process failed; the message ends with what it said.
    """
    require(instruction_set)
    settings = {
        "ATEN_CPU_CAPABILITY": "avx2",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(ROOT),
        "VGG_FAST_ALGORITHM": "auto",
        "VGG_FAST_CPU": instruction_set,
        "VGG_FAST_WEIGHT_CACHE": "0",
        **environment,
    }
    with tempfile.TemporaryDirectory() as folder:
        marker, output = _marker(Path(folder)), Path(folder) / "counts"
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
        command += [f"--callgrind-out-file={output}", sys.executable, "-m", "benchmarks.counted"]
        run = subprocess.run(
            [*command, str(marker), *cases],
            env=os.environ | settings,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
        return _read(Path(folder))


def _c_compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _marker(folder: Path) -> Path:
    """The library whose two functions begin and end what is counted."""
    source, library = folder / "marker.c", folder / "marker.so"
    source.write_text(MARKER)
    compile_ = [str(_c_compiler()), "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
    done = subprocess.run(compile_, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"valgrind's header can't be compiled: {done.stderr.strip()[:200]}")
    return library


def _read(folder: Path) -> Counts:
    """From callgrind's dumps: one for each case."""
    counts = {}
    for path in folder.glob("counts.*"):
        text = path.read_text()
        name = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
        total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
        if name and total:
            counts[name[1]] = int(total[1])
    return counts


def changed(found: Counts, expected: Counts) -> list[str]:
    """What the guard finds: a sentence for each case that isn't within the tolerance."""
    said = []
    for name in sorted(found.keys() | expected.keys()):
        if name not in expected:
            said.append(f"{name}: isn't in {FILE.name}; make counts adds it")
        elif name not in found:
            said.append(f"{name}: wasn't counted; make counts drops it")
        elif abs(found[name] / expected[name] - 1) > TOLERANCE:
            change = 100 * (found[name] / expected[name] - 1)
            more = "more" if change > 0 else "fewer"
            said.append(
                f"{name}: {found[name]:,} instructions, {abs(change):.1f} % {more} than the "
                f"{expected[name]:,} of {FILE.name}; make counts renews them if that is meant"
            )
    return said


@dataclass
class Options:
    """Compare the instructions of the CPU kernels with the committed counts."""

    renew: bool = False
    """Write them instead of comparing."""


def main(arguments: list[str] | None = None) -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.counts", args=arguments)
    console = Console()
    try:
        expected = {} if options.renew else {name: committed(name) for name in SETS}
        with console.status("counting: a minute"), ThreadPoolExecutor() as pool:
            found = dict(zip(SETS, pool.map(count, SETS), strict=True))
    except Unavailable as reason:
        sys.exit(f"benchmarks.counts: {reason}")
    table = Table("", title=f"instructions, {compiler()}", title_justify="left")
    for name in SETS:
        table.add_column(name, justify="right")
    for case in sorted(found[SETS[0]]):
        table.add_row(case, *(f"{found[name].get(case, 0):,}" for name in SETS))
    console.print(table)
    if options.renew:
        known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        known[compiler()] = {name: dict(sorted(found[name].items())) for name in SETS}
        FILE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        console.print(f"written to {FILE}", highlight=False)
        return
    said = [f"{name}: {line}" for name in SETS for line in changed(found[name], expected[name])]
    if said:
        sys.exit("\n".join(said))
    console.print(f"all within {100 * TOLERANCE:.0f} % of {FILE.name}", highlight=False)


if __name__ == "__main__":
    main()
