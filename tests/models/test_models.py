"""The networks: printout, structure, initialisation, numbers, and what they refuse."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import vgg_fast
from tests.support.fused_operators import Operators
from tests.support.numerics import assert_as_accurate, in_float64, relative_error
from vgg_fast.layers import Conv3x3, FusedSequential, Linear, MaxPool2x2
from vgg_fast.models import CONV_ARCHS, SEED_ARCH, VGG, vgg_block
from vgg_fast.train.presets import PRESETS

# What print() shows of the seed network below its first line.
SEED_PRINTOUT = """\
  (0): Sequential(
    (0): Conv2d(1, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU()
    (2): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
  )
  (1): Sequential(
    (0): Conv2d(64, 128, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU()
    (2): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
  )
  (2): Sequential(
    (0): Conv2d(128, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU()
    (2): Conv2d(256, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (3): ReLU()
    (4): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
  )
  (3): Sequential(
    (0): Conv2d(256, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU()
    (2): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (3): ReLU()
    (4): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
  )
  (4): Sequential(
    (0): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (1): ReLU()
    (2): Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    (3): ReLU()
    (4): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
  )
  (5): Flatten()
  (6): Linear(in_features=25088, out_features=4096, bias=True)
  (7): ReLU()
  (8): Dropout(p=0.5, inplace=False)
  (9): Linear(in_features=4096, out_features=4096, bias=True)
  (10): ReLU()
  (11): Dropout(p=0.5, inplace=False)
  (12): Linear(in_features=4096, out_features=10, bias=True)
)
"""

TINY = {"conv_arch": ((1, 8), (2, 16)), "image_size": 16, "classifier_width": 32}


def pair(**options) -> tuple[VGG, VGG]:
    """A fused and an unfused network of the same parameters."""
    fused = VGG(**options)
    plain = VGG(**options, fused=False)
    plain.load_state_dict(fused.state_dict())
    return fused, plain


# --------------------------------------------------------------------------------------- structure


def test_the_seed_network_prints_as_the_seed() -> None:
    net = VGG(((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)), fused=False, device="meta")
    assert str(net).split("\n", 1)[1] == SEED_PRINTOUT.rstrip("\n")
    assert str(vgg_fast.seed_vgg(device="meta")) == str(net)


def test_a_fused_block_has_torchs_layers_stand_ins() -> None:
    block = vgg_fast.seed_vgg(device="meta")[2]
    assert [type(layer) for layer in block] == [Conv3x3, nn.ReLU, Conv3x3, nn.ReLU, MaxPool2x2]


def test_a_fused_network_runs_its_blocks_in_one_piece() -> None:
    net = VGG(**TINY).eval()
    images = torch.rand(2, 1, 16, 16)
    with torch.no_grad(), Operators() as ran:
        net(images)
    assert ran.names == ["conv3x3_relu_pool", "conv3x3_relu", "conv3x3_relu_pool"]
    assert ran.layouts == 1  # back, behind the last block; one channel needn't be turned round


# ------------------------------------------------------------------------------------ torchvision's


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg16", "vgg19_bn"])
def test_torchvisions_networks(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None, init_weights=False)
    ours = getattr(vgg_fast, name)(device="meta", init_weights=False)
    assert str(ours) == str(theirs)
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_torchvisions_initial_values_and_numbers() -> None:
    import torchvision

    nets = []
    for build in (vgg_fast.vgg11, torchvision.models.vgg11):
        torch.manual_seed(0)
        nets.append(build(weights=None, num_classes=10, dropout=0.3).eval())
    ours, theirs = (net.state_dict() for net in nets)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = in_float64(nets[1])(images.double())
        errors = [relative_error(net(images), exact) for net in nets]
    assert errors[0] <= max(2 * errors[1], 2e-6)


@pytest.mark.parametrize("name", [*CONV_ARCHS, "seed_vgg", "vgg16_bn"])
def test_fused_and_unfused_have_the_same_keys_and_shapes(name: str) -> None:
    build = getattr(vgg_fast, name)
    fused, plain = build(device="meta"), build(device="meta", fused=False)
    assert {key: value.shape for key, value in fused.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }


# Table 2 of the paper, in millions, for 3 channels and 1000 classes.
@pytest.mark.parametrize(
    ("name", "millions"), [("vgg11", 133), ("vgg13", 133), ("vgg16", 138), ("vgg19", 144)]
)
def test_the_papers_number_of_parameters(name: str, millions: int) -> None:
    net = getattr(vgg_fast, name)(device="meta")
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("name", "channels", "features", "hidden"),
    [("seed", 64, 25088, 4096), ("small", 16, 6272, 4096), ("fast", 16, 128, 512)],
)
def test_presets(name: str, channels: int, features: int, hidden: int) -> None:
    net = VGG(**PRESETS[name], device="meta")
    assert net[0][0].weight.shape == (channels, 1, 3, 3)
    assert net[6].weight.shape == (hidden, features)


def test_options_reach_the_layers() -> None:
    net = VGG(
        ((1, 8), (1, 10)),
        3,
        (21, 9),
        7,
        width=0.5,
        classifier_width=11,
        dropout=0.25,
        dtype=torch.float64,
    )
    assert net[0][0].weight.shape == (4, 3, 3, 3)
    assert net[3].weight.shape == (11, 5 * 5 * 2)  # 21x9 is halved to 10x4 and 5x2
    assert net[5].p == 0.25
    assert net(torch.rand(2, 3, 21, 9, dtype=torch.float64)).shape == (2, 7)


def test_a_slice_is_a_sequential_that_shares_the_layers() -> None:
    net = VGG(**TINY)
    features = net[:2]
    assert type(features) is FusedSequential and features[1] is net[1]
    assert type(VGG(**TINY, fused=False)[:2]) is nn.Sequential
    assert features(torch.rand(1, 1, 16, 16)).shape == (1, 16, 4, 4)


@pytest.mark.parametrize("fused", [True, False])
def test_a_lazy_block_takes_its_channels_from_the_first_input(fused: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, that lazy modules may change
        lazy = vgg_block(2, 8, fused=fused)
    output = lazy(torch.rand(2, 3, 10, 7))
    assert output.shape == (2, 8, 5, 3)
    assert str(lazy) == str(vgg_block(2, 8, 3, fused=fused))


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("name", ["vgg11", "vgg19"])
def test_the_signal_keeps_its_size_through_a_deep_network(name: str) -> None:
    torch.manual_seed(0)
    net = VGG(CONV_ARCHS[name], image_size=32, width=0.25, classifier_width=512).eval()
    images = torch.rand(64, 1, 32, 32)
    logits = net(images)
    assert 0.05 < float(logits.detach().square().mean().sqrt()) < 10
    F.cross_entropy(logits, torch.arange(64) % 10).backward()
    for key, parameter in net.named_parameters():
        if key.endswith("weight"):
            share = float(parameter.grad.norm() / parameter.detach().norm())
            assert 1e-3 < share < 10, f"{key}: gradient / weight is {share:.1e}"


def test_initialisation_is_that_of_the_paper_it_names() -> None:
    torch.manual_seed(0)
    net = VGG(((1, 256), (1, 256)), image_size=8, classifier_width=512)
    for layer, gain in ((net[1][0], 2), (net[3], 2), (net[9], 1)):
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().var()) == pytest.approx(gain / fan_in, rel=0.1)
        assert not layer.bias.any()


def test_the_same_seed_gives_the_same_network_fused_or_not() -> None:
    torch.manual_seed(3)
    fused = VGG(**TINY).state_dict()
    torch.manual_seed(3)
    plain = VGG(**TINY, fused=False).state_dict()
    assert all(torch.equal(fused[key], plain[key]) for key in plain)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_is_as_accurate_as_unfused(batch: int, layout: torch.memory_format) -> None:
    torch.manual_seed(batch)
    fused, plain = pair(
        conv_arch=SEED_ARCH, image_size=32, in_channels=3, width=0.25, classifier_width=64
    )
    fused, plain = fused.eval().to(memory_format=layout), plain.eval()
    images = torch.randn(batch, 3, 32, 32)
    assert_as_accurate(fused, plain, images.to(memory_format=layout))


def test_the_whole_seed_network_is_as_accurate_as_unfused() -> None:
    torch.manual_seed(0)
    fused, plain = pair(conv_arch=SEED_ARCH, image_size=64, classifier_width=256)
    assert_as_accurate(fused.eval(), plain.eval(), torch.randn(1, 1, 64, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(9, 7), (2, 7), (1, 7), (0, 7), (2, 3, 7), (7,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_computes_what_torchs_does(shape, bias, dtype) -> None:
    ours = Linear(7, 5, bias, dtype=dtype)
    theirs = nn.Linear(7, 5, bias, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [layer(x) for layer, x in zip((ours, theirs), inputs, strict=True)]
    gradient = torch.randn_like(outputs[1])
    for output in outputs:
        output.backward(gradient)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


class Products(TorchDispatchMode):
    """Notes the left operand's shape and dtype of each matrix product, and the casts of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[tuple[tuple[int, ...], torch.dtype]] = []
        self.casts = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        # TorchScript adds the bias separately where the output's columns lie one behind the other.
        if op in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            left = args[op is torch.ops.aten.addmm.default]
            self.left.append((tuple(left.shape), left.dtype))
        if op is torch.ops.aten._to_copy.default:
            self.casts += args[0].shape == (5, 7)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "dtype, rows, from_left",
    [
        (torch.float32, 7, False),
        (torch.float32, 8, True),
        (torch.bfloat16, 1, True),
        (torch.float16, 9, False),
    ],
)
def test_the_weight_stands_left_where_that_is_faster(dtype, rows, from_left) -> None:
    layer, input = Linear(7, 5, dtype=dtype), torch.randn(rows, 7, dtype=dtype)
    with Products() as products:
        output = layer(input)
    assert products.left == [((5, 7) if from_left else (rows, 7), dtype)]
    assert output.is_contiguous()
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        layer(input)
    assert products.left[0][0] == ((5, 7) if dtype != torch.float32 or rows > 7 else (rows, 7))


def traced(layer: nn.Module) -> nn.Module:
    return torch.jit.trace(layer, torch.ones(3, 7))


def exported(layer: nn.Module, rows: object = None) -> nn.Module:
    return torch.export.export(layer, (torch.ones(3, 7),), dynamic_shapes=({0: rows},)).module()


@pytest.mark.parametrize("program", [torch.jit.script, traced])
def test_scripted_and_traced_the_rows_at_hand_decide(program) -> None:
    made = program(Linear(7, 5))
    for rows, left in ((1, (1, 7)), (7, (7, 7)), (8, (5, 7)), (3, (3, 7))):
        with torch.no_grad(), Products() as products:
            made(torch.ones(rows, 7))
        assert products.left == [(left, torch.float32)]


def test_exported_the_rows_decide_where_they_are_known() -> None:
    layer = Linear(7, 5)
    few, many = torch.export.Dim("few", max=7), torch.export.Dim("many", max=64)
    for program, left in (
        (exported(layer), (3, 7)),
        (exported(layer, few), (3, 7)),
        (exported(layer, many), (5, 7)),
    ):
        with torch.no_grad(), Products() as products:
            program(torch.ones(3, 7))
        assert products.left == [(left, torch.float32)]


def test_under_autocast_a_weight_is_cast_only_where_that_pays() -> None:
    layer, input = Linear(7, 5), torch.randn(9, 7)
    with torch.autocast("cpu", torch.bfloat16), Products() as products:
        for _ in range(3):
            layer(input)  # a training step's
    assert products.left == [((5, 7), torch.float32)] * 3 and products.casts == 0
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), Products() as products:
        for _ in range(3):
            layer(input)  # autocast keeps its copy
    assert products.left == [((5, 7), torch.bfloat16)] * 3 and products.casts == 1
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), Products() as products:
        layer(input)  # it wouldn't
    assert products.left == [((5, 7), torch.float32)] and products.casts == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_under_autocast_other_dtypes_are_refused_as_by_torch(dtype) -> None:
    for layer in (Linear(7, 5), nn.Linear(7, 5)):
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(RuntimeError, match=r"same dtype|expected"),
        ):
            layer(torch.ones(3, 7, dtype=dtype))


def test_sparse_rows_are_multiplied_too() -> None:
    layer, input = Linear(7, 5), torch.eye(9, 7)
    torch.testing.assert_close(layer(input.to_sparse()), layer(input))


@pytest.mark.parametrize("rows", [3, 16, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_a_linear_layer_has_its_dtype_and_no_more_error(rows, dtype) -> None:
    ours, theirs = Linear(300, 50), nn.Linear(300, 50)
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(rows, 300)
    gradient = torch.randn(rows, 50).to(dtype)
    errors = []
    for layer in (ours, theirs):
        with torch.autocast("cpu", dtype):
            output = layer(image)
        assert output.dtype == dtype
        output.backward(gradient)
        assert layer.weight.grad.dtype == torch.float32
        exact = F.linear(image.double(), layer.weight.double(), layer.bias.double())
        errors.append(relative_error(output, exact))
        errors.append(relative_error(layer.weight.grad, gradient.double().t() @ image.double()))
    assert errors[0] <= 1.1 * errors[2]
    assert errors[1] <= 1.1 * errors[3]


def test_state_dicts_move_both_ways() -> None:
    images = torch.randn(2, 1, 16, 16)
    fused, plain = VGG(**TINY).eval(), VGG(**TINY, fused=False).eval()
    plain.load_state_dict(fused.state_dict())
    assert relative_error(fused(images), plain(images)) < 4e-6
    other = VGG(**TINY, fused=False).eval()
    fused.load_state_dict(other.state_dict())
    assert relative_error(fused(images), other(images)) < 4e-6


def test_a_network_learns() -> None:
    torch.manual_seed(0)
    net = VGG(**TINY, dropout=0.0)
    images, labels = torch.randn(32, 1, 16, 16), torch.arange(32) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05  # it started from ln 10 = 2.3


# ----------------------------------------------------------------------------------------- copying


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["deepcopy", "pickle"],
)
def test_a_network_can_be_copied(again) -> None:
    net = VGG(**TINY).eval()
    images = torch.randn(2, 1, 16, 16)
    copied = again(net)
    assert str(copied) == str(net)
    assert torch.equal(copied(images), net(images))
    assert copied[0][0].weight is not net[0][0].weight


def test_weights_are_saved_and_loaded_without_code(tmp_path) -> None:
    net = VGG(**TINY).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    other = VGG(**TINY).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(other(images), net(images))


# ----------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 16}, "16x16 are too small for 5 blocks.*at least 32x32"),
        ({"image_size": (64, 31)}, "64x31 are too small"),
        ({"image_size": (32, 32, 3)}, r"image_size must be an int or \(height, width\)"),
        ({"image_size": 0}, "image_size must be a whole number of at least 1"),
        ({"image_size": 32.5}, "image_size must be"),
        ({"width": 0.001}, "width 0.001 leaves 0 of a block's 64 channels"),
        ({"width": float("nan")}, "width must be"),
        ({"conv_arch": ()}, "conv_arch must be one or more pairs"),
        ({"conv_arch": 11}, "conv_arch must be one or more pairs"),
        ({"conv_arch": ((1,),)}, "conv_arch must be one or more pairs"),
        ({"conv_arch": ((0, 64),)}, "number of convolutions of a block .* at least 1, but it is 0"),
        ({"conv_arch": ((1, 6.5),)}, "number of channels of a block .* but it is 6.5"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, but it is 0"),
        ({"num_classes": -1}, "num_classes must be"),
        ({"classifier_width": 0}, "classifier_width must be"),
        ({"dropout": 1.5}, "dropout must be between 0 and 1, but it is 1.5"),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_network_that_cannot_be_is_refused_in_one_sentence(options, message, fused) -> None:
    with pytest.raises(ValueError, match=message) as error:
        VGG(**{"conv_arch": SEED_ARCH, **options}, fused=fused, device="meta")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arguments", [(0, 8), (1, 0), (1, 8, 0)])
def test_a_block_that_cannot_be_is_refused(arguments) -> None:
    with pytest.raises(ValueError, match="at least 1, but it is 0"):
        vgg_block(*arguments)
