"""Small shapes through every CUDA C++ kernel: python -m tests.support.sanitized

compute-sanitizer watches it, and benchmarks.gpu asks it which kernels run at all.
"""

from __future__ import annotations

import torch

from tests.support.cases import CONVOLUTIONS, DTYPES, Shape
from tests.support.frozen import DGRADS, MASKED, drawn_gradient
from tests.support.operators import OPS, Arguments, forward_backward, random_arguments
from vgg_fast import backends

SHAPES = (
    Shape(1, 1, 8, 5, 6),
    Shape(2, 3, 20, 4, 7),
    Shape(2, 16, 24, 6, 5),
    Shape(1, 5, 72, 3, 9),
    Shape(4, 72, 7, 2, 2),
)


def call_masked(op: str, given: Arguments) -> None:
    getattr(OPS, f"_{op}_masked")(*(t.cuda() for t in (given.input, given.weight, given.bias)))


def main() -> None:
    with backends.use("cpp"):
        for dtype, precision in [*((dtype, "ieee") for dtype in DTYPES), (torch.float32, "tf32")]:
            torch.backends.cudnn.conv.fp32_precision = precision
            for shape in SHAPES:
                for op in CONVOLUTIONS:
                    given = random_arguments(op, shape, dtype)
                    moved = {n: t if t is None else t.cuda() for n, t in vars(given).items()}
                    forward_backward(op, Arguments(**moved))
                for op in MASKED:
                    call_masked(op, random_arguments("conv3x3_relu", shape, dtype))
                for op in DGRADS:
                    given = drawn_gradient(op, shape, dtype).given
                    moved = [t.cuda() if isinstance(t, torch.Tensor) else t for t in given]
                    getattr(OPS, f"_{op}_dgrad")(*moved)
            maps = torch.randn(2, 5, 7, 6, device="cuda", dtype=dtype)
            output, argmax = OPS.max_pool2x2(maps, True)
            OPS.max_pool2x2_backward(output, argmax, 7, 6)
    torch.cuda.synchronize()
    print("all kernels ran")


if __name__ == "__main__":
    main()
