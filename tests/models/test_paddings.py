"""Conv3x3 without a border, and with one made of the map's own pixels, as torch's padding modes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from tests.support.numerics import assert_as_accurate, relative_error
from tests.support.sequences import LAYOUTS, assert_same, operators
from vgg_fast import fuse
from vgg_fast.layers import Conv3x3

PADDINGS = {
    "0": {"padding": 0},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": "same", "padding_mode": "replicate"},
    "circular": {"padding": (1, 1), "padding_mode": "circular"},
}
paddings = pytest.mark.parametrize("options", PADDINGS.values(), ids=PADDINGS)


def pair(channels: int, outputs: int, options: dict, **more) -> tuple[Conv3x3, nn.Conv2d]:
    """This package's layer and torch's, with the same parameters."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, outputs, 3, **options, **more)
    return Conv3x3.from_conv(plain), plain


@paddings
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 8, 10), (1, 1, 7, 5), (2, 2, 3, 3), (3, 13, 9)], ids=str)
def test_numbers_and_gradients_are_torchs(options, bias: bool, shape: tuple[int, ...]) -> None:
    ours, torchs = pair(shape[-3], 5, options, bias=bias)
    assert_same(ours, torchs, torch.randn(shape))
    assert_as_accurate(ours, torchs, torch.randn(shape))


@paddings
def test_the_operator_computes_them(options) -> None:
    ours, torchs = pair(5, 4, options)
    assert operators(ours, torch.randn(2, 5, 6, 6)) == ["conv3x3"]
    assert operators(fuse(torchs), torch.randn(5, 6, 6)) == ["conv3x3"]


@paddings
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(options, dtype: torch.dtype) -> None:
    ours, torchs = pair(3, 4, options, dtype=dtype)
    tolerance = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float64: 1e-14}[dtype]
    assert_same(ours, torchs, torch.randn(2, 3, 6, 7, dtype=dtype), tolerance)


@paddings
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(options, dtype: torch.dtype, given: torch.dtype) -> None:
    ours, torchs = pair(3, 4, options)
    input = torch.randn(2, 3, 6, 7).to(given)
    with torch.autocast("cpu", dtype):
        found, expected = ours(input), torchs(input)
    assert found.dtype is expected.dtype is dtype
    assert relative_error(found, expected) <= 1e-2


# ------------------------------------------------------------------------------------------ formats


@paddings
@pytest.mark.parametrize("weight", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "outputs"), [(3, 4), (1, 4), (3, 1), (1, 1)])
def test_the_memory_format_is_the_one_that_torch_gives(
    options, channels: int, outputs: int, layout: str, weight: str
) -> None:
    _, layer = pair(channels, outputs, options)
    layer.weight.data = LAYOUTS[weight](layer.weight.data)
    before = nn.Conv2d(channels, channels, 3, padding=1)
    behind = nn.Conv2d(outputs, 3, 3, padding=1)
    sizes = [(8, 6), (3, 3), (3, 5)]
    if "mode" in str(options):
        sizes += [(2, 2), (2, 4)]
    if options.get("padding_mode") in ("replicate", "circular"):
        sizes += [(1, 4), (1, 1)]
    for size in sizes:
        input = LAYOUTS[layout](torch.randn(2, channels, *size))
        for plain in (
            layer,
            nn.Sequential(layer, nn.ReLU(), behind),
            nn.Sequential(before, nn.ReLU(), layer, nn.ReLU(), behind),
        ):
            assert_same(fuse(plain), plain, input, 4e-6)


@paddings
@pytest.mark.parametrize("channels", [1, 3])
def test_strides_of_one_channel_that_say_channels_last(options, channels: int) -> None:
    ours, torchs = pair(channels, 4, options)
    pixels = torch.randn(2, 6, 5, channels)
    assert_same(ours, torchs, pixels.permute(0, 3, 1, 2))
    assert_same(ours, torchs, pixels.permute(0, 3, 1, 2)[0])


@paddings
def test_the_inputs_gradient_has_torchs_format(options) -> None:
    for format in (torch.contiguous_format, torch.channels_last):
        strides = []
        for layer in pair(3, 4, options):
            input = torch.randn(2, 3, 6, 5).contiguous(memory_format=format).requires_grad_()
            between = input * 1
            between.register_hook(lambda gradient, seen=strides: seen.append(gradient.stride()))
            layer(between).sum().backward()
        assert strides[0] == strides[1]


# ----------------------------------------------------------------------------------------- refusals


@paddings
@pytest.mark.parametrize(
    "shape",
    [(1, 3, 2, 8), (1, 3, 8, 2), (1, 3, 1, 8), (3, 1, 1), (1, 3, 0, 4), (0, 3, 4, 4)],
    ids=str,
)
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in a group"])
def test_a_map_that_is_too_small_is_refused_by_torch(options, shape, grouped: bool) -> None:
    _, plain = pair(3, 4, options)
    behind = (nn.ReLU(), nn.MaxPool2d(2)) if grouped else ()
    model, input = nn.Sequential(plain, *behind), torch.randn(shape)
    found = []
    for net in (model, fuse(model)):
        try:
            found.append(net(input))
        except RuntimeError as error:
            found.append(str(error))
    expected, ours = found
    if isinstance(expected, str):
        assert ours == expected
    else:
        assert isinstance(ours, Tensor) and ours.stride() == expected.stride()
        torch.testing.assert_close(ours, expected)


def test_settings_that_change_count_as_they_do_in_torch() -> None:
    ours, torchs = pair(3, 4, {"padding": 1})
    input = torch.randn(2, 3, 6, 5)
    for name, value in (
        ("padding", (0, 0)),
        ("padding", "valid"),
        ("padding_mode", "reflect"),  # torch pads as the layer was made
        ("padding", (2, 2)),
        ("_reversed_padding_repeated_twice", [2, 2, 2, 2]),
        ("padding_mode", "constant"),
    ):
        for layer in (ours, torchs):
            setattr(layer, name, value)
        assert_same(ours, torchs, input)


# -------------------------------------------------------------------------------------------- tools


@paddings
def test_copies(options) -> None:
    ours, torchs = pair(3, 4, options)
    for again in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))):
        assert_same(again(ours), torchs, torch.randn(2, 3, 6, 5))


@paddings
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in a group"])
@pytest.mark.parametrize("way", ["script", "trace", "fx", "compile", "export"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::DeprecationWarning")
def test_tools(options, grouped: bool, way: str, tmp_path) -> None:
    _, plain = pair(5, 4, options)
    if grouped:
        # An export of torch's own pooling in ceil mode isn't free in its sizes either.
        pool = nn.MaxPool2d(2, ceil_mode=way != "export")
        plain = nn.Sequential(plain, nn.LeakyReLU(0.2), pool)
    ours, input = fuse(plain), torch.randn(2, 5, 8, 6)
    if way in ("script", "trace"):
        made = torch.jit.script(ours) if way == "script" else torch.jit.trace(ours, input)
        torch.jit.save(made, tmp_path / "layer.pt")
        made = torch.jit.load(tmp_path / "layer.pt")
    elif way == "fx":
        made = torch.fx.symbolic_trace(ours)
    elif way == "compile":
        torch._dynamo.reset()
        made = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
    else:
        sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=6), 3: None}
        made = torch.export.export(ours, (input,), dynamic_shapes=(sizes,)).module()
    if way != "compile":  # which no dispatch mode may watch
        assert any(name.startswith("conv3x3") for name in operators(made, input))
    for given in (input, torch.randn(3, 5, 7, 6), torch.randn(3, 5, 9, 6)):
        assert_same(made, plain, given, 4e-6)
    if way not in ("compile", "export"):
        assert_same(made, plain, input.contiguous(memory_format=torch.channels_last), 4e-6)
