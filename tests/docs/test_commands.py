"""The commands of README.md and of every page exist, with their options."""

from __future__ import annotations

import importlib.util
import re
import shlex

import pytest
import tyro

from benchmarks import busy, counts, growth, report, run, seed_network
from benchmarks.features import __main__ as features
from benchmarks.models import __main__ as models
from benchmarks.plan import __main__ as plan
from benchmarks.speedrun import __main__ as speedrun
from tests.support.pages import PAGES, ROOT, blocks, inline_code
from vgg_fast import info
from vgg_fast.train.options import Config, with_values
from vgg_fast.trained import demo, evaluate, export, predict

TRAINED = {
    "vgg_fast.demo": demo,
    "vgg_fast.evaluate": evaluate,
    "vgg_fast.export": export,
    "vgg_fast.predict": predict,
}
OPTIONS = {
    "benchmarks.busy": lambda given: busy.check(tyro.cli(busy.Options, args=given)),
    "benchmarks.counts": lambda given: tyro.cli(counts.Options, args=given),
    "benchmarks.features": lambda given: features.chosen_parts(
        tyro.cli(features.Options, args=given)
    ),
    "benchmarks.growth": lambda given: tyro.cli(growth.Options, args=given),
    "benchmarks.models": lambda given: tyro.cli(models.Options, args=given),
    "benchmarks.plan": lambda given: plan.check(tyro.cli(plan.Options, args=given)),
    "benchmarks.report": lambda given: tyro.cli(report.Options, args=given),
    "benchmarks.run": lambda given: run.chosen_works(tyro.cli(run.Options, args=given)),
    "benchmarks.seed_network": lambda given: tyro.cli(seed_network.Options, args=given),
    "benchmarks.speedrun": lambda given: tyro.cli(speedrun.Options, args=given),
    "vgg_fast.info": info.parse,
    "vgg_fast.train": lambda given: tyro.cli(Config, args=with_values(given)),
}
TAKES_NONE = ("benchmarks.amx_probe", "benchmarks.decisions", "benchmarks.floor")
# Programs of others: that a page names them is enough.
OF_OTHERS = ("pip", "apt-get", "cd", "git", "tensorboard")
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def commands() -> dict[str, list[str]]:
    """The words of each command, by page and line."""
    found = {}
    for page in PAGES:
        lines = [
            line for block in blocks("sh", page) for line in block.replace("\\\n", " ").splitlines()
        ]
        inline = [code for code in inline_code(page) if re.match(r"(make|python) \S", code)]
        # In a sentence a command may lack what it can't do without.
        whole = page == "README.md"
        lines += (
            inline if whole else [re.sub(r"^(make|python -m) (\S+).*", r"\1 \2", x) for x in inline]
        )
        for line in lines:
            # Names in capitals stand for numbers, folders and formats.
            filled = re.sub(r"\b[NCHWK]\b", "8", line)
            filled = filled.replace("--to FORMAT", "--to onnx")
            words = shlex.split(filled, comments=True)
            while words and re.fullmatch(r"[A-Z][A-Z_]*=.*", words[0]):
                words.pop(0)  # the environment; its names have a test of their own
            if words:
                found[f"{page}: {' '.join(words)}"] = words
    return found


COMMANDS = commands()


def test_the_readme_has_both_commands() -> None:
    assert "README.md: make train" in COMMANDS and "README.md: make test" in COMMANDS


def parse(module: str, arguments: list[str]) -> None:
    """Exits if the program of ``module`` doesn't take the arguments."""
    if module in TRAINED:
        tyro.cli(TRAINED[module].Options, args=arguments)
    elif module in OPTIONS:
        OPTIONS[module](arguments)
    elif module in TAKES_NONE:
        assert arguments == []
    elif module in ("pip", "pytest", "build", "cibuildwheel"):
        pass  # others' programs
    else:
        raise AssertionError(f"a page runs {module}, which this test doesn't know")


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_the_commands_exist(words) -> None:
    program, *arguments = words
    if program == "make":
        assert next(a for a in arguments if "=" not in a) in TARGETS
    elif program in ("python", "torchrun") and "-m" in arguments:
        behind = arguments.index("-m") + 1
        module, given = arguments[behind], arguments[behind + 1 :]
        if given == [] or "--help" in given:
            assert module in (*OPTIONS, *TRAINED) or importlib.util.find_spec(module)
        else:
            parse(module, given)
    elif program in ("python", "torchrun"):
        scripts = [a for a in arguments if a.endswith(".py")]
        assert scripts or arguments[0] == "-c"
        assert all((ROOT / script).exists() for script in scripts)
    elif program == "pytest":
        assert (ROOT / arguments[0].partition("::")[0]).exists()
    elif program == ".ci/run":
        assert (ROOT / program).exists()
    else:
        assert program in OF_OTHERS
