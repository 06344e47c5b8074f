"""examples/README.md and the programs' docstrings: what they tell to type exists."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

import compile_backend
import distributed
import fine_tune
import fuse_models
import perceptual_loss
import style_transfer
import super_resolution

EXAMPLES = Path(__file__).parents[2] / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")


def arguments_of(main: Callable[..., Any]) -> Callable[..., Any]:
    """What has the command line of ``main``, and does nothing."""

    @functools.wraps(main)
    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    return nothing


PROGRAMS: dict[str, Callable[..., Any]] = {
    "compile_backend.py": arguments_of(compile_backend.main),
    "distributed.py": arguments_of(distributed.main),
    "fine_tune.py": arguments_of(fine_tune.main),
    "fuse_models.py": arguments_of(fuse_models.main),
    "perceptual_loss.py": arguments_of(perceptual_loss.main),
    "style_transfer.py": style_transfer.Options,
    "super_resolution.py": super_resolution.Options,
}
HELPERS = {"pictures.py", "vgg_weights.py"}


def commands() -> list[list[str]]:
    """Of the README, and of each program's docstring."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    for name in PROGRAMS:
        text = (EXAMPLES / "python" / name).read_text(encoding="utf-8")
        lines += re.findall(r"^    ((?:python|torchrun) .*)$", text.split('"""')[1], re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_program_is_known_and_in_the_readmes_table() -> None:
    files = {path.name for path in (EXAMPLES / "python").glob("*.py")}
    assert files == {*PROGRAMS, *HELPERS}
    rows = re.findall(r"^\| \[([\w.]+)\]\((\S+)\) \| \S.* \|$", README, re.MULTILINE)
    assert {name for name, _ in rows} == {*PROGRAMS, "cpp"}
    assert all((EXAMPLES / target).exists() for _, target in rows)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_command_exists(words: list[str]) -> None:
    program, *arguments = words
    if program == "make":
        makefile = (EXAMPLES.parent / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE)
        return
    assert program in ("python", "torchrun")
    options = [word for word in arguments if word.startswith(("--standalone", "--nproc"))]
    assert bool(options) == (program == "torchrun")
    script, *rest = arguments[len(options) :]
    assert script.startswith("examples/python/")
    tyro.cli(PROGRAMS[Path(script).name], args=rest)


def test_every_program_is_shown_by_a_command() -> None:
    shown = {Path(word).name for words in commands() for word in words if word.endswith(".py")}
    assert shown == {*PROGRAMS}


def test_every_option_that_the_readme_names_exists() -> None:
    known = {
        name.replace("_", "-")
        for kind in (style_transfer.Options, super_resolution.Options)
        for name in kind.__annotations__
    }
    assert set(re.findall(r"`--([a-z-]+)", README)) - {"help"} <= known
