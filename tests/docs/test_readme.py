"""What README.md and docs/ claim: examples run, commands and links exist, tables are right."""

from __future__ import annotations

import dataclasses
import doctest
import re
import shlex
from pathlib import Path

import pytest
import tyro

from benchmarks import busy, growth, report, run
from benchmarks.features import __main__ as features
from benchmarks.models import __main__ as models
from benchmarks.plan import __main__ as plan
from tests.support.cases import TOLERANCES
from vgg_fast import info
from vgg_fast.dispatch import environment
from vgg_fast.train.options import Config, with_values
from vgg_fast.trained import demo, evaluate, export, predict

# Options of torchrun, tensorboard, sbatch, and the programs for a trained network.
OF_OTHERS = {
    *("help", "standalone", "nproc-per-node", "nnodes", "rdzv-backend", "rdzv-endpoint", "rdzv-id"),
    *("logdir", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"),
    *("to", "invert", "json"),
}
TRAINED = {
    "vgg_fast.demo": demo,
    "vgg_fast.evaluate": evaluate,
    "vgg_fast.export": export,
    "vgg_fast.predict": predict,
}
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/design.md",
    "docs/performance.md",
    "docs/training.md",
)


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for page in PAGES for block in blocks("sh", page) for line in block.splitlines()]
    inline = [c for c in re.findall(r"`([^`\n]+)`", README) if c.startswith(("make ", "python "))]
    # Names in capitals stand for numbers.
    filled = [re.sub(r"\b[NCHWK]\b", "8", command) for command in [*lines, *inline]]
    return [words for line in filled if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[-1])
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_the_examples_run(code) -> None:
    if ">>>" not in code:
        exec(compile(code, "README.md", "exec"), {"__name__": "example"})
        return
    example = doctest.DocTestParser().get_doctest(code, {}, "README.md", "README.md", 0)
    assert len(example.examples) > 1
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_readme_has_examples_and_both_commands() -> None:
    assert len(blocks("python")) >= 3
    assert ["make", "train"] in commands() and ["make", "test"] in commands()


def parse(module: str, arguments: list[str]) -> None:
    """Exits if the program of ``module`` doesn't take the arguments."""
    if module == "vgg_fast.train":
        tyro.cli(Config, args=with_values(arguments))
    elif module in TRAINED:
        tyro.cli(TRAINED[module].Options, args=arguments)
    elif module == "vgg_fast.info":
        info.parse(arguments)
    elif module == "benchmarks.run":
        run.chosen_works(tyro.cli(run.Options, args=arguments))
    elif module == "benchmarks.models":
        tyro.cli(models.Options, args=arguments)
    elif module == "benchmarks.features":
        features.chosen_parts(tyro.cli(features.Options, args=arguments))
    elif module == "benchmarks.plan":
        plan.check(tyro.cli(plan.Options, args=arguments))
    elif module == "benchmarks.busy":
        busy.check(tyro.cli(busy.Options, args=arguments))
    elif module == "benchmarks.growth":
        tyro.cli(growth.Options, args=arguments)
    elif module == "benchmarks.report":
        tyro.cli(report.Options, args=arguments)
    elif module == "benchmarks.decisions":
        assert arguments == []  # it takes none
    else:
        raise AssertionError(f"README.md runs {module}, which this test doesn't know")


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_commands_exist(words) -> None:
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in targets
    elif program == "python" and arguments[0].startswith("examples/"):
        assert (ROOT / arguments[0]).exists()
    elif program == "python":
        assert arguments[0] == "-m"
        parse(arguments[1], arguments[2:])
    elif program == "torchrun":
        module = arguments.index("-m")
        parse(arguments[module + 1], arguments[module + 2 :])
    elif program == "pytest":
        assert (ROOT / arguments[0]).exists()
    else:
        assert program in ("pip", ".ci/run")


@pytest.mark.parametrize("page", PAGES)
def test_the_links_resolve(page) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_are_named_exist(page) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:vgg_fast|csrc|tests|benchmarks|docs)/[\w./]*\w)`", text)
    for name in named:
        assert (ROOT / name).exists(), f"{page} names {name}"


def test_every_option_of_the_training_program_that_is_named_exists() -> None:
    training = README[README.index("## Train\n") : README.index("## Which kernel runs\n")]
    training += (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--([a-z][a-z-]+)", training)) - OF_OTHERS
    taken = {field.name.replace("_", "-") for field in dataclasses.fields(Config)}
    assert named and named <= taken


def cells(heading: str) -> list[list[str]]:
    """The rows of the README's table that begins with ``heading``, without its first two lines."""
    rows = README[README.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def test_every_environment_variable_is_in_the_table_and_no_other() -> None:
    named = [name for name, _ in cells("| variable |")]
    assert named == list(environment.VARIABLES)
    mentioned = set(re.findall(r"\bVGG_FAST_[A-Z]+\b", README))
    assert mentioned <= set(environment.VARIABLES)


def test_the_tolerances_are_those_of_the_tests() -> None:
    table = {name: (float(a), float(b)) for name, a, b in cells("| dtype |")}
    assert table == {
        str(dtype).removeprefix("torch."): (allowed.forward, allowed.weight_gradient)
        for dtype, allowed in TOLERANCES.items()
    }


def test_the_tables_are_what_the_records_say() -> None:
    for path, text in report.documents(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"run python -m benchmarks.report: {path}"
