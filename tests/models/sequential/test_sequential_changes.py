"""FusedSequential: what is put in, hooked, patched, set or parametrised later counts at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.support.numerics import assert_as_accurate, relative_error
from tests.support.sequences import assert_same, conv, features, operators
from vgg_fast import fuse, unfuse

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


# ------------------------------------------------------------------------- results that are changed


LAST = {
    "leaky": lambda: [conv(), nn.LeakyReLU(0.1)],
    "pool": lambda: [conv(), nn.ReLU(), nn.MaxPool2d(2)],
    "leaky, pool": lambda: [conv(), nn.LeakyReLU(0.1), nn.MaxPool2d(2)],
}
IN_PLACE = {
    "hardtanh": lambda: [nn.Hardtanh(inplace=True)],
    "relu": lambda: [nn.ReLU(inplace=True)],
    "behind identities": lambda: [nn.Identity(), nn.Dropout(), nn.SiLU(inplace=True)],
    "a view": lambda: [nn.Flatten(), nn.ELU(inplace=True)],
    "dropout": lambda: [nn.Dropout(0.5, inplace=True)],
}


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("behind", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("last", LAST.values(), ids=LAST)
def test_a_layer_that_works_in_place_leaves_gradients_as_torchs_do(last, behind, format) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(*last(), *behind()).eval()
    input = torch.randn(2, 4, 8, 6).contiguous(memory_format=format)
    assert_as_accurate(fuse(plain), plain, input)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_leaky_map_may_be_changed_by_whoever_gets_it(format) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(conv(), nn.LeakyReLU(0.1), conv(), nn.LeakyReLU(0.1))

        def forward(self, input: Tensor) -> Tensor:
            output = self.layers(input)
            output += input
            return output

    torch.manual_seed(0)
    plain = Block()
    fused, input = fuse(plain), torch.randn(2, 4, 8, 6).contiguous(memory_format=format)
    assert_as_accurate(fused, plain, input)
    assert operators(fused, input) == ["conv3x3_relu", "conv3x3_relu"]
    copies = format == torch.contiguous_format
    expected = ["conv3x3_relu", "conv3x3_relu" if copies else "conv3x3"]
    assert operators(fused, input, grad=True) == expected
    # torch's own keeps its result too where it works in place.
    in_place = fuse(nn.Sequential(conv(), nn.LeakyReLU(0.1, inplace=True)))
    assert operators(in_place, input, grad=True) == ["conv3x3_relu"]
