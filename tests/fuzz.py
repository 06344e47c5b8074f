"""The operators on many random cases, on every instruction set: python -m tests.fuzz

``--cases`` is how many run on each instruction set, shared out among the tests; ``--kills`` how
often training runs are killed. ``--seed`` repeats an earlier run, ``--sets`` takes some of the
instruction sets, and other options go to pytest.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from tests.support.cases import CONVOLUTIONS, OPERATORS
from vgg_fast import _bindings

TESTS = Path(__file__).parent
AVAILABLE = _bindings.cpu_instruction_sets()
TESTS_OF_CASES = 2 * len(CONVOLUTIONS) + 1  # in ops/test_random_cases.py
NO_TESTS_COLLECTED = 5
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--sets", nargs="+", default=AVAILABLE, choices=AVAILABLE)
    options, passed_on = parser.parse_known_args()
    os.environ["VGG_FAST_FUZZ"] = str(-(-options.cases // TESTS_OF_CASES))
    os.environ["VGG_FAST_FUZZ_KILLS"] = str(options.kills)

    print(f"{options.cases} cases on each instruction set; --seed {options.seed} repeats them")
    started, ran, failed = time.monotonic(), {}, []
    for instruction_set in options.sets:
        print(f"\n=== {instruction_set}", flush=True)
        ran[instruction_set], passed = fuzz(instruction_set, options.seed, passed_on)
        if not passed:
            failed.append(instruction_set)
    print(f"\n=== training runs, killed {options.kills} times", flush=True)
    killed = subprocess.run(
        [*PYTEST, TESTS / "train" / "test_train_killed.py", *passed_on], check=False
    )
    if killed.returncode not in (0, NO_TESTS_COLLECTED):  # such as by -k
        failed.append("killed training runs")

    print(f"\nCases that ran, in {(time.monotonic() - started) / 60:.0f} minutes:")
    print(table(ran))
    if failed:
        print(f"FAILED: {', '.join(failed)}; repeat it with --seed {options.seed}")
    return 1 if failed else 0


def fuzz(instruction_set: str, seed: int, arguments: list[str]) -> tuple[Counter, bool]:
    """How many cases of each operator ran, and whether all of them passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        process = subprocess.run(
            [
                *PYTEST,
                TESTS / "ops" / "test_random_cases.py",
                f"--hypothesis-seed={seed}",
                f"--junitxml={report}",
                *arguments,
            ],
            env={**os.environ, "VGG_FAST_CPU": instruction_set, "VGG_FAST_FUZZ_LAST": folder},
            check=False,
        )
        if process.returncode != 0:
            for last in sorted(Path(folder).glob("check_*")):
                print(f"The last case of {last.name}:\n    {last.read_text()}")
        if not report.exists():  # the process itself was killed
            return Counter(), False
        return cases_in(report), process.returncode == 0


def cases_in(report: Path) -> Counter:
    cases: Counter = Counter()
    for recorded in ElementTree.parse(report).iter("property"):
        cases[recorded.attrib["name"]] += int(recorded.attrib["value"])
    return cases


def table(ran: dict[str, Counter]) -> str:
    lines = [f"{'':20}" + "".join(f"{name:>10}" for name in ran)]
    for op in OPERATORS:
        lines.append(f"{op:20}" + "".join(f"{cases[op]:>10,}" for cases in ran.values()))
    totals = [sum(cases.values()) for cases in ran.values()]
    lines.append(f"{'all':20}" + "".join(f"{total:>10,}" for total in totals))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
