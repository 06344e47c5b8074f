"""FusedSequential: what runs as one operator, and that nobody can tell but by the clock."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.numerics import assert_as_accurate, relative_error
from tests.support.sequences import assert_same, conv, features, operators
from vgg_fast import fuse
from vgg_fast.layers import FusedSequential

# ------------------------------------------------------------------------------------ what is fused


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([conv()], ["conv3x3"]),
        ([conv(), nn.ReLU()], ["conv3x3_relu"]),
        ([conv(), nn.ReLU(inplace=True), nn.MaxPool2d(2)], ["conv3x3_relu_pool"]),
        ([conv(padding="same"), nn.ReLU(), nn.MaxPool2d((2, 2), 2)], ["conv3x3_relu_pool"]),
        ([conv(), nn.MaxPool2d(2)], ["conv3x3", "max_pool2x2"]),
        ([conv(), nn.Identity(), nn.ReLU(), nn.Identity(), nn.MaxPool2d(2)], ["conv3x3_relu_pool"]),
        ([conv(), nn.Dropout(0.5), nn.ReLU()], ["conv3x3_relu"]),
        ([conv(), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)], ["conv3x3_relu_pool"]),
        ([conv(), nn.MaxPool2d(2), nn.Identity(), nn.ReLU()], ["conv3x3_relu_pool"]),
        (
            [conv(), nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(2)],
            ["conv3x3_relu_pool", "max_pool2x2"],
        ),
        ([conv(), nn.MaxPool2d(2), nn.LeakyReLU()], ["conv3x3", "max_pool2x2"]),
        ([conv(), nn.MaxPool2d(2), nn.MaxPool2d(2)], ["conv3x3", "max_pool2x2", "max_pool2x2"]),
        ([conv(), nn.ReLU(), nn.MaxPool2d(3, 2)], ["conv3x3_relu"]),
        ([conv(), nn.LeakyReLU()], ["conv3x3_relu"]),
        ([conv(), nn.LeakyReLU(2, inplace=True), nn.MaxPool2d(2)], ["conv3x3_relu_pool"]),
        ([conv(), nn.ReLU6()], ["conv3x3"]),
        ([conv(stride=2), nn.ReLU()], []),
        ([conv(padding=2), nn.ReLU(), conv(groups=2), nn.ReLU()], []),
        ([conv(padding=0), nn.ReLU(), nn.MaxPool2d(2)], ["conv3x3_relu_pool"]),
        ([conv(padding_mode="reflect"), nn.ReLU(), nn.MaxPool2d(2)], ["conv3x3_relu_pool"]),
        ([conv(padding_mode="circular"), nn.LeakyReLU()], ["conv3x3_relu"]),
        ([conv(padding=0, padding_mode="replicate"), nn.ReLU()], []),
        ([nn.ReLU(), nn.MaxPool2d(2), conv(), nn.ReLU()], ["max_pool2x2", "conv3x3_relu"]),
    ],
    ids=lambda value: "-".join(type(x).__name__ if isinstance(x, nn.Module) else x for x in value),
)
def test_what_runs_as_one_operator(layers: list[nn.Module], expected: list[str]) -> None:
    plain = nn.Sequential(*layers).eval()
    fused = fuse(plain)
    input = torch.randn(2, 4, 8, 6)
    assert operators(fused, input) == expected
    assert_same(fused, plain, input)


@pytest.mark.parametrize("slope", [0.0, -0.1, torch.inf, torch.nan, torch.tensor(0.1)], ids=str)
def test_a_leaky_relu_that_does_not_rise_is_torchs(slope) -> None:
    plain = nn.Sequential(conv(), nn.LeakyReLU(slope))
    fused, input = fuse(plain), torch.randn(2, 4, 8, 6)
    assert operators(fused, input) == ["conv3x3"]
    torch.testing.assert_close(fused(input), plain(input), equal_nan=True)


def test_a_dropout_that_drops_parts_a_group() -> None:
    fused = fuse(nn.Sequential(conv(), nn.Dropout(0.5), nn.ReLU()))
    input = torch.randn(1, 4, 6, 6)
    assert operators(fused.train(), input) == ["conv3x3"]
    assert operators(fused.eval(), input) == ["conv3x3_relu"]


def test_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    model = features()
    assert_as_accurate(fuse(model), model, torch.randn(2, 3, 16, 24))


PATTERNS = {
    "leaky": lambda: [conv(), nn.LeakyReLU(0.2)],
    "leaky, steep": lambda: [conv(), nn.LeakyReLU(1.5), nn.MaxPool2d(2)],
    "leaky, in place, pool": lambda: [conv(), nn.LeakyReLU(0.1, True), nn.MaxPool2d(2)],
    "pool, relu": lambda: [conv(), nn.MaxPool2d(2), nn.ReLU()],
    "pool, relu in place": lambda: [conv(padding=0), nn.MaxPool2d(2), nn.ReLU(True)],
    "ceil": lambda: [conv(), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)],
    "pool ceil, relu": lambda: [conv(), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()],
    "valid": lambda: [conv(padding=0), nn.ReLU(), conv(padding="valid"), nn.LeakyReLU()],
    "valid, pool": lambda: [conv(padding=0), nn.ReLU(), nn.MaxPool2d(2), conv()],
    "reflect": lambda: [conv(padding_mode="reflect"), nn.ReLU(), nn.MaxPool2d(2)],
    "replicate": lambda: [conv(padding_mode="replicate"), nn.LeakyReLU(), conv()],
    "circular": lambda: [conv(padding="same", padding_mode="circular"), nn.ReLU(), conv()],
}


@pytest.mark.parametrize("make", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("size", [(10, 8), (9, 7)], ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_every_pattern_without_and_with_gradients(make, size, format) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(*make())
    fused = fuse(plain)
    input = torch.randn(2, 4, *size).contiguous(memory_format=format)
    assert_same(fused, plain, input)
    assert_as_accurate(fused, plain, input)


# ------------------------------------------------------------ poolings that cut, or that come first


def test_a_window_that_is_cut_is_torchs() -> None:
    plain = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))
    first = nn.Sequential(conv(padding=0), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU())
    alone = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True))
    for size, whole in (((8, 6), True), ((7, 6), False), ((6, 7), False), ((3, 3), False)):
        input = torch.randn(2, 4, *size).contiguous(memory_format=torch.channels_last)
        for model, operator in ((plain, "conv3x3_relu"), (first, "conv3x3"), (alone, "")):
            pooled = "max_pool2x2" if model is alone else "conv3x3_relu_pool"
            expected = [pooled] if whole else [operator] * bool(operator)
            assert operators(fuse(model), input) == expected
            assert_same(fuse(model), model, input)


def test_a_pooling_before_the_relu_gives_torchs_very_gradient_for_ties_and_nan() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2), nn.ReLU())
    with torch.no_grad():  # the sums are small integers, with many ties and zeros among them
        plain[0].weight.copy_(torch.randint(-1, 2, (3, 2, 3, 3)))
        plain[0].bias.zero_()
    for model in (plain, nn.Sequential(plain[0], plain[2], plain[1])):
        input = torch.randint(-1, 2, (4, 2, 12, 12)).float()
        input[0, 0, 5, 5], input[1, 1, 0, 0], input[2, 0, 3, 4] = torch.nan, torch.inf, -torch.inf
        ours, torchs = input.clone().requires_grad_(), input.clone().requires_grad_()
        found, expected = fuse(model)(ours), model(torchs)
        assert operators(fuse(model), ours, grad=True) == ["conv3x3_relu_pool"]
        assert torch.equal(found.isnan(), expected.isnan()) and expected.isnan().any()
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
        weights = torch.randint(1, 9, found.shape)
        for output in (found, expected):
            (output * weights).sum().backward()
        assert torch.equal(ours.grad.isnan(), torchs.grad.isnan())
        assert torch.equal(ours.grad.nan_to_num(), torchs.grad.nan_to_num())


def test_a_leaky_relu_behind_the_pooling_gets_torchs_gradient() -> None:
    # Both are -1 behind the LeakyReLU; the larger one before it is the second.
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.LeakyReLU(1e-7))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        model[0].weight[0, 0, 1, 1] = 1
    input = torch.tensor([[-1.0000001, -1.0], [-2.0, -2.0]]).reshape(1, 1, 2, 2).requires_grad_()
    fuse(model)(input).sum().backward()
    assert input.grad.flatten().nonzero().flatten().tolist() == [1]


def test_torchs_layers_in_a_fused_sequential_run_fused_too() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model, input = FusedSequential(*layers), torch.randn(1, 3, 8, 8)
    assert operators(model, input) == ["conv3x3_relu_pool"]
    assert_same(model, nn.Sequential(*layers), input)


# ----------------------------------------------------------------------------------------- on a GPU


@pytest.mark.parametrize("stop", range(1, 18))
def test_every_prefix_gives_what_torchs_does(stop: int) -> None:
    torch.manual_seed(0)
    plain = features()
    fused = fuse(plain)
    input = torch.randn(2, 3, 32, 32)
    assert_same(fused[:stop], plain[:stop], input)
    assert type(fused[:stop]) is FusedSequential


def test_features_by_index_of_torchvisions_vgg16() -> None:
    import torchvision

    plain = torchvision.models.vgg16(weights=None).features.eval()
    fused = fuse(plain)
    input = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert fused[:4](input).shape == (2, 64, 32, 32)
        taps, output = {}, input
        for name, layer in fused._modules.items():
            output = layer(output)
            taps[name] = output.clone()
    assert taps["15"].shape == (2, 256, 8, 8)
    output = input
    with torch.no_grad():
        for name, layer in plain.named_children():
            output = layer(output)
            assert taps[name].stride() == output.stride()
            assert relative_error(taps[name], output) <= 5e-6


def test_layers_in_a_module_list_and_between_other_modules() -> None:
    torch.manual_seed(0)
    plain = features()
    taps = nn.ModuleList(fuse(plain))
    input = torch.randn(1, 3, 16, 16)

    def one_by_one(input: Tensor) -> Tensor:
        for layer in taps:
            input = layer(input)
        return input

    assert_same(one_by_one, plain, input)
    # As in the neural style transfer tutorial, with a loss between the layers.
    rebuilt = nn.Sequential()
    for name, layer in fuse(plain).named_children():
        rebuilt.add_module(name, layer)
        rebuilt.add_module(f"loss_{name}", nn.Identity())
    assert_same(rebuilt, plain, input)


# ----------------------------------------------------------------------------------------- on a GPU


def test_a_gpu_gets_what_its_kernels_know() -> None:
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        input = torch.empty(2, 4, 8, 6)
        for layers, expected in (
            ([conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)], ["conv3x3_relu_pool"]),
            ([conv(), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.MaxPool2d(2)], ["conv3x3_relu_pool"]),
            ([conv(padding=0), nn.ReLU(), conv(padding_mode="reflect"), nn.ReLU()], []),
        ):
            fused = fuse(nn.Sequential(*layers).eval())
            found = [name for name in operators(fused, input) if name.startswith("conv")]
            assert found == expected
        for dtype, images in (
            (torch.float32, input),
            (torch.float32, input[:1, :, :4, :4]),  # no weight is multiplied: they may be many
            (torch.float16, input.half()),
        ):
            layers = [conv(dtype=dtype), nn.BatchNorm2d(4), nn.ReLU()]
            assert operators(fuse(nn.Sequential(*layers).eval()), images) == ["conv3x3_relu"]
