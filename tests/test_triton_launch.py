"""A compiled kernel is looked for once: what tells one from another. Needs no GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this platform")

from vgg_fast.triton import launch


class Kernel:
    """Writes down what is asked of it; what it "compiles" writes down its launches."""

    arg_names = ("input", "output", "N", "floor", "WIDE", "BLOCK")

    def __init__(self) -> None:
        self.compiled: list[Kernel] = []
        self.launches: list[tuple] = []

    def __getitem__(self, grid: tuple[int, int, int]):
        def start(*arguments, **constants):
            self.launches.append((grid, arguments, constants))
            if not constants:
                return None
            self.compiled.append(Kernel())
            return self.compiled[-1]

        return start


CONSTANTS = {"BLOCK": 64, "num_warps": 4, "WIDE": True}


def test_the_second_launch_goes_straight_to_what_the_first_compiled() -> None:
    kernel, maps = Kernel(), torch.zeros(8)
    for _ in range(3):
        launch.launch(kernel, (5, 2), maps, (maps, None, 7, -1.0), CONSTANTS)
    assert kernel.launches == [((5, 2, 1), (maps, None, 7, -1.0), CONSTANTS)]
    # As the launcher of a compiled kernel takes them: all in order, and no options.
    assert kernel.compiled[0].launches == [((5, 2, 1), (maps, None, 7, -1.0, True, 64), {})] * 2


def test_another_grid_needs_no_other_kernel() -> None:
    kernel, maps = Kernel(), torch.zeros(8)
    for programs in (1, 2):
        launch.launch(kernel, programs, maps, (maps, maps, 7, 0.0), CONSTANTS)
    assert len(kernel.compiled) == 1 and kernel.compiled[0].launches[0][0] == (2, 1, 1)


@pytest.mark.parametrize(
    "given",
    [
        lambda maps: (maps.half(), None, 7, 0.0),
        lambda maps: (maps[1:], None, 7, 0.0),  # it no longer starts at a multiple of 16 bytes
        lambda maps: (maps, maps, 7, 0.0),
        lambda maps: (maps, None, 1, 0.0),
    ],
    ids=["dtype", "alignment", "presence", "number"],
)
def test_what_triton_compiles_anew_is_looked_for(given) -> None:
    kernel, maps = Kernel(), torch.zeros(8)
    launch.launch(kernel, 1, maps, (maps, None, 7, 0.0), CONSTANTS)
    launch.launch(kernel, 1, maps, given(maps), CONSTANTS)
    launch.launch(kernel, 1, maps, (maps, None, 7, 0.0), {**CONSTANTS, "BLOCK": 32})
    assert len(kernel.compiled) == 3


def test_what_is_interpreted_is_never_compiled() -> None:
    kernel, maps = Kernel(), torch.zeros(8)
    for _ in range(2):
        launch.launch(kernel, 1, maps, (maps, None, 7, 0.0), {})
    assert len(kernel.launches) == 2 and not kernel.compiled
