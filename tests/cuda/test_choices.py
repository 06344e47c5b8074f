"""The table of backends for GPUs, and what "auto" makes of it. Needs no GPU."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.cases import CONVOLUTIONS, OPERATORS
from vgg_fast import backends, info
from vgg_fast.dispatch import choices, route


@pytest.fixture(autouse=True)
def _a_gpu_that_is_not_here(monkeypatch):
    choices._order.cache_clear()
    monkeypatch.setattr(choices, "family", lambda index: "sm_90")
    monkeypatch.delenv("VGG_FAST_CHOICES", raising=False)
    yield
    choices._order.cache_clear()


def call(op: str, c: int = 64, k: int = 128, dtype: torch.dtype = torch.bfloat16) -> tuple:
    """A call of a convolution, forward or backward, as far as the choice looks at it."""
    input = torch.empty(2, c, 8, 6, device="meta", dtype=dtype)
    weight = torch.empty(k, c, 3, 3, device="meta", dtype=dtype)
    return (op, ((input, input, weight) if op.endswith("_backward") else (input, weight)))


def first(*given) -> str:
    return choices.order(*call(*given))[0].backend


@pytest.fixture
def built(monkeypatch):
    """Both libraries are there: each backend's kernel is a string that names it."""
    for op in OPERATORS:
        for name in (op, f"{op}_backward"):
            monkeypatch.setitem(route._native, (name, "CUDA"), f"cpp {name}")
    monkeypatch.setattr(route, "_triton_kernel", lambda name, key: (f"triton {name}", ""))


@pytest.fixture
def chosen_by(tmp_path, monkeypatch):
    """Write rows into the user's file."""

    def write(*rows: dict) -> None:
        file = tmp_path / "choices.json"
        file.write_text(json.dumps({"rows": list(rows)}))
        monkeypatch.setenv("VGG_FAST_CHOICES", str(file))
        choices._order.cache_clear()
        choices.read.cache_clear()

    return write


@pytest.mark.parametrize("op", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_shipped_table_serves_every_call(op: str, dtype: torch.dtype) -> None:
    for name in (op, f"{op}_backward"):
        for c in (1, 2, 3, 5, 64, 512):
            rows = choices.order(*call(name, c, 7, dtype))
            assert rows[-1].backend == "reference" and len(rows) >= 2


def test_every_row_of_the_shipped_table_says_whether_it_was_measured() -> None:
    for row in choices.read(choices.SHIPPED):
        assert row.origin.startswith("measured on ") != ("not measured" in row.origin)


def test_the_layers_own_channels_decide_in_the_backward_pass_too() -> None:
    assert first("conv3x3_relu", 3) == "cpp" and first("conv3x3_relu_backward", 3) == "triton"
    assert first("conv3x3_relu", 64) == first("conv3x3_relu_backward", 64) == "triton"


@pytest.mark.parametrize("op", CONVOLUTIONS)
@pytest.mark.parametrize("family", ["sm_80", "sm_90"])
@pytest.mark.parametrize("c", [1, 2, 3])
def test_until_it_is_measured_a_first_layers_backward_is_tritons(op, family, c) -> None:
    for arithmetic in ("half", "tf32", "float32"):
        layer = choices.Layer(f"{op}_backward", arithmetic, 32, c, 224, 224, 64)
        assert choices.for_layer(layer, family).backend == "triton"
    assert first(f"{op}_backward", c, 64, torch.float64) == ("triton" if c == 2 else "cpp")


def test_a_gpu_older_than_ampere_gets_pytorch(built, monkeypatch) -> None:
    monkeypatch.setattr(choices, "family", lambda index: None)
    name, arguments = call("conv3x3_relu", 64)
    assert route.kernel_for(name, "CUDA", *arguments)[0] == "reference"
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    choices.family.cache_clear()
    assert choices.family(0) is None
    choices.family.cache_clear()


def test_pooling_needs_no_weight() -> None:
    maps = torch.empty(2, 5, 8, 8, device="meta")
    assert choices.order("max_pool2x2", (maps, True))[0].backend == "cpp"
    assert choices.order("max_pool2x2_backward", (maps, maps, 16, 16))[0].backend == "cpp"


def test_what_the_operator_will_refuse_gets_no_row() -> None:
    assert choices.order("conv3x3", (torch.empty(3, 8, 8), torch.empty(4, 3, 3, 3))) == ()


def test_auto_takes_the_first_backend_that_is_there(built, monkeypatch) -> None:
    name, arguments = call("conv3x3_relu", 3)
    assert route.kernel_for(name, "CUDA", *arguments) == ("cpp", "cpp conv3x3_relu")
    monkeypatch.setitem(route._native, (name, "CUDA"), None)
    assert route.kernel_for(name, "CUDA", *arguments) == ("triton", "triton conv3x3_relu")
    monkeypatch.setattr(route, "_triton_kernel", lambda name, key: (None, "it isn't here"))
    assert route.kernel_for(name, "CUDA", *arguments)[0] == "reference"


@pytest.mark.parametrize("name", ["cpp", "triton", "reference"])
def test_each_backend_can_be_forced(built, name: str) -> None:
    with backends.use(name):
        operator, arguments = call("conv3x3_relu", 3)
        assert route.kernel_for(operator, "CUDA", *arguments)[0] == name


def test_the_users_rows_stand_before_the_shipped_ones(built, chosen_by) -> None:
    chosen_by(
        {"backend": "reference", "origin": "measured", "arithmetic": "half", "side": [8, 8]},
        {"backend": "triton", "origin": "measured", "family": "sm_80", "c": [3, 3]},
    )
    assert first("conv3x3_relu", 64) == "reference"
    assert first("conv3x3_relu", 3, 64, torch.float32) == "cpp"  # the second row is another GPU's
    name, arguments = call("conv3x3_relu", 64)
    assert route.kernel_for(name, "CUDA", *arguments)[0] == "reference"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"backend": "cudnn", "origin": ""}, "none of the backends"),
        ({"backend": "cpp", "origin": "", "channels": 3}, "no channels"),
        ({"origin": ""}, "none of the backends"),
    ],
)
def test_a_wrong_file_is_named(chosen_by, row: dict, problem: str) -> None:
    chosen_by(row)
    with pytest.raises(ValueError, match=f"VGG_FAST_CHOICES=.*{problem}"):
        first("conv3x3")


def test_a_missing_file_is_named(monkeypatch) -> None:
    monkeypatch.setenv("VGG_FAST_CHOICES", "/nowhere/choices.json")
    with pytest.raises(ValueError, match=r"VGG_FAST_CHOICES='/nowhere/.* can't be used"):
        first("conv3x3")


def test_rows_are_read_as_they_were_written() -> None:
    for row in choices.read(choices.SHIPPED):
        assert choices.Row.load(row.dump()) == row


@pytest.mark.parametrize("family", ["sm_80", "sm_90"])
def test_info_prints_the_choice_for_a_gpu_that_is_not_here(family: str, capsys) -> None:
    info.main(["--gpu", family, "--batch", "32", "--json"])
    rows = json.loads(capsys.readouterr().out)["gpu"]
    assert [row["kernel"] for row in rows[:5]] == [
        "direct", "direct_wgrad", "fprop", "dgrad", "wgrad",
    ]  # fmt: skip
    assert len(rows) == 2 + 3 * 7
    assert {row["backend"] for row in rows} == {"C++", "Triton"}
    hopper = ["descriptors" in row["Triton's tile"] for row in rows[2:]]
    assert all(hopper) if family == "sm_90" else not any(hopper)
    info.main(["--gpu", family])
    assert "not measured" in capsys.readouterr().out
