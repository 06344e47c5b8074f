"""What python -m benchmarks.models is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.models.case import Size


@dataclass
class Options:
    """Compare and measure other packages' models."""

    only: str = ""
    """A regular expression; the cases whose names it is found in. Without one: all of them, or the
    selection for --backend. A record with one is written only if --json says where to."""

    size: Size = "full"
    """What is measured: inputs as people use them, or those of the tests."""

    rounds: int = 5
    """How often each way is timed; 0 compares, and measures nothing."""

    threads: int = 2
    """CPU threads."""

    inference: bool = False
    """Measure the forward pass without gradients only."""

    training: bool = False
    """Measure forward and backward pass only."""

    backend: str | None = None
    """Instead of fuse(): torch.compile with this backend, relative to torch.compile without."""

    json: Path | None = None
    """The file of the record, or its folder."""

    minutes: float | None = None
    """Begin no further case after these, and leave the rest to --resume."""

    resume: Path | None = None
    """Add the cases that this record lacks: NAME.partial.json, or one that lacked a package. On the
    same machine, at the same commit, and with the options that it was begun with; --only chooses
    among the cases."""

    list: bool = False
    """Print the cases, and do nothing."""


MEASURING = ("size", "rounds", "threads", "inference", "training", "backend")  # of the options
