"""One pass of one layer, once, for a profiler that counts between its start and its stop.

python -m benchmarks.gpu.once conv3x3_relu 256 256 56 256 fprop cuda
"""

from __future__ import annotations

import sys

import torch

from benchmarks.gpu import candidates
from seed_layers import SeedLayer


def main(arguments: list[str]) -> None:
    """Run it three times before, so that nothing is compiled or chosen while it is counted."""
    op, *sizes, batch, work, device = arguments
    case = candidates.Case(SeedLayer(op, *map(int, sizes)), int(batch), work)
    call = candidates.work(case, torch.device(device)).candidates["vgg_fast"].prepare()
    with torch.no_grad():
        for _ in range(3):
            call()
        if device == "cpu":
            return
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
