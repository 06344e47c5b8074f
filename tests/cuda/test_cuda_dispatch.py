"""Which calls the shipped table gives to the CUDA C++ kernels: the others are Triton's.

Needs no GPU.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.support.cases import CONVOLUTIONS, OPERATORS
from vgg_fast import backends
from vgg_fast.dispatch import choices, environment, policy
from vgg_fast.dispatch import route as registry


def calls(op: str, c: int, k: int, dtype: torch.dtype = torch.float32):
    """The forward operator's arguments and the backward's, as far as the choice looks at them."""
    shapes = ((2, c, 8, 8), (k, c, 3, 3), (2, k, 8, 8))
    input, weight, grad = (torch.empty(shape, device="meta", dtype=dtype) for shape in shapes)
    return ((op, (input, weight)), (f"{op}_backward", (grad, input, weight)))


@pytest.fixture(autouse=True)
def _built_for_a_gpu_that_is_not_here(monkeypatch):
    """Both libraries serve every call, on a GPU of the newest family."""
    choices._order.cache_clear()
    monkeypatch.setattr(choices, "family", lambda index: "sm_90")
    monkeypatch.delenv("VGG_FAST_CHOICES", raising=False)
    for op in OPERATORS:
        for name in (op, f"{op}_backward"):
            monkeypatch.setitem(registry._native, (name, "CUDA"), kernel)
    monkeypatch.setattr(registry, "_triton_kernel", lambda name, key: (kernel, ""))
    yield
    choices._order.cache_clear()


def kernel(*args):
    return args


def chosen(name: str, key: str, arguments: tuple) -> str:
    return registry.kernel_for(name, key, *arguments)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("op", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("c", "k", "backend"), [(1, 64, "cpp"), (3, 5, "cpp"), (64, 3, "triton"), (64, 64, "triton")]
)
def test_the_first_layer_is_theirs_forward(op, c, k, backend, dtype) -> None:
    (name, arguments), (backward, more) = calls(op, c, k, dtype)
    assert chosen(name, "CUDA", arguments) == backend
    in_fp64 = backend if dtype == torch.float64 else "triton"  # where Triton has no such kernel
    assert chosen(backward, "CUDA", more) == in_fp64


def test_a_row_may_choose_hoppers_own_kernels(monkeypatch) -> None:
    rows = (choices.Row(choices.HOPPER, "measured"), choices.Row("triton", "measured"))
    monkeypatch.setattr(choices, "order", lambda name, args: rows)
    name, arguments = calls("conv3x3", 64, 64)[0]
    assert chosen(name, "CUDA", arguments) == "triton"  # they aren't built
    monkeypatch.setitem(registry._sm90, name, kernel)
    assert registry.kernel_for(name, "CUDA", *arguments) == (choices.HOPPER, kernel)


@pytest.fixture(params=["ieee", "tf32"])
def precision(request):
    """torch's switch for convolutions in fp32."""
    setting = torch.backends.cudnn.conv
    before, setting.fp32_precision = setting.fp32_precision, request.param
    yield request.param
    setting.fp32_precision = before


@pytest.fixture
def gpu_kernels(monkeypatch):
    """Sets ``VGG_FAST_GPU``, which is read once, and the GPU's compute capability."""

    def force(name: str, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setenv("VGG_FAST_GPU", name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        environment.gpu_kernels.cache_clear()
        policy.has_sm90.cache_clear()

    yield force
    environment.gpu_kernels.cache_clear()
    policy.has_sm90.cache_clear()


@pytest.fixture
def called_with(monkeypatch):
    """What a call of a convolution's kernel hands to the library, ahead of its tensors."""
    monkeypatch.setattr(torch.library, "get_kernel", lambda op, key: SimpleNamespace(
        call_boxed=lambda keyset, *given: (op, *given[:2])))  # fmt: skip

    def call(sm90: bool, dtype: torch.dtype) -> tuple[str, bool, bool]:
        return registry._cuda_convolution("conv3x3", sm90)(torch.empty(1, dtype=dtype))

    return call


def test_torchs_switch_reaches_them_with_every_call(
    called_with, gpu_kernels, precision: str
) -> None:
    gpu_kernels("")
    for sm90 in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            tf32 = precision == "tf32" and dtype == torch.float32
            assert called_with(sm90, dtype) == ("vgg_fast::_cuda_conv3x3", tf32, sm90)


@pytest.mark.parametrize(
    ("preferred", "forced", "capability", "expected"),
    [
        (False, "", (9, 0), False),
        (True, "", (9, 0), True),
        (True, "", (8, 0), False),  # the table prefers them, and doesn't insist
        (True, "sm_80", (9, 0), False),
        (False, "sm_90a", (9, 0), True),
        (False, "sm_90a", (8, 0), True),  # refused by the operator
    ],
)
def test_hoppers_kernels_run_where_they_are_chosen(
    called_with, gpu_kernels, preferred: bool, forced: str, capability, expected: bool
) -> None:
    gpu_kernels(forced, capability)
    assert called_with(preferred, torch.bfloat16)[2] == expected


def test_kernels_that_do_not_exist_are_refused_in_one_sentence(called_with, gpu_kernels) -> None:
    gpu_kernels("sm_42")
    with pytest.raises(ValueError, match="VGG_FAST_GPU=sm_42 names no kernels; set it to sm_80 or"):
        called_with(False, torch.bfloat16)


def test_every_pooling_is_theirs() -> None:
    maps = torch.empty(2, 64, 8, 8, device="meta")
    assert chosen("max_pool2x2", "CUDA", (maps, True)) == "cpp"
    assert chosen("max_pool2x2_backward", "CUDA", (maps, maps, 16, 16)) == "cpp"


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_cpu_tensors_are_always_theirs(op, monkeypatch) -> None:
    for name, arguments in calls(op, 64, 64):
        monkeypatch.setitem(registry._native, (name, "CPU"), kernel)
        assert chosen(name, "CPU", arguments) == "cpp"


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_forced_they_serve_every_layer(op) -> None:
    for name, arguments in calls(op, 64, 64):
        with backends.use("cpp"):
            assert registry.kernel_for(name, "CUDA", *arguments) == ("cpp", kernel)


def test_forced_and_not_built_they_are_missed_in_one_sentence(monkeypatch) -> None:
    monkeypatch.setitem(registry._native, ("conv3x3", "CUDA"), None)
    with (
        backends.use("cpp"),
        pytest.raises(RuntimeError, match="no C\\+\\+ kernel is built for CUDA"),
    ):
        registry.kernel_for("conv3x3", "CUDA", *calls("conv3x3", 64, 64)[0][1])
