"""FusedSequential: what runs as one operator, and that nobody can tell but by the clock."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.support.fused_operators import Operators
from tests.support.numerics import assert_as_accurate, relative_error
from vgg_fast import fuse, unfuse
from vgg_fast.layers import Conv3x3, FusedSequential, MaxPool2x2


def operators(model: Callable, *inputs: Tensor) -> list[str]:
    with torch.no_grad(), Operators() as ran:
        model(*inputs)
    return ran.names


def features() -> nn.Sequential:
    """The first blocks of VGG-16, narrow."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (8, 8, None, 16, 16, None, 24, 24, 24, None):
        if width is None:
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers).eval()


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1, **options})


def assert_same(fused: Callable, plain: Callable, input: Tensor, tolerance: float = 2e-6) -> None:
    """Both give the same numbers, shapes and strides, and neither changes its input."""
    with torch.no_grad():
        expected, before = plain(input), input.clone()
        found = fused(input)
    assert found.shape == expected.shape and found.stride() == expected.stride()
    assert relative_error(found, expected) <= tolerance
    assert torch.equal(input, before)


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
        ([conv(), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)], ["conv3x3_relu"]),
        ([conv(), nn.ReLU(), nn.MaxPool2d(3, 2)], ["conv3x3_relu"]),
        ([conv(), nn.LeakyReLU()], ["conv3x3"]),
        ([conv(), nn.BatchNorm2d(4), nn.ReLU()], ["conv3x3"]),
        ([conv(stride=2), nn.ReLU()], []),
        ([conv(padding=0), nn.ReLU(), conv(groups=2), nn.ReLU()], []),
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


def test_a_dropout_that_drops_parts_a_group() -> None:
    fused = fuse(nn.Sequential(conv(), nn.Dropout(0.5), nn.ReLU()))
    input = torch.randn(1, 4, 6, 6)
    assert operators(fused.train(), input) == ["conv3x3"]
    assert operators(fused.eval(), input) == ["conv3x3_relu"]


def test_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    model = features()
    assert_as_accurate(fuse(model), model, torch.randn(2, 3, 16, 24))


def test_torchs_layers_in_a_fused_sequential_run_fused_too() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model, input = FusedSequential(*layers), torch.randn(1, 3, 8, 8)
    assert operators(model, input) == ["conv3x3_relu_pool"]
    assert_same(model, nn.Sequential(*layers), input)


# ------------------------------------------------------------------------ what is taken from inside


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


# ------------------------------------------------------------------------- what is changed later on


def test_a_replaced_convolution_keeps_its_relu_and_its_pooling() -> None:
    torch.manual_seed(0)
    fused = fuse(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    fused[0] = nn.Conv2d(1, 4, 3, padding=1)
    input = torch.randn(1, 1, 8, 8)
    assert_same(fused, nn.Sequential(fused[0], nn.ReLU(), nn.MaxPool2d(2)), input)
    fused[0] = nn.Conv2d(1, 4, 5, padding=2)
    assert_same(fused, nn.Sequential(fused[0], nn.ReLU(), nn.MaxPool2d(2)), input)


def test_layers_are_found_by_their_type_and_swapped() -> None:
    torch.manual_seed(0)
    plain = features()
    fused = fuse(plain)
    for kind in (nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.Sequential):
        found = [sum(isinstance(m, kind) for m in model.modules()) for model in (fused, plain)]
        assert found[0] == found[1] > 0
    for model in (fused, plain):
        for name, layer in model.named_children():
            if isinstance(layer, nn.MaxPool2d):
                setattr(model, name, nn.AvgPool2d(2))
    assert_same(fused, plain, torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("before", [True, False], ids=["before fuse()", "after fuse()"])
def test_a_hook_sees_what_it_sees_in_torchs_model(index: int, before: bool) -> None:
    torch.manual_seed(0)
    plain = features()
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        seen.append(output.clone())
        return output * 2

    input = torch.randn(1, 3, 16, 16)
    if before:
        plain[index].register_forward_hook(hook)
        fused = fuse(plain)
    else:
        fused = fuse(plain)
        fused[index].register_forward_hook(hook)
        plain[index].register_forward_hook(hook)
    assert_same(fused, plain, input)
    assert len(seen) == 2 and seen[0].stride() == seen[1].stride()
    assert relative_error(seen[1], seen[0]) <= 2e-6


@pytest.mark.parametrize("kind", ["pre", "full_backward", "full_backward_pre"])
def test_hooks_of_other_kinds_run(kind: str) -> None:
    fused = fuse(features())
    seen = []
    register = {
        "pre": fused[1].register_forward_pre_hook,
        "full_backward": fused[1].register_full_backward_hook,
        "full_backward_pre": fused[1].register_full_backward_pre_hook,
    }[kind]
    fused[1].inplace = False  # backward hooks refuse layers that work in place
    register(lambda *given: seen.append(given) and None)
    fused(torch.randn(1, 3, 8, 8, requires_grad=True)).sum().backward()
    assert len(seen) == 1


def test_a_hook_of_all_modules_sees_every_layer() -> None:
    fused, seen = fuse(features()), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m)))
    try:
        fused(torch.randn(1, 3, 8, 8))
    finally:
        handle.remove()
    assert len(seen) == len(fused) + 1


def test_another_forward_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fused = fuse(nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)))
    input = torch.randn(1, 4, 6, 6)
    fused[1].forward = torch.tanh
    assert_same(fused, nn.Sequential(fused[0], nn.Tanh(), nn.MaxPool2d(2)), input)
    del fused[1].forward
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, input: input.sigmoid())
    assert_same(fused, nn.Sequential(fused[0], nn.Sigmoid(), nn.MaxPool2d(2)), input)


@pytest.mark.parametrize(
    ("index", "name", "value"),
    [
        (0, "stride", (2, 2)),
        (0, "padding", (0, 0)),
        (0, "padding", "valid"),
        (0, "dilation", (2, 2)),
        (2, "ceil_mode", True),
        (2, "stride", 1),
        (2, "kernel_size", 3),
        (2, "padding", 1),
    ],
)
def test_a_setting_that_is_changed_counts(index: int, name: str, value) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2))
    fused = fuse(plain)
    for model in (plain, fused):
        setattr(model[index], name, value)
    input = torch.randn(1, 4, 9, 11)
    assert_same(fused, plain, input)
    assert_same(fused[index], plain[index], input)


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, that it is deprecated
        return nn.utils.weight_norm(module)


@pytest.mark.parametrize("later", [True, False], ids=["after fuse()", "before fuse()"])
@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        old_weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "old_weight_norm", "old_spectral_norm", "prune"],
)
def test_a_weight_that_is_computed(change: Callable, later: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)).eval()
    if not later:
        torch.manual_seed(1)
        change(plain[0])
    fused = fuse(plain)
    if later:
        plain = copy.deepcopy(plain)
        for model in (plain, fused):
            torch.manual_seed(1)
            change(model[0])
    input = torch.randn(1, 4, 8, 8)
    assert_same(fused, plain, input)
    assert_same(unfuse(fused), plain, input)


# ------------------------------------------------------------------------------ formats, odd inputs


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every second column": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("weight", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "outputs", "size"),
    [
        (3, 4, (8, 6)),
        (1, 4, (8, 6)),
        (3, 1, (8, 6)),
        (4, 4, (1, 1)),
        (1, 1, (3, 5)),
        (5, 3, (2, 2)),
    ],
    ids=str,
)
def test_the_memory_format_is_the_one_that_torch_gives(
    channels: int, outputs: int, size: tuple[int, int], layout: str, weight: str, dtype
) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(channels, outputs, 3, padding=1), nn.Conv2d(outputs, 2, 3, padding=1)
    layers = [first, nn.ReLU(), second]
    if min(size) > 1:
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    plain = nn.Sequential(*layers).to(dtype)
    second.weight.data = LAYOUTS[weight](second.weight.data)
    fused = fuse(plain)
    input = LAYOUTS[layout](torch.randn(2, channels, *size, dtype=dtype))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-6
    assert_same(fused, plain, input, tolerance)
    for ours, torchs in zip(fused, plain, strict=True):
        with torch.no_grad():
            if isinstance(ours, (Conv3x3, MaxPool2x2)):
                assert_same(ours, torchs, input, tolerance)
            input = torchs(input)


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8), (2, 3, 1, 9), (1, 3, 1, 1)], ids=str)
def test_inputs_of_other_shapes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    assert_same(fuse(plain), plain, torch.randn(shape))
    assert_same(fuse(plain)[0], plain[0], torch.randn(shape))


@pytest.mark.parametrize(
    "input",
    [
        torch.randn(1, 5, 8, 8),
        torch.randn(8, 8),
        torch.randn(1, 3, 8, 8).double(),
        torch.rand(1, 3),
        torch.rand(1, 3, 0, 4),
        torch.rand(1, 3, 4, 0),
    ],
    ids=lambda t: f"{tuple(t.shape)} {t.dtype}",
)
def test_an_input_that_torch_refuses_is_refused(input: Tensor) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    for model in (plain, fuse(plain), plain[0], fuse(plain)[0]):
        with pytest.raises(RuntimeError):
            model(input)


def test_children_that_take_no_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, input):
            return input[0] + input[1]

    class Split(nn.Module):
        def forward(self, input):
            return (input, input)

    torch.manual_seed(0)
    plain = nn.Sequential(Pair(), conv(), nn.ReLU(), Split(), Pair(), conv(), Split())
    a, b = torch.randn(2, 1, 4, 6, 6)
    found, expected = fuse(plain)((a, b)), plain((a, b))
    assert isinstance(found, tuple) and relative_error(found[0], expected[0]) <= 2e-6


# ----------------------------------------------------------------------------------- other people's


class ConvBlock(nn.Sequential):
    """A container as packages write it, with a constructor of its own."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(width, width, 3, stride, 1), nn.ReLU(inplace=True))
        self.width = width


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_subclass_of_sequential(again: Callable) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(ConvBlock(4), ConvBlock(4, 2))
    fused = again(fuse(plain))
    input = torch.randn(1, 4, 8, 8)
    assert operators(fused, input) == ["conv3x3_relu"]
    assert_same(fused, plain, input)
    assert str(fused) == str(plain)
    assert isinstance(fused[0], ConvBlock) and fused[0].width == 4
    assert type(unfuse(fused)[0]) is ConvBlock


@pytest.fixture
def pair() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    plain = nn.Sequential(*features(), nn.Flatten(), nn.Linear(24 * 2 * 2, 3)).eval()
    return fuse(plain), plain


INPUT = torch.randn(2, 3, 16, 16)


def test_copies_compute_the_same(pair) -> None:
    fused, plain = pair
    for again in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        assert torch.equal(again(fused)(INPUT), fused(INPUT))
        assert str(again(fused)) == str(plain)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_torchscript(pair, way: str, tmp_path) -> None:
    fused, plain = pair
    compiled = torch.jit.script(fused) if way == "script" else torch.jit.trace(fused, INPUT)
    torch.jit.save(compiled, tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    for input in (INPUT, INPUT.contiguous(memory_format=torch.channels_last), INPUT[:1]):
        assert_same(loaded, plain, input)
        assert_same(compiled, plain, input)
    assert len([n for n in operators(loaded, INPUT) if n.startswith("conv")]) == 7


def test_torch_fx(pair) -> None:
    fused, plain = pair
    traced = torch.fx.symbolic_trace(fused)
    assert_same(traced, plain, INPUT)
    assert_same(traced, plain, INPUT.contiguous(memory_format=torch.channels_last))
    assert len([n for n in operators(traced, INPUT) if n.startswith("conv")]) == 7


def test_torchvisions_feature_extractor(pair) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    nodes = {"0": "convolution", "3": "relu", "4": "pool", "9": "pool2"}
    ours, torchs = (create_feature_extractor(model, nodes)(INPUT) for model in pair)
    for name in nodes.values():
        assert relative_error(ours[name], torchs[name]) <= 2e-6


def test_compile_and_export(pair) -> None:
    fused, plain = pair
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_same(compiled, plain, INPUT)
    program = torch.export.export(fused, (INPUT,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert_same(program.module(), plain, INPUT[:1].repeat(3, 1, 1, 1))


def test_activation_checkpoints(pair) -> None:
    from torch.utils.checkpoint import checkpoint, checkpoint_sequential

    fused, plain = pair
    for model in pair:
        for layer in model:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # a changed input can't be recomputed from, in torch neither
    input = INPUT.clone().requires_grad_()
    checkpoint(fused, input, use_reentrant=False).sum().backward()
    found = input.grad.clone()
    input.grad = None
    checkpoint_sequential(fused, 3, input, use_reentrant=False).sum().backward()
    assert relative_error(input.grad, found) <= 2e-6
    expected = INPUT.clone().requires_grad_()
    plain(expected).sum().backward()
    assert relative_error(found, expected.grad) <= 5e-6
