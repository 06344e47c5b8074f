"""FusedSequential: a batch norm in training behind a convolution, with the activation behind it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tests.support.numerics import assert_as_accurate, in_float64, relative_error
from tests.support.sequences import LAYOUTS, operators
from vgg_fast import fuse

WIDTH = 20  # more than the fewest channels, and no multiple of a vector's lanes


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, **{"kernel_size": 3, "padding": 1, **options})


def norm(**options) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(WIDTH, **options)


def model(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(*layers)
    for layer in made:
        if isinstance(layer, nn.BatchNorm2d):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -1, 2)
    return made.train()


INPUT = torch.randn(2, WIDTH, 8, 6, generator=torch.Generator().manual_seed(1))
CONV, NORM, POOL = "conv3x3", "batch_norm", "max_pool2x2"

PATTERNS = {
    "alone": (lambda: [conv(), norm()], [CONV, NORM]),
    "relu": (lambda: [conv(bias=False), norm(), nn.ReLU(True)], [CONV, NORM]),
    "leaky": (lambda: [conv(), norm(), nn.LeakyReLU(0.1)], [CONV, NORM]),
    "pool": (lambda: [conv(), norm(), nn.ReLU(), nn.MaxPool2d(2)], [CONV, NORM, POOL]),
    "pool, relu": (lambda: [conv(), norm(), nn.MaxPool2d(2), nn.ReLU()], [CONV, NORM, POOL]),
    "pool only": (lambda: [conv(), norm(), nn.MaxPool2d(2)], [CONV, NORM, POOL]),
    "valid": (lambda: [conv(padding=0), norm(), nn.ReLU()], [CONV, NORM]),
    "between": (lambda: [conv(), nn.Identity(), norm(), nn.Identity(), nn.ReLU()], [CONV, NORM]),
    "two": (lambda: [conv(), norm(), norm(), nn.ReLU()], [CONV, NORM]),
    "behind the relu": (lambda: [conv(), nn.ReLU(), norm()], ["conv3x3_relu"]),
    "not affine": (lambda: [conv(), norm(affine=False, eps=0.1), nn.ReLU()], [CONV, NORM]),
    "of all batches": (lambda: [conv(), norm(momentum=None), nn.ReLU()], [CONV, NORM]),
    "momentum": (lambda: [conv(), norm(momentum=0.7), nn.ReLU()], [CONV, NORM]),
    "no statistics": (lambda: [conv(), norm(track_running_stats=False)], [CONV, NORM]),
    "changed in place": (lambda: [conv(), norm(), nn.LeakyReLU(), nn.ELU(inplace=True)],
                         [CONV, NORM]),
    "blocks": (lambda: [conv(), norm(), nn.ReLU(), conv(), norm(), nn.ReLU(), nn.MaxPool2d(2)],
               [CONV, NORM, CONV, NORM, POOL]),
}  # fmt: skip
patterns = pytest.mark.parametrize(("make", "expected"), PATTERNS.values(), ids=PATTERNS)


@patterns
def test_what_runs_as_one_operator(make: Callable, expected: list[str]) -> None:
    fused = fuse(model(*make()))
    assert operators(fused, INPUT) == expected
    assert operators(fused, INPUT, grad=True) == expected


@patterns
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_outputs_gradients_and_formats(make: Callable, expected: list[str], layout: str) -> None:
    plain = model(*make())
    images = LAYOUTS[layout](torch.randn(4, WIDTH, 10, 12))
    assert_as_accurate(fuse(copy.deepcopy(plain)), copy.deepcopy(plain), images)
    results = []
    for net in (plain, fuse(copy.deepcopy(plain))):
        leaf = images.clone().requires_grad_()
        output = net(leaf)
        output.square().sum().backward()
        results.append((output.stride(), leaf.grad.stride(), net[0].weight.grad.stride()))
    assert results[0] == results[1]


@patterns
def test_the_running_statistics(make: Callable, expected: list[str]) -> None:
    plain = model(*make())
    fused, exact = fuse(copy.deepcopy(plain)), in_float64(plain)
    for step in range(3):
        images = torch.randn(2, WIDTH, 8, 6) + step
        with torch.set_grad_enabled(step != 1):
            fused(images)
            exact(images.double())
    found, wanted = dict(fused.named_buffers()), dict(exact.named_buffers())
    assert found.keys() == wanted.keys()
    for name, buffer in found.items():
        assert buffer.dtype == dict(plain.named_buffers())[name].dtype
        assert relative_error(buffer, wanted[name]) <= 1e-6
    images = torch.randn(2, WIDTH, 8, 6)
    for net in (fused, exact):
        net.eval()
    with torch.no_grad():
        assert relative_error(fused(images), exact(images.double())) <= 1e-5


def test_frozen_parameters_have_no_gradient() -> None:
    for frozen in itertools.product((False, True), repeat=3):
        plain = model(conv(), norm(), nn.ReLU())
        for parameter, freeze in zip(
            (plain[0].weight, plain[1].weight, plain[1].bias), frozen, strict=True
        ):
            parameter.requires_grad_(not freeze)
        assert_as_accurate(fuse(copy.deepcopy(plain)), plain, INPUT)


def test_checkpointing() -> None:
    plain = model(conv(), norm(), nn.ReLU())
    fused = fuse(copy.deepcopy(plain))
    leaves = [INPUT.clone().requires_grad_() for _ in range(2)]
    checkpoint(fused, leaves[0], use_reentrant=False).square().sum().backward()
    plain(leaves[1]).square().sum().backward()
    assert relative_error(leaves[0].grad, leaves[1].grad) <= 1e-5
    # What runs again may count the batch again, as in torch: whole, in all statistics, or not.
    if fused[1].num_batches_tracked == 2:
        plain(INPUT)
    assert fused[1].num_batches_tracked == plain[1].num_batches_tracked
    assert relative_error(fused[1].running_var, plain[1].running_var) <= 1e-6


# ----------------------------------------------------------------------------- where it stays apart


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[1].register_forward_hook(lambda *_: None),
        lambda net: setattr(net[1], "forward", net[1].forward),
        lambda net: net.__setitem__(1, type("Own", (nn.BatchNorm2d,), {})(WIDTH)),
        lambda net: net.__setitem__(1, nn.SyncBatchNorm(WIDTH)),
        lambda net: net.__setitem__(1, norm(dtype=torch.float64)),
        lambda net: net.__setitem__(1, nn.BatchNorm2d(WIDTH + 1)),
    ],
    ids=["hook", "own forward", "subclass", "sync", "dtype", "channels"],
)
def test_what_it_does_not_serve_is_torchs(change: Callable) -> None:
    plain = model(conv(), norm(), nn.ReLU())
    fused = fuse(copy.deepcopy(plain))
    messages = []
    for net in (plain, fused):
        change(net)
        try:
            found = operators(net, INPUT)
        except (RuntimeError, ValueError) as refusal:
            messages.append(str(refusal))
        else:
            assert NORM not in found
    assert len(messages) in (0, 2) and len(set(messages)) <= 1


def test_few_channels_are_torchs() -> None:
    layers = [nn.Conv2d(3, 15, 3, padding=1), nn.BatchNorm2d(15), nn.ReLU()]
    assert operators(fuse(model(*layers)), torch.randn(2, 3, 8, 8)) == [CONV]


def test_a_single_value_a_channel_is_refused_as_by_torch() -> None:
    plain = model(conv(), norm(), nn.ReLU())
    for net in (plain, fuse(copy.deepcopy(plain))):
        with pytest.raises(ValueError, match="more than 1 value per channel when training"):
            net(torch.randn(1, WIDTH, 1, 1))
        assert net(torch.randn(2, WIDTH, 1, 1)).shape == (2, WIDTH, 1, 1)


def test_compiled_it_is_left_to_the_compiler() -> None:
    plain = model(conv(), norm(), nn.ReLU())
    fused = fuse(copy.deepcopy(plain))
    ran: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        ran.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(fused, backend=backend, fullgraph=True)
    assert relative_error(compiled(INPUT), plain(INPUT)) <= 1e-5
    assert ran and not any("vgg_fast.batch_norm" in target for target in ran)
    assert relative_error(fused[1].running_mean, plain[1].running_mean) <= 1e-5


def test_transforms_of_torch_func_see_torchs_norm() -> None:
    plain = model(conv(), norm(track_running_stats=False), nn.ReLU())
    found = []
    for net in (plain, fuse(copy.deepcopy(plain))):
        parameters = dict(net.named_parameters())

        def loss(parameters: dict[str, Tensor], net: nn.Module = net) -> Tensor:
            return torch.func.functional_call(net, parameters, (INPUT,)).square().sum()

        found.append(torch.func.grad(loss)(parameters))
    for name, expected in found[0].items():
        # A bias ahead of the norm has a gradient of nothing but rounding.
        if name != "0.bias":
            assert relative_error(found[1][name], expected) <= 1e-5


def test_forward_mode_sees_torchs_norm() -> None:
    plain = model(conv(), norm(), nn.ReLU())
    tangents = []
    for net in (plain, fuse(copy.deepcopy(plain))):
        with forward_ad.dual_level():
            output = net(forward_ad.make_dual(INPUT, INPUT.flip(0)))
            tangents.append(forward_ad.unpack_dual(output).tangent)
            assert forward_ad.unpack_dual(net[1].running_mean).tangent is None
    assert relative_error(tangents[1], tangents[0]) <= 1e-5


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_it_trains_as_torch() -> None:
    plain = model(conv(), norm(), nn.ReLU())
    fused = fuse(copy.deepcopy(plain))
    with torch.no_grad():
        traced = torch.jit.trace(fused, INPUT, check_trace=False)
    fused.load_state_dict(plain.state_dict())
    assert relative_error(traced(INPUT), plain(INPUT)) <= 1e-5
    assert relative_error(fused[1].running_mean, plain[1].running_mean) <= 1e-5


# ------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("of_norm", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("of_conv", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits(of_conv: torch.dtype, of_norm: torch.dtype) -> None:
    plain = model(conv().to(of_conv), norm().to(of_norm), nn.ReLU())
    fused, input = fuse(copy.deepcopy(plain)), INPUT.to(of_conv)
    try:
        eager = plain(input)
    except RuntimeError as refusal:
        with pytest.raises(RuntimeError) as found:
            fused(input)
        assert str(found.value) == str(refusal)
        return
    assert operators(copy.deepcopy(fused), input) == [CONV, NORM]
    output, exact = fused(input), in_float64(plain)(input.double())
    assert (output.dtype, output.stride()) == (eager.dtype, eager.stride())
    assert relative_error(output, exact) <= max(2 * relative_error(eager, exact), 8e-3)
    for net, result in ((plain, eager), (fused, output)):
        result.float().square().sum().backward()
        assert [p.grad.dtype for p in net.parameters()] == [p.dtype for p in net.parameters()]
    for ours, theirs in zip(fused[1].parameters(), plain[1].parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) <= 2e-2
    for ours, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        assert ours.dtype == theirs.dtype and relative_error(ours, theirs) <= 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    plain = model(conv(), norm(), nn.ReLU(), conv(), norm(affine=False))
    fused, exact = fuse(copy.deepcopy(plain)), in_float64(plain)
    with torch.autocast("cpu", dtype):
        assert operators(copy.deepcopy(fused), INPUT, grad=True) == [CONV, NORM, CONV, NORM]
        found, eager = fused(INPUT), plain(INPUT)
    expected = exact(INPUT.double())
    assert (found.dtype, found.stride()) == (eager.dtype, eager.stride())
    assert relative_error(found, expected) <= 2 * relative_error(eager, expected)
    projection = torch.randn(found.shape)
    for net, output in ((fused, found), (plain, eager), (exact, expected)):
        (output * projection.to(output.dtype)).sum().backward()
        assert all(p.grad.dtype == p.dtype for p in net.parameters())
    wanted = dict(exact.named_parameters())
    theirs = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        if not name.endswith("bias") or name == "1.bias":  # others' gradients are rounding's
            right = wanted[name].grad
            allowed = 2 * relative_error(theirs[name].grad, right) + 1e-3
            assert relative_error(parameter.grad, right) <= allowed
