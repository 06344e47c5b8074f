"""FusedSequential: a batch norm in eval mode behind a convolution, and where it runs apart."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrizations, prune

from tests.support.numerics import assert_as_accurate, in_float64, relative_error
from tests.support.rewritten import ran_in
from tests.support.sequences import LAYOUTS, assert_same, conv, operators
from vgg_fast import fuse, unfuse


def norm(**options) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4, **options)


def model(*layers: nn.Module, frozen: bool = False) -> nn.Sequential:
    """These layers in eval mode, the norms with statistics as after training."""
    torch.manual_seed(0)
    made = nn.Sequential(*layers)
    for layer in made:
        if isinstance(layer, nn.BatchNorm2d):
            if layer.running_mean is not None:
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -1, 2)  # a scale may be negative
                parameter.requires_grad_(not frozen)
    return made.eval()


INPUT = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1))

PATTERNS = {
    "alone": (lambda: [conv(), norm()], ["conv3x3"]),
    "no bias": (lambda: [conv(bias=False), norm(), nn.ReLU(True)], ["conv3x3_relu"]),
    "not affine": (lambda: [conv(), norm(affine=False), nn.ReLU()], ["conv3x3_relu"]),
    "neither": (
        lambda: [conv(bias=False), norm(affine=False, eps=0.1), nn.ReLU()],
        ["conv3x3_relu"],
    ),
    "leaky": (lambda: [conv(), norm(), nn.LeakyReLU(0.1)], ["conv3x3_relu"]),
    "pool": (lambda: [conv(), norm(), nn.ReLU(), nn.MaxPool2d(2)], ["conv3x3_relu_pool"]),
    "pool, relu": (lambda: [conv(), norm(), nn.MaxPool2d(2), nn.ReLU()], ["conv3x3_relu_pool"]),
    "pool only": (lambda: [conv(), norm(), nn.MaxPool2d(2)], ["conv3x3", "max_pool2x2"]),
    "reflect": (lambda: [conv(padding_mode="reflect"), norm(), nn.ReLU()], ["conv3x3_relu"]),
    "valid": (lambda: [conv(padding=0), norm(), nn.LeakyReLU()], ["conv3x3_relu"]),
    "between": (
        lambda: [conv(), nn.Identity(), norm(), nn.Dropout(0.5), nn.ReLU()],
        ["conv3x3_relu"],
    ),
    "two": (lambda: [conv(), norm(), norm(), nn.ReLU()], ["conv3x3"]),
    "behind the relu": (lambda: [conv(), nn.ReLU(), norm()], ["conv3x3_relu"]),
    "behind the pooling": (lambda: [conv(), nn.MaxPool2d(2), norm()], ["conv3x3", "max_pool2x2"]),
    "alone in front": (lambda: [norm(), conv(), nn.ReLU()], ["conv3x3_relu"]),
    "blocks": (
        lambda: [conv(), norm(), nn.ReLU(), conv(), norm(), nn.ReLU(), nn.MaxPool2d(2)],
        ["conv3x3_relu", "conv3x3_relu_pool"],
    ),
}


@pytest.mark.parametrize(("make", "expected"), PATTERNS.values(), ids=PATTERNS)
def test_what_runs_as_one_operator(make: Callable, expected: list[str]) -> None:
    plain = model(*make())
    fused = fuse(plain)
    assert operators(fused, INPUT) == expected
    assert_same(fused, plain, INPUT, 4e-6)
    assert_same(unfuse(fused), plain, INPUT, 0)


@pytest.mark.parametrize("make", [make for make, _ in PATTERNS.values()], ids=PATTERNS)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "learning"])
def test_outputs_and_gradients(make: Callable, frozen: bool) -> None:
    plain = model(*make(), frozen=frozen)
    # More pixels than weights, so that a frozen norm takes part.
    assert_as_accurate(fuse(plain), plain, torch.randn(4, 4, 10, 12))


def test_it_takes_part_where_its_own_tensors_want_no_gradient() -> None:
    fused = fuse(model(conv(), norm(), nn.ReLU()))
    images = torch.randn(4, 4, 10, 12, requires_grad=True)
    assert operators(fused, images, grad=True) == ["conv3x3"]
    fused[1].weight.requires_grad_(False)
    assert operators(fused, images, grad=True) == ["conv3x3"]
    fused[1].bias.requires_grad_(False)
    assert operators(fused, images, grad=True) == ["conv3x3_relu"]
    fused[1].bias.requires_grad_()
    assert operators(fused, images) == ["conv3x3_relu"]


def test_it_runs_apart_where_scaling_the_weight_costs_more() -> None:
    plain = model(conv(), norm(), nn.ReLU(), nn.MaxPool2d(2), frozen=True)
    fused, small = fuse(plain), torch.randn(1, 4, 4, 4).to(memory_format=torch.channels_last)
    assert operators(fused, small) == ["conv3x3_relu_pool"]
    # In a backward pass: 144 weights, 64 pixels. The layers behind it go on in groups.
    assert operators(fused, small, grad=True) == ["conv3x3", "max_pool2x2"]
    assert_as_accurate(fused, plain, small)
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    assert operators(fused, small, grad=True) == ["conv3x3_relu_pool"]


def test_in_training_mode_it_counts_each_batch_once() -> None:
    plain = model(conv(), norm(), nn.ReLU()).train()
    fused, exact = fuse(copy.deepcopy(plain)), in_float64(plain)
    for _ in range(2):
        assert operators(fused, INPUT) == ["conv3x3"]
        with torch.no_grad():
            plain(INPUT)
            exact(INPUT.double())
    assert fused[1].num_batches_tracked == plain[1].num_batches_tracked == 2
    for name in ("running_mean", "running_var"):
        found, expected = getattr(fused[1], name), getattr(exact[1], name)
        assert relative_error(found, expected) <= 1e-6
    fused.eval()
    before = copy.deepcopy(fused.state_dict())
    assert operators(fused, INPUT) == ["conv3x3_relu"]
    fused(INPUT).sum().backward()
    assert all(torch.equal(before[key], value) for key, value in fused.state_dict().items())


def test_training_gives_torchs_outputs_and_gradients() -> None:
    plain = model(conv(), norm(), nn.ReLU(), nn.MaxPool2d(2)).train()
    assert_as_accurate(fuse(copy.deepcopy(plain)), plain, torch.randn(4, 4, 8, 8))


# ---------------------------------------------------------------------------------- what changes it


def test_tensors_that_change_count_at_once() -> None:
    plain = model(conv(), norm(), nn.ReLU())
    fused = fuse(plain)  # shares them
    with torch.no_grad():
        for change in (
            lambda layer: layer.running_mean.add_(1),
            lambda layer: layer.running_var.mul_(3),
            lambda layer: layer.weight.neg_(),
            lambda layer: layer.bias.data.add_(0.5),
            lambda layer: setattr(layer, "eps", 0.3),
        ):
            change(fused[1])
            plain[1].eps = fused[1].eps
            assert_same(fused, plain, INPUT, 4e-6)
    state = {key: value + 0.25 for key, value in plain.state_dict().items()}
    for net in (plain, fused):
        net.load_state_dict(state, assign=True)
    assert_same(fused, plain, INPUT, 4e-6)
    assert operators(fused, INPUT) == ["conv3x3_relu"]


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        lambda: nn.InstanceNorm2d(4, affine=True),
        lambda: nn.GroupNorm(2, 4),
        lambda: nn.SyncBatchNorm(4),
        lambda: prune.l1_unstructured(nn.BatchNorm2d(4), "weight", 0.5),
        lambda: parametrizations.weight_norm(nn.BatchNorm2d(4)),
        lambda: type("Own", (nn.BatchNorm2d,), {"forward": lambda self, x: x * 2})(4),
    ],
    ids=["no statistics", "instance", "group", "sync", "pruned", "parametrised", "subclass"],
)
def test_another_norm_runs_apart(other: Callable) -> None:
    plain = model(conv(), other(), nn.ReLU())
    fused = fuse(model(conv(), norm(), nn.ReLU()))
    fused[0], fused[1] = plain[0], plain[1]
    assert operators(fused, INPUT) == ["conv3x3"]
    assert_same(fused, plain, INPUT, 4e-6)


def test_without_its_statistics_it_takes_the_batchs() -> None:
    plain = model(conv(), norm(), nn.ReLU())
    plain[1].running_mean = plain[1].running_var = None
    fused = fuse(plain)
    assert operators(fused, INPUT) == ["conv3x3"]
    assert_same(fused, plain, INPUT, 4e-6)


def test_a_weight_that_is_no_parameter_runs_apart() -> None:
    plain = model(conv(), norm(), nn.ReLU())
    for name in ("weight", "bias"):
        value = getattr(plain[1], name).detach()
        delattr(plain[1], name)
        setattr(plain[1], name, value)
    fused = fuse(plain)
    assert operators(fused, INPUT) == ["conv3x3"]
    assert_same(fused, plain, INPUT)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "own forward"])
def test_whoever_looks_sees_what_torch_gives(kind: str) -> None:
    plain = model(conv(), norm(), nn.ReLU(), frozen=True)
    fused, seen = fuse(plain), []
    for net in (fused, plain):
        layer = net[1]
        if kind == "own forward":
            layer.forward = lambda x, layer=layer: (
                seen.append(x) or nn.BatchNorm2d.forward(layer, x)
            )
        else:
            register = getattr(layer, f"register_{kind}_hook")
            register(lambda module, *given: seen.append(given[0][0]) and None)
    assert operators(fused, INPUT) == ["conv3x3"]
    seen.clear()
    for net in (fused, plain):
        net(INPUT.clone().requires_grad_()).sum().backward()
    assert len(seen) == 2 and relative_error(seen[0], seen[1]) <= 4e-6
    assert_same(fused, plain, INPUT, 4e-6)


def test_a_patched_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = fuse(model(conv(), norm(), nn.ReLU()))
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, input: input.sigmoid())
    assert operators(fused, INPUT) == ["conv3x3"]
    assert_same(fused, nn.Sequential(fused[0], nn.Sigmoid()), INPUT)


# ------------------------------------------------------------------------ dtypes, formats, refusals

DTYPES = {torch.float32: 4e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.mark.parametrize("of_norm", DTYPES, ids=str)
@pytest.mark.parametrize("of_conv", DTYPES, ids=str)
def test_dtypes_that_torch_takes_together(of_conv: torch.dtype, of_norm: torch.dtype) -> None:
    plain = model(conv().to(of_conv), norm().to(of_norm), nn.ReLU())
    fused, input = fuse(plain), INPUT.to(of_conv)
    try:
        with torch.no_grad():
            eager = plain(input)
    except RuntimeError as refusal:
        with pytest.raises(type(refusal)) as found:
            operators(fused, input)
        assert str(found.value) == str(refusal)
        return
    assert operators(fused, input) == ["conv3x3_relu"]
    with torch.no_grad():
        found, exact = fused(input), in_float64(plain)(input.double())
    assert (found.dtype, found.stride()) == (eager.dtype, eager.stride())
    assert relative_error(found, exact) <= max(2 * relative_error(eager, exact), DTYPES[of_conv])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_autocast(dtype: torch.dtype, grad: bool) -> None:
    plain = model(conv(), norm(), nn.ReLU(), conv(), norm(affine=False), frozen=True)
    fused, images = fuse(plain), torch.randn(4, 4, 10, 12)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype):
        assert operators(fused, images, grad=grad) == ["conv3x3_relu", "conv3x3"]
        found, eager = fused(images), plain(images)
    exact = in_float64(plain)(images.double())
    assert (found.dtype, found.stride()) == (eager.dtype, eager.stride()) and found.dtype is dtype
    assert relative_error(found, exact) <= 2 * relative_error(eager, exact)
    if not grad:
        return
    gradients = []
    for output, net in ((found, fused), (eager, plain), (exact, None)):
        if net is not None:
            net.zero_grad()
            output.float().square().sum().backward()
            gradients.append([p.grad.clone() for p in net.parameters() if p.requires_grad])
    expected = in_float64(plain)
    expected.zero_grad()
    expected(images.double()).square().sum().backward()
    wanted = [p.grad for p in expected.parameters() if p.requires_grad]
    for ours, torchs, right in zip(*gradients, wanted, strict=True):
        assert ours.dtype is torch.float32
        assert relative_error(ours, right) <= 2 * relative_error(torchs, right) + 1e-3


def test_autocast_decides_which_norm_takes_the_map() -> None:
    plain = model(conv(), norm().to(torch.bfloat16), nn.ReLU())
    fused = fuse(plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert operators(fused, INPUT) == ["conv3x3_relu"]
        assert_same(fused, plain, INPUT, 8e-3)
    messages = []
    for net in (plain, fused):
        with pytest.raises(RuntimeError) as refusal, torch.autocast("cpu", torch.float16):
            net(INPUT)
        messages.append(str(refusal.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("weight", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("size", [(8, 6), (3, 3), (2, 2), (1, 1), (1, 5)], ids=str)
def test_the_memory_format_is_the_one_that_torch_gives(
    outputs: int, size: tuple[int, int], layout: str, weight: str
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    last = nn.Conv2d(outputs, 2, 3, padding=1)
    last.weight.data = LAYOUTS[weight](last.weight.data)
    behind = [last, nn.BatchNorm2d(2)]
    if min(size) > 1:
        behind += [nn.MaxPool2d(2), nn.ReLU()]
    plain = ran_in(nn.Sequential(*layers, *behind)).eval()
    input = LAYOUTS[layout](torch.randn(2, 3, *size))
    for stop in range(1, len(plain) + 1):
        assert_same(fuse(plain)[:stop], plain[:stop], input, 1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net: setattr(net, "1", nn.BatchNorm2d(5).eval()),
        lambda net: setattr(net[1], "running_var", torch.ones(3)),
        lambda net: setattr(net[1], "weight", nn.Parameter(torch.ones(4, dtype=torch.bfloat16))),
        lambda net: net[1].to("meta"),
    ],
    ids=["channels", "a statistic", "a dtype", "a device"],
)
def test_what_torch_refuses_is_refused_by_torch(spoil: Callable) -> None:
    plain = model(conv(), norm(), nn.ReLU())
    fused = fuse(plain)
    messages = []
    for net in (plain, fused):
        spoil(net)
        with pytest.raises((RuntimeError, NotImplementedError)) as refusal, torch.no_grad():
            net(INPUT)
        messages.append(str(refusal.value).split("\n")[0])
    assert messages[0] == messages[1]


def test_a_bias_of_another_dtype_is_refused() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        plain = model(conv(dtype=dtype), norm(), nn.ReLU())
        plain[0].bias = nn.Parameter(torch.ones(4, dtype=torch.float16))
        for net in (plain, fuse(plain)):
            with (
                pytest.raises(RuntimeError, match=r"bias type|but bias is float16"),
                torch.no_grad(),
            ):
                net(INPUT.to(dtype))


# --------------------------------------------------------------------------------- copies and tools


@pytest.fixture
def pair() -> tuple[nn.Sequential, nn.Sequential]:
    """A fused model and its original, which share their tensors."""
    plain = model(
        *(conv(), norm(), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(bias=False), norm(affine=False), nn.LeakyReLU(0.1), conv(), norm()),
    )
    return fuse(plain), plain


def test_copies_compute_the_same(pair) -> None:
    fused, plain = pair
    assert list(fused.state_dict()) == list(plain.state_dict()) and str(fused) == str(plain)
    for again in (copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))):
        assert operators(again(fused), INPUT) == ["conv3x3_relu_pool", "conv3x3_relu", "conv3x3"]
        assert_same(again(fused), plain, INPUT, 4e-6)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_compile(pair, grad: bool) -> None:
    fused, plain = pair
    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        assert_same(compiled, plain, INPUT, 4e-6)
        assert_same(compiled, plain, INPUT[:1].repeat(3, 1, 1, 1), 4e-6)
    torch._dynamo.reset()


def test_compile_of_a_frozen_norm_gives_gradients_of_any_size() -> None:
    plain = model(conv(), norm(), nn.ReLU(), frozen=True)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fuse(plain), fullgraph=True, backend=counter, dynamic=True)
    for shape in ((3, 4, 12, 10), (2, 4, 4, 4)):  # the second has more weights than pixels
        input = torch.randn(shape)
        results = []
        for net, given in ((compiled, input), (in_float64(plain), input.double())):
            given = given.clone().requires_grad_()
            net(given).square().sum().backward()
            results.append(given.grad)
        assert relative_error(*results) <= 4e-6
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_export(pair) -> None:
    fused, plain = pair
    with torch.no_grad():
        sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4)}
        program = torch.export.export(fused, (INPUT,), dynamic_shapes=(sizes,))
    assert_same(program.module(), plain, torch.randn(3, 4, 11, 6), 4e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["script", "trace", "trace under autocast"])
def test_torchscript(pair, way: str, tmp_path) -> None:
    fused, plain = pair
    casts = way == "trace under autocast"
    with torch.autocast("cpu", torch.bfloat16, enabled=casts), torch.no_grad():
        if way == "script":
            made = torch.jit.script(fused)
        else:  # the trace rounds once more, to 16 bits, between convolution and norm
            made = torch.jit.trace(fused, INPUT, check_trace=not casts)
        torch.jit.save(made, tmp_path / "model.pt")
        loaded = torch.jit.load(tmp_path / "model.pt")
        assert_same(loaded, plain, INPUT, 2e-2 if casts else 4e-6)
        if not casts:
            assert_same(loaded, plain, INPUT[:1].contiguous(memory_format=torch.channels_last))


def test_torch_fx(pair) -> None:
    fused, plain = pair
    assert_same(torch.fx.symbolic_trace(fused), plain, INPUT, 4e-6)


def test_functional_calls_differentiate_by_the_norms_parameters(pair) -> None:
    results = []
    for net in (pair[0], in_float64(pair[1])):
        parameters = {key: value.detach() for key, value in net.named_parameters()}
        input = INPUT.to(parameters["1.weight"].dtype)

        def loss(given: dict[str, Tensor], net=net, input=input) -> Tensor:
            return torch.func.functional_call(net, given, input).square().sum()

        ones = {key: torch.ones_like(value) for key, value in parameters.items()}
        along = torch.func.jvp(loss, (parameters,), (ones,))[1]
        results.append({**torch.func.grad(loss)(parameters), "along": along})
    for key, expected in results[1].items():
        assert relative_error(results[0][key], expected) <= 1e-4, key


def test_an_ensemble_by_vmap() -> None:
    nets = [fuse(model(conv(), norm(), nn.ReLU(), frozen=True)) for _ in range(3)]
    for net in nets:
        for tensor in (net[1].running_mean, net[0].weight.data):
            tensor.normal_()
    parameters, buffers = torch.func.stack_module_state(nets)
    call = torch.vmap(lambda p, b: torch.func.functional_call(nets[0], (p, b), (INPUT,)))
    with torch.no_grad():
        for found, net in zip(call(parameters, buffers), nets, strict=True):
            assert relative_error(found, in_float64(net)(INPUT.double())) <= 4e-6
