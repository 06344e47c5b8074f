"""What the programs share: how they start, and how they end."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import TypeVar

# What they need beyond torch, which the extra "train" of pyproject.toml installs.
EXTRA = ("PIL", "matplotlib", "numpy", "rich", "torchvision", "tyro")

Options = TypeVar("Options")


def start(name: str) -> int:
    """Run the program ``vgg_fast.<name>``, or say in one sentence what it lacks.

    Returns:
        its exit code.
    """
    try:
        program = importlib.import_module(f"vgg_fast.trained.{name}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
        print(
            f"python -m vgg_fast.{name}: {missing} isn't installed, and this program needs it: "
            "pip install 'vgg_fast[train]'",
            file=sys.stderr,
        )
        return 1
    code: int = program.main()
    return code


def run(
    name: str,
    options: type[Options],
    work: Callable[[Options], int],
    arguments: list[str] | None = None,
) -> int:
    """Read the command line, do the ``work``, and turn what went wrong into one sentence.

    Args:
        name: of the program, behind ``vgg_fast.``.
        options: the dataclass that the command line fills.
        work: takes the options and gives the exit code.
        arguments: of the command line; None takes the process's own.
    """
    import tyro  # here: start() must be able to say that it is missing

    from vgg_fast.train import output
    from vgg_fast.train.config import TrainingError
    from vgg_fast.train.data import DataError
    from vgg_fast.train.output import OutputLost

    program = f"vgg_fast.{name}"
    output.prepare()
    try:
        with output.written():  # help, or what is wrong with an option
            chosen = tyro.cli(options, prog=f"python -m {program}", args=arguments)
        return work(chosen)
    except (TrainingError, DataError) as error:
        output.complain(error, program)
        return 1
    except OutputLost as lost:
        output.give_up()
        output.complain(lost, program)
        return lost.exit_code
    except KeyboardInterrupt:
        output.complain("interrupted", program)
        return 130
