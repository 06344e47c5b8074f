"""vgg_fast.cpu: each algorithm is right on its own, can be forced, and gives way where it must."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.support.numerics import relative_error
from vgg_fast import cpu
from vgg_fast.functional import conv3x3, conv3x3_relu, conv3x3_relu_pool

ALGORITHMS = [name for name in cpu.ALGORITHMS if name != "auto"]

# N, C, H, W, K: tiles that are cut at the edges, channels off every vector's multiple, a block of
# tiles and one more, few tiles and many outputs, more terms than are summed up at a time.
SHAPES = [
    (2, 19, 13, 7, 33),
    (1, 8, 4, 4, 16),
    (3, 5, 1, 9, 7),
    (1, 12, 37, 45, 24),
    (2, 300, 6, 6, 40),
    (1, 64, 14, 14, 200),
]

FORWARD = {
    "conv3x3": (conv3x3, lambda y: y),
    "conv3x3_relu": (conv3x3_relu, torch.relu),
    "conv3x3_relu_pool": (
        conv3x3_relu_pool,
        lambda y: torch.nn.functional.max_pool2d(torch.relu(y), 2),
    ),
}


@pytest.fixture(autouse=True)
def settings_as_before():
    before = cpu.get()
    yield
    cpu.set(*before)


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    n, c, h, w, k = shape
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(n, c, h, w, generator=generator).to(dtype).requires_grad_(),
        (torch.randn(k, c, 3, 3, generator=generator) * (2 / (9 * c)) ** 0.5)
        .to(dtype)
        .requires_grad_(),
        (torch.randn(k, generator=generator) / 10).to(dtype).requires_grad_(),
    )


def results(function, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    """The output, and the gradients of a fixed projection of it."""
    output = function(*arguments)
    generator = torch.Generator().manual_seed(2)
    projection = torch.randn(output.shape, generator=generator).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, arguments, projection)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("operator", FORWARD)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_algorithm_equals_fp64(shape, operator, algorithm):
    fused, epilogue = FORWARD[operator]
    if operator == "conv3x3_relu_pool" and min(shape[2:4]) < 2:
        shape = (*shape[:2], 2, *shape[3:])
    arguments = tensors(shape)
    with cpu.use(algorithm):
        found = results(fused, arguments)
    exact = tuple(t.detach().double().requires_grad_() for t in arguments)
    expected = results(
        lambda x, w, b: epilogue(torch.nn.functional.conv2d(x, w, b, padding=1)), exact
    )
    bounds = (2e-6, 2e-6, 5e-6, 5e-6)
    for name, a, e, bound in zip(
        ("output", "input", "weight", "bias"), found, expected, bounds, strict=True
    ):
        assert relative_error(a, e) <= bound, name


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
def test_16_bit_tensors_are_computed_in_fp32(dtype, bound, algorithm):
    arguments = tensors((2, 40, 17, 19, 50), dtype)
    with cpu.use(algorithm):
        found = results(conv3x3, arguments)
    exact = tuple(t.detach().double().requires_grad_() for t in arguments)
    expected = results(lambda *a: torch.nn.functional.conv2d(*a, padding=1), exact)
    for a, e in zip(found, expected, strict=True):
        assert relative_error(a, e) <= bound


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
@pytest.mark.parametrize("operator", FORWARD)
def test_what_isn_t_finite_stays_where_the_convolution_takes_it(operator, algorithm, value):
    fused, _ = FORWARD[operator]
    input, weight, bias = (t.detach() for t in tensors((2, 20, 18, 23, 35)))
    input[1, 2, 5, 4] = value
    input[0, 0, 17, 22] = value
    with cpu.use("direct"):
        expected = fused(input, weight, bias)
    with cpu.use(algorithm):
        torch.testing.assert_close(fused(input, weight, bias), expected, equal_nan=True)


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
def test_a_transform_that_overflows_leaves_no_trace(algorithm):
    input, weight = torch.full((1, 8, 12, 12), 3e38), torch.full((16, 8, 3, 3), 1e-3)
    with cpu.use(algorithm):
        found = conv3x3(input, weight)
    torch.testing.assert_close(found, torch.nn.functional.conv2d(input, weight, padding=1))


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
def test_a_nan_in_a_gradient_stays_too(algorithm):
    input, weight, bias = tensors((1, 20, 18, 23, 35))
    gradient = torch.ones(1, 35, 18, 23)
    gradient[0, 3, 7, 7] = torch.nan
    found = {}
    for name in ("direct", algorithm):
        with cpu.use(name):
            (found[name],) = torch.autograd.grad(conv3x3(input, weight, bias), input, gradient)
    assert int(found["direct"].isnan().any(dim=1).sum()) == 9
    torch.testing.assert_close(found[algorithm], found["direct"], equal_nan=True)


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
def test_an_infinity_reaches_the_weight_s_gradient_as_it_should(algorithm):
    input, weight, bias = tensors((1, 20, 18, 23, 35))
    with torch.no_grad():
        input[0, 3, 7, 7] = torch.inf
    gradient = torch.ones(1, 35, 18, 23)
    found = {}
    for name in ("direct", algorithm):
        with cpu.use(name):
            (found[name],) = torch.autograd.grad(conv3x3(input, weight, bias), weight, gradient)
    assert bool(found["direct"][:, 3].isposinf().all())
    torch.testing.assert_close(found[algorithm], found["direct"], equal_nan=True)


def algorithm_of(**options) -> str:
    return cpu.plan(4, 64, 56, 56, 64, **options)["forward"]["algorithm"]


def test_a_plan_follows_the_settings():
    assert algorithm_of() == "winograd4"
    with cpu.use("direct"):
        assert algorithm_of() == "direct"
        with cpu.use("winograd2"):
            assert algorithm_of() == "winograd2"
        assert cpu.get() == cpu.Settings("direct")
    assert cpu.get() == cpu.Settings()


def test_a_plan_follows_shape_and_dtype():
    assert algorithm_of(dtype=torch.float64) == "direct"
    assert cpu.plan(1, 1, 224, 224, 64)["forward"]["algorithm"] == "direct"
    assert cpu.plan(128, 128, 2, 2, 128)["forward"]["algorithm"] == "winograd2"


def test_a_plan_keeps_every_thread_busy():
    for threads in (1, 2, 3, 8):
        for plan in (cpu.plan(16, 512, 14, 14, 512, threads=threads),
                     cpu.plan(1, 512, 14, 14, 512, threads=threads),
                     cpu.plan(1, 64, 112, 112, 128, threads=threads)):  # fmt: skip
            assert plan["forward"]["pieces"] >= threads


@pytest.mark.parametrize(
    ("algorithm", "most"), [("direct", 4e-7), ("winograd2", 4e-7), ("winograd4", 1e-6)]
)
def test_long_sums_round_little(algorithm, most):
    """4,608 terms in one row would round by 7e-7, and so do F(4×4)'s usual points."""
    input, weight, bias = (t.detach() for t in tensors((1, 512, 14, 14, 96)))
    input = input.relu()
    exact = torch.nn.functional.conv2d(input.double(), weight.double(), bias.double(), padding=1)
    with cpu.use(algorithm):
        found = conv3x3(input, weight, bias)
    assert float((found.double() - exact).norm() / exact.norm()) <= most


def test_settings_are_restored_after_an_error():
    with pytest.raises(KeyError), cpu.use("direct", workspace=7):
        assert cpu.get() == cpu.Settings("direct", workspace=7)
        raise KeyError
    assert cpu.get() == cpu.Settings()


def test_too_little_workspace_falls_back_and_stays_right():
    input, weight, bias = (t.detach() for t in tensors((1, 128, 14, 14, 128)))
    with cpu.use("direct"):
        expected = conv3x3(input, weight, bias)
    with cpu.use(workspace=0):
        assert cpu.plan(1, 128, 14, 14, 128)["forward"] == {
            **cpu.plan(1, 128, 14, 14, 128)["forward"], "algorithm": "direct", "workspace": 0
        }  # fmt: skip
        assert torch.equal(conv3x3(input, weight, bias), expected)
    plenty = cpu.plan(1, 128, 14, 14, 128)["forward"]["workspace"] // 2**20 + 1
    with cpu.use(workspace=plenty):
        assert cpu.plan(1, 128, 14, 14, 128)["forward"]["algorithm"] != "direct"


def test_few_pixels_are_convolved_by_gemv():
    plans = cpu.plan(1, 512, 4, 4, 512)
    assert plans["forward"]["by"] == "gemv" and plans["forward"]["workspace"] > 0
    assert "by" not in plans["input gradient"] and "by" not in plans["weight gradient"]
    assert "by" not in cpu.plan(1, 512, 4, 5, 512)["forward"]
    # Direct tiles would take more beside the tensors, for the weight in their order.
    with cpu.use(workspace=0):
        assert cpu.plan(1, 512, 4, 4, 512)["forward"] == plans["forward"]
        cpu.release_workspaces()
        conv3x3(*(t.detach() for t in tensors((1, 512, 4, 4, 512))))
        assert cpu.release_workspaces() < 2 * plans["forward"]["workspace"]


def test_released_workspaces_are_given_back():
    input, weight, bias = (t.detach() for t in tensors((1, 128, 14, 14, 128)))
    for _ in range(2):  # the second time its weight is kept too: all there is under a sanitizer
        conv3x3(input, weight, bias)
    assert cpu.release_workspaces() > 0
    assert cpu.release_workspaces() == 0
    conv3x3(input, weight, bias)


def test_what_is_not_named_stays_as_it_is():
    before = cpu.get()
    try:
        cpu.set(workspace=64, weight_cache=7)
        cpu.set("direct")
        assert cpu.get() == cpu.Settings("direct", 64, 7)
        with cpu.use("winograd2"):
            assert cpu.get() == cpu.Settings("winograd2", 64, 7)
            with cpu.use(workspace=None):
                assert cpu.get() == cpu.Settings("winograd2", None, 7)
            cpu.set()
            assert cpu.get() == cpu.Settings("winograd2", 64, 7)
        assert cpu.get() == cpu.Settings("direct", 64, 7)
    finally:
        cpu.set(*before)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workspace": 1.5}, "workspace must be a whole number of MiB or None, but it is 1.5"),
        ({"weight_cache": "x"}, "weight_cache must be a whole number of MiB, but it is 'x'"),
        ({"weight_cache": None}, "weight_cache must be a whole number of MiB, but it is None"),
    ],
    ids=str,
)
def test_what_is_no_number_of_mebibytes_is_refused(options, sentence):
    with pytest.raises(TypeError) as error:
        cpu.set(**options)
    assert str(error.value) == sentence and cpu.get() == cpu.Settings()


def test_frozen_takes_models_whose_weights_exist():
    with pytest.raises(TypeError, match="takes models"), cpu.frozen(None):
        pass
    with pytest.raises(ValueError, match="weight is lazy"), cpu.frozen(torch.nn.LazyConv2d(3, 3)):
        pass
    with cpu.frozen(torch.nn.Linear(2, 2)):
        assert cpu.frozen_weights() == 0


def test_a_plan_of_a_huge_map_is_made():
    """One that tried each number of blocks took 12.7 s for a side of 10⁶."""
    for side in (10**4, 10**5, 10**6, 2 * 10**6):
        plans = cpu.plan(1, 16, side, side, 16)
        assert all(plan["pieces"] > 0 and plan["workspace"] >= 0 for plan in plans.values())
        assert plans["forward"]["tiles"] > 50


@pytest.mark.parametrize(
    ("numbers", "error", "sentence"),
    [
        ((1, 2**62, 8, 8, 8), ValueError, "70368744177664 elements in a tensor at most, but got"),
        ((2**40, 8, 2**20, 8, 8), ValueError, "elements in a tensor at most"),
        ((1, 2**23, 8, 8, 2**23), ValueError, "elements in a tensor at most"),
        ((1, 8.0, 8, 8, 8), TypeError, "in_channels must be a whole number, but it is 8.0"),
        ((1, 8, 8, 8, "8"), TypeError, "out_channels must be a whole number, but it is '8'"),
    ],
    ids=str,
)
def test_a_plan_of_what_no_machine_holds_is_refused(numbers, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        cpu.plan(*numbers)
    with pytest.raises(ValueError, match="65536 threads at most"):
        cpu.plan(1, 8, 8, 8, 8, threads=10**9)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("winograd",), "there is no algorithm 'winograd': choose one of auto, direct"),
        (("auto", -1), "workspace must be a number of MiB below 1000000000 or None, but it is -1"),
        (("auto", 10**9), "workspace must be a number of MiB below 1000000000 or None"),
        (("auto", None, -1), "weight_cache must be a number of MiB below 1000000000, but it is -1"),
        (("auto", None, 1 << 70), "weight_cache must be a number of MiB below 1000000000"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        cpu.set(*arguments)
    assert cpu.get() == cpu.Settings()


def test_a_plan_of_an_unserved_dtype_is_refused():
    with pytest.raises(ValueError, match=r"but not torch\.int8"):
        cpu.plan(1, 1, 8, 8, 1, dtype=torch.int8)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", f"from vgg_fast import cpu; {code}"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_the_environment_is_heard():
    printed = run(
        "print(*cpu.get())",
        VGG_FAST_ALGORITHM="winograd2",
        VGG_FAST_WORKSPACE="64",
        VGG_FAST_WEIGHT_CACHE="0",
    )
    assert printed.stdout == "winograd2 64 0\n", printed.stderr


def test_a_cap_that_is_too_small_is_reported_once():
    printed = run(
        "import torch; from vgg_fast.functional import conv3x3; "
        "x, w = torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3); "
        "[conv3x3(x, w) for _ in range(3)]; conv3x3(x[:, :, :20], w)",
        VGG_FAST_WORKSPACE="1",
    )
    assert printed.returncode == 0, printed.stderr
    assert printed.stderr.count("vgg_fast: a layer runs the direct algorithm") == 1
    assert "needs 2 MiB" in printed.stderr and "allows only 1 MiB" in printed.stderr


def test_a_cap_that_suffices_is_not_reported():
    printed = run(
        "import torch; from vgg_fast.functional import conv3x3; "
        "conv3x3(torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3))",
        VGG_FAST_WORKSPACE="64",
    )
    assert printed.stderr == ""


@pytest.mark.parametrize(
    "variable, value, sentence",
    [
        ("VGG_FAST_ALGORITHM", "fft", "VGG_FAST_ALGORITHM=fft names no algorithm"),
        ("VGG_FAST_WORKSPACE", "1GB", "VGG_FAST_WORKSPACE=1GB isn't a number of MiB"),
        ("VGG_FAST_WEIGHT_CACHE", "-1", "VGG_FAST_WEIGHT_CACHE=-1 isn't a number of MiB"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(variable, value, sentence):
    printed = run("cpu.get()", **{variable: value})
    assert printed.returncode != 0
    assert sentence in printed.stderr.splitlines()[-1]
