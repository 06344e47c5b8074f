"""How many of a GPU's multiprocessors a cut of csrc/cuda/common/stream_k.cuh keeps busy."""

from __future__ import annotations

from typing import NamedTuple

MULTIPROCESSORS = 132  # an H100's


class Cut(NamedTuple):
    """Tiles of ``steps`` steps each, cut into ``runs`` of ``run_steps`` each."""

    tiles: int
    steps: int
    runs: int
    run_steps: int

    def busy_share(self, multiprocessors: int = MULTIPROCESSORS) -> float:
        """The steps, of those that all multiprocessors had time for; each takes a run at a time."""
        waves = -(-self.runs // multiprocessors)
        return self.tiles * self.steps / (waves * multiprocessors * self.run_steps)
