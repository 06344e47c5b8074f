"""Every operator on shapes, dtypes and layouts that nobody chose."""

from __future__ import annotations

import pytest
import torch

from tests.cases import CONVOLUTIONS, DTYPES, LAYOUTS, Shape
from tests.operators import assert_equals_fp64, forward_backward, random_arguments
from tests.test_max_pool2x2 import assert_is_torchs

hypothesis = pytest.importorskip("hypothesis", reason="needs the package hypothesis")
st = pytest.importorskip("hypothesis.strategies", reason="needs the package hypothesis")

# The same examples on every run: what fails here fails for everyone.
repeatable = hypothesis.settings(
    max_examples=60, deadline=None, derandomize=True, database=None, print_blob=False
)
layouts = st.sampled_from(list(LAYOUTS))


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_convolutions_equal_fp64(op: str) -> None:
    least = 2 if op == "conv3x3_relu_pool" else 1

    @repeatable
    @hypothesis.given(
        shape=st.builds(
            Shape,
            st.integers(0, 3),
            st.integers(1, 40),
            st.integers(1, 40),
            st.integers(least, 13),
            st.integers(least, 13),
        ),
        dtype=st.sampled_from(DTYPES),
        layout=st.tuples(layouts, layouts, layouts, layouts),
        bias=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def check(shape, dtype, layout, bias, seed) -> None:
        arguments = random_arguments(op, shape, dtype, seed)
        for name, chosen in zip(vars(arguments), layout, strict=True):
            setattr(arguments, name, LAYOUTS[chosen](getattr(arguments, name)))
        if not bias:
            arguments.bias = None
        assert_equals_fp64(op, arguments, forward_backward(op, arguments))

    check()


@repeatable
@hypothesis.given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(2, 13), st.integers(2, 13)),
    dtype=st.sampled_from(DTYPES),
    layout=st.tuples(layouts, layouts),
    values=st.sampled_from([2, 5, 1000]),
    seed=st.integers(0, 2**31),
)
def test_pooling_is_torchs(shape, dtype, layout, values, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, c, height, width = shape
    input = torch.randint(-values, values, shape, generator=generator).to(dtype)
    input[torch.rand(shape, generator=generator) < 0.1] = torch.nan
    grad_output = torch.randn((n, c, height // 2, width // 2), generator=generator).to(dtype)
    assert_is_torchs(LAYOUTS[layout[0]](input), LAYOUTS[layout[1]](grad_output))
