"""fuse() and unfuse(): what is replaced, what is shared, what stays; numbers, keys and printout."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import vgg_fast
from tests.support.numerics import assert_as_accurate, in_float64, relative_error
from vgg_fast import FusionReport, fuse, unfuse
from vgg_fast.layers import Conv3x3, Conv3x3ReLU, FusedSequential, Linear, MaxPool2x2


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1, **options})


def small_vgg() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding="same"), nn.ReLU(inplace=True)),
        nn.Sequential(
            nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d((2, 2), 2)
        ),
        nn.Flatten(),
        nn.Linear(5 * 4 * 4, 7),
    )


# -------------------------------------------------------------------------------------- torchvision


@pytest.fixture
def torchvision_models() -> ModuleType:
    """Imported when a test asks for it: that takes seconds."""
    import torchvision

    return torchvision.models


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["vgg11", "vgg16"])
def test_torchvisions_vgg_computes_the_same(torchvision_models, name: str, training: bool) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision_models, name)(weights=None, num_classes=10)
    # The classifier of 120 million weights isn't what is tested; so that it takes no minutes:
    model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 10), nn.Dropout(0.5))
    fused = fuse(model.train(training))
    images = torch.randn(2, 3, 64, 64)
    outputs = []
    for net, input in ((in_float64(model), images.double()), (model, images), (fused, images)):
        torch.manual_seed(1)
        outputs.append(net(input))
    exact, plain, ours = outputs
    # The dropout's mask is drawn from the same seed, but not the same way in fp64.
    if training:
        kept = (plain != 0) & (exact != 0)
        exact, plain, ours = exact * kept, plain * kept, ours * kept
    else:
        assert torch.equal(unfuse(fused)(images), plain)
    assert relative_error(ours, exact) <= max(2 * relative_error(plain, exact), 2e-6)


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg11_bn"])
def test_torchvisions_vgg_keeps_its_keys_and_comes_back(torchvision_models, name: str) -> None:
    with torch.device("meta"):
        model = getattr(torchvision_models, name)(weights=None, init_weights=False)
    printout = str(model)
    fused = fuse(model)
    assert str(model) == printout == str(fused)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert str(unfuse(fused)) == printout


def test_every_layer_of_torchvisions_vgg16_is_replaced(torchvision_models) -> None:
    with torch.device("meta"):
        model = torchvision_models.vgg16(weights=None, init_weights=False)
    fused, report = fuse(model, return_report=True)
    assert type(fused.features) is type(fused.classifier) is FusedSequential
    kinds = {type(layer) for layer in fused.modules()}
    assert not kinds & {nn.Conv2d, nn.MaxPool2d, nn.Linear, nn.Sequential}
    assert len(report.changed) == 13 + 5 + 3 and not report.left
    assert report.changed[0] == ("features.0", "nn.Conv2d is now vgg_fast.layers.Conv3x3")
    assert report.changed[-1] == ("classifier.6", "nn.Linear is now vgg_fast.layers.Linear")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_batch_normalisation_between(torchvision_models, training: bool) -> None:
    torch.manual_seed(0)
    model = torchvision_models.vgg11_bn(weights=None).features
    fused, report = fuse(model, return_report=True)
    assert len(report.changed) == 8 + 5 and not report.left
    images = torch.randn(2, 3, 32, 32)
    exact = in_float64(model).train(training)(images.double())
    buffers = copy.deepcopy(dict(model.named_buffers()))
    plain = model.train(training)(images)
    statistics = copy.deepcopy(dict(model.named_buffers()))
    model.load_state_dict(buffers, strict=False)
    ours = fused.train(training)(images)
    assert relative_error(ours, exact) <= max(2 * relative_error(plain, exact), 2e-6)
    for name, buffer in fused.named_buffers():
        assert relative_error(buffer, statistics[name]) <= 1e-5


# ------------------------------------------------------------------------------------------ sharing


def test_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    model = small_vgg()
    assert_as_accurate(fuse(model), model, torch.randn(2, 3, 8, 8))


def test_the_copy_has_the_very_parameters_and_buffers() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4))
    fused = fuse(model)
    for tensors in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(fused, tensors)()), dict(getattr(model, tensors)())
        assert list(ours) == list(theirs)
        assert all(ours[key] is theirs[key] for key in theirs)
    assert fused[2] is not model[2]
    fused.eval()
    assert model[2].training and not fused[2].training


def test_an_optimizer_of_the_model_trains_the_fused_one() -> None:
    model = small_vgg()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fused = fuse(model)
    before = fused[0][0].weight.detach().clone()
    fused(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(fused[0][0].weight, before)
    assert fused[0][0].weight is model[0][0].weight


def test_inplace_changes_the_model_itself() -> None:
    model = small_vgg()
    printout = str(model)
    assert fuse(model, inplace=True) is model
    assert type(model[1][0]) is Conv3x3
    assert unfuse(model, inplace=True) is model
    assert str(model) == printout


def test_training_mode_and_frozen_weights_stay() -> None:
    model = small_vgg()
    model[0].eval()
    model[0][0].weight.requires_grad_(False)
    fused = fuse(model)
    assert not fused[0][0].training and fused[1][0].training
    assert not fused[0][0].weight.requires_grad
    back = unfuse(fused.eval())
    assert not any(module.training for module in back.modules())


# ------------------------------------------------------------------------------------ linear layers


def test_large_linear_layers_compute_the_same_and_come_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    fused, report = fuse(model, return_report=True)
    assert [type(layer) for layer in fused] == [Linear, nn.ReLU, nn.Linear]
    assert report.changed == [("0", "nn.Linear is now vgg_fast.layers.Linear")] and not report.left
    assert fused[0].weight is model[0].weight and fused[0].bias is model[0].bias
    input = torch.randn(3, 1024)
    assert_as_accurate(fused, model, input)
    back, report = unfuse(fused, return_report=True)
    assert report.changed == [("0", "vgg_fast.layers.Linear is now nn.Linear")]
    assert type(back[0]) is nn.Linear and back[0].weight is model[0].weight
    assert torch.equal(back(input), model(input))


def test_linear_layers_with_nothing_to_gain_are_left() -> None:
    layers = [nn.Linear(1024, 1024, bias=False), nn.LazyLinear(1024), nn.Linear(100, 100)]
    fused, report = fuse(nn.Sequential(*layers), return_report=True)
    assert [type(layer) for layer in fused] == [nn.Linear, nn.LazyLinear, nn.Linear]
    assert not report.changed and not report.left


# ----------------------------------------------------------------------------------------- unfusing


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_unfuse_gives_the_original_back_also_from_a_copy(again: Callable) -> None:
    model = small_vgg()
    back = unfuse(again(fuse(model)))
    assert str(back) == str(model)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert list(back.state_dict()) == list(model.state_dict())
    input = torch.randn(2, 3, 8, 8)
    assert torch.equal(back(input), model(input))


def test_unfuse_follows_weights_that_were_replaced() -> None:
    model = small_vgg()
    fused = fuse(model)
    other = small_vgg().state_dict()
    fused.load_state_dict(other, assign=True)
    assert torch.equal(unfuse(fused).state_dict()["0.0.weight"], other["0.0.weight"])


def test_unfuse_takes_a_network_that_was_built_fused() -> None:
    options = {"conv_arch": ((1, 4), (2, 6)), "image_size": 8, "classifier_width": 16}
    fused = vgg_fast.VGG(**options).eval()
    plain, report = unfuse(fused, return_report=True)
    assert str(plain) == str(vgg_fast.VGG(**options, fused=False))
    assert list(plain.state_dict()) == list(fused.state_dict())
    assert len(report.changed) == 3 + 2 + 2 and not report.left
    assert not any(isinstance(layer, Linear) for layer in plain)
    assert_as_accurate(fused, plain, torch.randn(2, 1, 8, 8))
    assert str(fuse(plain)) == str(fused)


def test_unfuse_leaves_what_a_network_was_written_with() -> None:
    model = nn.Sequential(Conv3x3(4, 4), Conv3x3ReLU(4, 4), MaxPool2x2())
    plain, report = unfuse(model, return_report=True)
    assert [type(layer) for layer in plain] == [nn.Conv2d, Conv3x3ReLU, nn.MaxPool2d]
    assert report.left == [("1", "is a Conv3x3ReLU, not a Conv3x3 itself")]


def test_unfuse_keeps_hooks_and_attributes_that_came_later() -> None:
    fused, seen = fuse(small_vgg()), []
    fused[0][0].register_forward_hook(lambda *given: seen.append(given))
    fused[0][0].remark = "mine"
    back = unfuse(fused)
    back(torch.randn(1, 3, 8, 8))
    assert len(seen) == 1 and back[0][0].remark == "mine"


# --------------------------------------------------------------------------------------- left alone


class OwnForward(nn.Sequential):
    def forward(self, input):
        return super().forward(input) + 1


class OwnConv(nn.Conv2d):
    pass


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, that lazy modules may change
        return nn.LazyConv2d(4, 3, padding=1)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: conv(kernel_size=5, padding=2), "has a 5x5 kernel, not 3x3"),
        (lambda: conv(stride=2), "has stride (2, 2), not (1, 1)"),
        (lambda: conv(padding=(1, 0)), "has padding (1, 0), not (1, 1) or (0, 0)"),
        (lambda: conv(dilation=2, padding=2), "has dilation (2, 2), not (1, 1)"),
        (lambda: conv(groups=4), "has groups 4, not 1"),
        (
            lambda: conv(padding=2, padding_mode="circular"),
            "has padding (2, 2) in mode circular, not (1, 1)",
        ),
        (lambda: OwnConv(4, 4, 3, padding=1), "is a OwnConv, not a Conv2d itself"),
        (
            lambda: parametrizations.weight_norm(conv()),
            "has a parametrization, such as weight_norm",
        ),
        (lazy, "is lazy and not initialised yet; run one batch through the model first"),
        (lambda: nn.MaxPool2d(3, 2), "has kernel_size=3, not 2"),
        (lambda: nn.MaxPool2d(2, 1), "has stride=1, not 2"),
        (lambda: nn.MaxPool2d(2, padding=1), "has padding=1, not 0"),
        (lambda: nn.MaxPool2d(2, dilation=2), "has dilation=2, not 1"),
        (lambda: nn.MaxPool2d(2, return_indices=True), "has return_indices=True, not False"),
    ],
)
def test_a_layer_that_does_something_else_is_left(make: Callable, why: str) -> None:
    model = nn.Sequential(make(), nn.ReLU())
    fused, report = fuse(model, return_report=True)
    assert type(fused[0]) is type(model[0])
    assert report.left == [("0", why)] and not report.changed
    assert fuse(make(), return_report=True)[1].left == [("(the model)", why)]


def test_a_layer_that_is_to_be_quantised_is_left() -> None:
    model = nn.Sequential(conv(), nn.ReLU())
    model[0].qconfig = None
    _, report = fuse(model, return_report=True)
    assert report.left == [("0", "has a qconfig: quantise the model before it is fused")]


def test_layers_outside_a_sequential_are_replaced(torchvision_models) -> None:
    torch.manual_seed(0)
    block = torchvision_models.resnet.BasicBlock(4, 4)
    model = nn.Sequential(block, OwnForward(conv(), nn.ReLU())).eval()
    fused = fuse(model)
    assert sum(type(layer) is Conv3x3 for layer in fused.modules()) == 3
    assert type(fused[1]) is OwnForward
    assert_as_accurate(fused, model, torch.randn(2, 4, 8, 8))
    assert type(fuse(conv())) is Conv3x3


def test_a_layer_at_two_places_stays_one() -> None:
    torch.manual_seed(0)
    shared, relu = conv(), nn.ReLU()
    model = nn.Sequential(shared, relu, shared, relu, conv(), relu)
    fused = fuse(model)
    assert fused[0] is fused[2] and fused[1] is fused[3]
    assert_as_accurate(fused, model, torch.randn(1, 4, 6, 6))
    assert str(unfuse(fused)) == str(model)


def test_a_lazy_convolution_is_replaced_after_its_first_batch() -> None:
    model = nn.Sequential(lazy(), nn.ReLU())
    model(torch.randn(1, 3, 4, 4))
    assert type(fuse(model)[0]) is Conv3x3


# ------------------------------------------------------------------------------------------- report


def test_the_report_prints_one_line_for_each_finding() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), conv(stride=2), nn.MaxPool2d(2))
    _, report = fuse(model, return_report=True)
    assert isinstance(report, FusionReport)
    assert str(report).splitlines() == [
        "2 replaced, 1 left as they were",
        "  0: nn.Conv2d is now vgg_fast.layers.Conv3x3",
        "  3: nn.MaxPool2d is now vgg_fast.layers.MaxPool2x2",
        "  2 left: it has stride (2, 2), not (1, 1)",
    ]


@pytest.mark.parametrize("function", [fuse, unfuse])
def test_what_is_no_model_is_refused(function: Callable) -> None:
    with pytest.raises(TypeError, match=r"must be an nn\.Module, but it is a <class 'list'>"):
        function([conv(), nn.ReLU()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated
        scripted = torch.jit.script(nn.Sequential(conv(), nn.ReLU()))
    with pytest.raises(TypeError, match="the model is TorchScript already"):
        function(scripted)
