"""The layers: parameters as nn.Conv2d's, numbers as torch's layers', and what they refuse."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.numerics import assert_as_accurate
from vgg_fast.layers import (
    Conv3x3,
    Conv3x3ReLU,
    Conv3x3ReLUPool,
    FusedSequential,
    LazyConv3x3,
    Linear,
    MaxPool2x2,
)

BEHIND = {
    Conv3x3: (),
    Conv3x3ReLU: (nn.ReLU(),),
    Conv3x3ReLUPool: (nn.ReLU(), nn.MaxPool2d(2)),
}
convolutions = pytest.mark.parametrize("layer", BEHIND, ids=lambda layer: layer.__name__)


class Named(nn.Sequential):
    """``layers`` with the first one's parameters under the names of that layer alone."""

    def __init__(self, first: nn.Module, *behind: nn.Module) -> None:
        super().__init__(first, *behind)

    def named_parameters(self, *args, **kwargs):
        return self[0].named_parameters(*args, **kwargs)


def lazily(layer, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, that lazy modules may change
        return layer(*args, **kwargs)


@convolutions
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 8, 10), (1, 1, 7, 5), (3, 13, 9)], ids=str)
def test_numbers_are_torchs(layer, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    channels = shape[-3]
    fused = layer(channels, 11, bias=bias)
    conv = nn.Conv2d(channels, 11, 3, padding=1, bias=bias)
    conv.load_state_dict(fused.state_dict())
    assert_as_accurate(fused, Named(conv, *BEHIND[layer]), torch.randn(shape))


@pytest.mark.parametrize("shape", [(2, 3, 8, 10), (1, 1, 7, 5), (5, 9, 2)], ids=str)
def test_pooling_is_torchs(shape: tuple[int, ...]) -> None:
    input = torch.randn(shape)
    ours = input.clone().requires_grad_()
    torchs = input.clone().requires_grad_()
    ours_out, torchs_out = MaxPool2x2()(ours), nn.MaxPool2d(2)(torchs)
    assert torch.equal(ours_out, torchs_out)
    weights = torch.randn(ours_out.shape)
    (ours_out * weights).sum().backward()
    (torchs_out * weights).sum().backward()
    assert torch.equal(ours.grad, torchs.grad)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 8, 10), (2, 3, 7, 10), (1, 1, 4, 5), (5, 8, 2)], ids=str)
def test_pooling_in_ceil_mode_is_torchs(shape: tuple[int, ...], format) -> None:
    input = torch.randn(shape)
    if input.dim() == 4:
        input = input.contiguous(memory_format=format)
    results = []
    for pool in (MaxPool2x2(ceil_mode=True), nn.MaxPool2d(2, ceil_mode=True)):
        given = input.clone().requires_grad_()
        output = pool(given)
        (output * torch.arange(output.numel()).view_as(output)).sum().backward()
        results.append((output, given.grad))
    for ours, torchs in zip(*results, strict=True):
        assert torch.equal(ours, torchs) and ours.stride() == torchs.stride()


@convolutions
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_conv2ds(layer, bias: bool) -> None:
    torch.manual_seed(5)
    ours = layer(6, 4, bias=bias, dtype=torch.float64)
    torch.manual_seed(5)
    torchs = nn.Conv2d(6, 4, 3, padding=1, bias=bias, dtype=torch.float64)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for key, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


@convolutions
def test_factory_arguments(layer) -> None:
    made = layer(2, 3, device="meta", dtype=torch.bfloat16)
    assert made.weight.device.type == made.bias.device.type == "meta"
    assert made.weight.dtype == made.bias.dtype == torch.bfloat16


def test_printing() -> None:
    assert str(Conv3x3(3, 4)) == str(nn.Conv2d(3, 4, 3, padding=1))
    assert str(MaxPool2x2()) == str(nn.MaxPool2d(2))
    assert str(Conv3x3ReLU(3, 4)).startswith("Conv3x3ReLU(3, 4, kernel_size=(3, 3)")
    assert str(Conv3x3ReLUPool(3, 4, bias=False)).startswith("Conv3x3ReLUPool(3, 4,")


def test_every_layer_is_an_instance_of_torchs() -> None:
    for ours, torchs in (
        (Conv3x3, nn.Conv2d),
        (MaxPool2x2, nn.MaxPool2d),
        (Linear, nn.Linear),
        (FusedSequential, nn.Sequential),
    ):
        assert issubclass(ours, torchs)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 2}, {"dilation": 2}], ids=str)
@convolutions
def test_other_settings_are_torchs(layer, options) -> None:
    torch.manual_seed(0)
    ours, torchs = layer(3, 4, **options), nn.Conv2d(3, 4, 3, **{"padding": 1, **options})
    torchs.load_state_dict(ours.state_dict())
    input = torch.randn(2, 3, 9, 9)
    assert torch.equal(ours(input), nn.Sequential(torchs, *BEHIND[layer])(input))


@convolutions
@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"padding": (1, 1)}, {"padding": "same"}, {}, {"padding": "valid"}]
    + [{"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")],
    ids=str,
)
def test_from_conv_takes_the_very_parameters_and_the_settings(layer, options) -> None:
    conv = nn.Conv2d(3, 4, 3, **options).eval()
    made = layer.from_conv(conv)
    assert made.weight is conv.weight and made.bias is conv.bias
    assert (made.padding, made.padding_mode) == (conv.padding, conv.padding_mode)
    assert not made.training
    assert layer.from_conv(nn.Conv2d(3, 4, 3, bias=False, **options)).bias is None
    assert_as_accurate(made, Named(conv, *BEHIND[layer]), torch.randn(2, 3, 8, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 5, "padding": 2}, "it has a 5x5 kernel, not 3x3"),
        ({"kernel_size": (1, 3)}, "it has a 1x3 kernel, not 3x3"),
        ({"stride": 2}, r"it has stride \(2, 2\), not \(1, 1\)"),
        ({"padding": 2}, r"it has padding \(2, 2\), not \(1, 1\) or \(0, 0\)"),
        ({"dilation": 2}, r"it has dilation \(2, 2\), not \(1, 1\)"),
        ({"groups": 2}, "it has groups 2, not 1"),
        (
            {"padding": 0, "padding_mode": "reflect"},
            r"it has padding \(0, 0\) in mode reflect, not \(1, 1\)",
        ),
        ({"dtype": torch.complex64}, "it has weights of torch.complex64"),
    ],
    ids=str,
)
def test_from_conv_refuses_other_convolutions(options, message: str) -> None:
    conv = nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1, **options})
    with pytest.raises(ValueError, match=message):
        Conv3x3ReLU.from_conv(conv)


@convolutions
@pytest.mark.parametrize("channels", [(0, 4), (4, 0), (4, -1)])
def test_channels_below_one_are_refused(layer, channels) -> None:
    with pytest.raises(ValueError, match=r"_channels must be at least 1, but it is (0|-1)"):
        layer(*channels)


@convolutions
def test_wrong_input_is_refused(layer) -> None:
    made = layer(3, 4)
    with pytest.raises(RuntimeError, match=r"input has 2 channels, but weight .* takes 3"):
        made(torch.rand(1, 2, 8, 8))
    with pytest.raises(RuntimeError, match=r"must have 4 dimensions|or 4D \(batched\) input"):
        made(torch.rand(8, 8))
    with pytest.raises(RuntimeError, match="input is float64, but weight is float32"):
        made(torch.rand(1, 3, 8, 8, dtype=torch.float64))


@convolutions
def test_copies_and_scripts_compute_the_same(layer, tmp_path) -> None:
    made, input = layer(3, 5), torch.randn(2, 3, 6, 8)
    expected = made(input)
    assert torch.equal(copy.deepcopy(made)(input), expected)
    assert torch.equal(pickle.loads(pickle.dumps(made))(input), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated
        torch.jit.script(made).save(tmp_path / "layer.pt")
        assert torch.equal(torch.jit.load(tmp_path / "layer.pt")(input), expected)


# -------------------------------------------------------------------------------------------- lazy


@pytest.mark.parametrize("bias", [True, False])
def test_a_lazy_layer_becomes_the_layer(bias: bool) -> None:
    torch.manual_seed(2)
    made = lazily(LazyConv3x3, 4, bias=bias)
    assert made.has_uninitialized_params()
    input = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    output = made(input)
    assert type(made) is Conv3x3 and made.in_channels == 3
    torch.manual_seed(2)
    eager = Conv3x3(3, 4, bias=bias)
    assert torch.equal(made.weight, eager.weight)
    assert torch.equal(made(input), eager(input))
    torch.testing.assert_close(output, eager(input))  # the first call is still torch's


def test_a_lazy_layer_takes_a_state_dict_before_its_first_input() -> None:
    source = Conv3x3(3, 4)
    made = lazily(LazyConv3x3, 4)
    made.load_state_dict(source.state_dict())
    input = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(made(input), source(input))  # the first call is still torch's
    assert torch.equal(made(input), source(input))
    assert str(made) == str(source)


def test_a_lazy_layer_refuses_input_of_another_rank() -> None:
    with pytest.raises(RuntimeError, match=r"Expected 3D .* or 4D .* input"):
        lazily(LazyConv3x3, 4)(torch.rand(3, 3))


# --------------------------------------------------------------------- only the gradients asked for


class BackwardCalls(TorchDispatchMode):
    """Records (operator, need_input, need_weight, need_bias) of every fused backward call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith("vgg_fast.conv") and "_backward" in name:
            self.calls.append(tuple(args[-3:]))
        return func(*args, **(kwargs or {}))


@convolutions
@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize(("weight_grad", "bias_grad"), [(True, True), (False, True), (True, False)])
def test_only_the_gradients_asked_for_are_computed(
    layer, input_grad, weight_grad, bias_grad
) -> None:
    made = layer(4, 4)
    made.weight.requires_grad_(weight_grad)
    made.bias.requires_grad_(bias_grad)
    input = torch.randn(1, 4, 4, 4, requires_grad=input_grad)
    output = made(input)
    with BackwardCalls() as record:
        output.sum().backward()
    assert record.calls == [(input_grad, weight_grad, bias_grad)]
    assert [t.grad is not None for t in (input, made.weight, made.bias)] == [
        input_grad,
        weight_grad,
        bias_grad,
    ]


def test_frozen_layers_cost_no_weight_gradient() -> None:
    net = nn.Sequential(Conv3x3ReLU(1, 4), Conv3x3ReLUPool(4, 4), Conv3x3ReLU(4, 2))
    for parameter in net[:2].parameters():
        parameter.requires_grad_(False)
    output = net(torch.randn(1, 1, 8, 8))
    with BackwardCalls() as record:
        output.sum().backward()
    # Only the last layer runs backward at all: nothing before it wants a gradient.
    assert record.calls == [(False, True, True)]
