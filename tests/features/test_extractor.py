"""VGGFeatures: the maps and gradients of torchvision's layers, by as few operators as can be."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.features import by_hand, torchvisions
from tests.support.fused_operators import Operators
from tests.support.numerics import relative_error
from vgg_fast.features import VGGFeatures
from vgg_fast.features.plan import ARCHS, layer_names

POOLINGS = {"max": F.max_pool2d, "average": F.avg_pool2d}

weights_of = functools.cache(torchvisions)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape or (2, 3, 37, 45), dtype=dtype)


def small(**options) -> VGGFeatures:
    """Of few layers, with a tap of each kind."""
    options = {"taps": ("relu1_2", "conv2_1", "pool2"), "weights": weights_of("vgg16"), **options}
    return VGGFeatures("vgg16", **options)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    for tap, map in found.items():
        assert map.shape == expected[tap].shape
        assert relative_error(map, expected[tap]) < bound, tap


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_layer_is_torchvisions(arch: str, pooling: str) -> None:
    names, batch = layer_names(arch), images()
    with torch.no_grad():
        expected = by_hand(arch, weights_of(arch), batch, POOLINGS[pooling])
        kinds = {kind: [n for n in names if n.startswith(kind)] for kind in ("conv", "relu")}
        for taps in (names, names[-1:], names[1::2], *kinds.values()):
            features = VGGFeatures(arch, taps, weights=weights_of(arch), pooling=pooling)
            found = features(batch)
            assert list(found) == taps
            assert_equal(found, expected, 1e-5)


@pytest.mark.parametrize("arch", ["vgg16", "vgg16_bn"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_gradients_are_torchvisions(arch: str, trained: bool) -> None:
    torchs = copy.deepcopy(weights_of(arch)[:17]).double()
    taps = [name for name in layer_names(arch)[:17] if name.startswith(("conv2", "relu", "pool"))]
    features = VGGFeatures(arch, taps, weights=weights_of(arch), dtype=torch.float64)
    for module in (torchs, features):
        module.requires_grad_(trained)
    batch = images(1, 3, 18, 21, dtype=torch.float64).requires_grad_()
    # In double, and with the same rounding of what they start from, no ReLU may flip.
    maps = features(batch), by_hand(arch, torchs, batch)
    wanted = [
        [batch, *module.parameters()] if trained else [batch] for module in (features, torchs)
    ]
    ours, theirs = (
        torch.autograd.grad(sum(maps[tap].square().mean() for tap in taps), tensors)
        for maps, tensors in zip(maps, wanted, strict=True)
    )
    for found, expected in zip(ours, theirs, strict=True):
        assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize(
    ("low", "high", "mean", "std"),
    [(0, 255, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), (-1, 1, (0.5,) * 3, (0.25,) * 3)],
)
def test_ranges_and_normalisations(low: float, high: float, mean, std) -> None:
    batch = images()
    plain = small(mean=None)(
        (batch - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    )
    features = small(input_range=(low, high), mean=mean, std=std)
    assert_equal(features(batch * (high - low) + low), plain, 1e-5)


def test_channels_and_order() -> None:
    features = small(taps=["pool2", "relu1_2"])
    assert features.channels == {"pool2": 128, "relu1_2": 64}
    assert list(features(images())) == ["pool2", "relu1_2"]
    assert len(features.features) == 10  # nothing behind pool2


# ------------------------------------------------------------------------------------ the operators


@pytest.mark.parametrize(
    ("arch", "taps", "operators"),
    [
        ("vgg11", ["relu2_1"], ["conv3x3_relu_pool", "conv3x3_relu"]),
        ("vgg11", ["pool2"], ["conv3x3_relu_pool"] * 2),
        ("vgg11", ["relu1_1", "relu2_1"], ["conv3x3_relu_and_pool", "conv3x3_relu"]),
        ("vgg11", ["relu1_1", "pool1"], ["conv3x3_relu_and_pool"]),
        ("vgg11", ["conv1_1", "pool1"], ["conv3x3", "max_pool2x2"]),
        ("vgg11_bn", ["bn1_1", "relu1_1"], ["conv3x3"]),
        ("vgg11_bn", ["relu1_1", "pool1"], ["conv3x3_relu_and_pool"]),
        ("vgg13_bn", ["pool1"], ["conv3x3_relu", "conv3x3_relu_pool"]),
    ],
)
def test_as_few_operators_as_can_be(arch: str, taps: list[str], operators: list[str]) -> None:
    features, batch = VGGFeatures(arch, taps), images()
    with torch.no_grad(), Operators() as seen:
        features(batch)
    assert seen.names == operators


def test_maps_are_channels_last_whatever_the_images_are() -> None:
    features, batch = small(), images()
    found = features(batch)
    again = features(batch.contiguous(memory_format=torch.channels_last))
    for tap, map in found.items():
        assert map.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(map, again[tap])


@pytest.mark.parametrize(
    "taps",
    [["relu5_3"], ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]],
    ids=["one", "five"],
)
def test_a_backward_pass_keeps_bits(taps: list[str]) -> None:
    features = VGGFeatures("vgg16", taps)
    batch = images(1, 3, 32, 48).requires_grad_()
    own = {p.untyped_storage().data_ptr() for p in (*features.parameters(), *features.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        found = features(batch)
    assert 10 < sum(kept.values()) / (32 * 48) <= 50
    assert all(map.requires_grad for map in found.values())


# ------------------------------------------------------------------------- frozen, and in eval mode


def test_frozen_and_in_eval_mode() -> None:
    features = VGGFeatures("vgg11_bn", ["relu2_1"])
    assert not any(p.requires_grad for p in features.parameters())
    assert not features(images())["relu2_1"].requires_grad
    features.train()
    nn.Sequential(features).train()
    assert not any(module.training for module in features.modules())
    before = copy.deepcopy(features.state_dict())
    features(images())
    assert all(torch.equal(value, before[key]) for key, value in features.state_dict().items())


def test_keys_are_torchvisions() -> None:
    features = small()
    expected = {f"features.{key}": v for key, v in weights_of("vgg16")[:10].state_dict().items()}
    assert list(features.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in features.state_dict().items())


# ------------------------------------------------------------------------------------ torch's tools


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(copied) -> None:
    features, batch = small(), images()
    expected = features(batch)
    for tap, map in copied(features)(batch).items():
        assert torch.equal(map, expected[tap])


@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_compiled_in_one_graph(arch: str) -> None:
    features = VGGFeatures(arch, ["conv1_1", "relu2_1", "pool2"], weights=weights_of(arch))
    compiled = torch.compile(features, backend="aot_eager", fullgraph=True)
    batch = images(1, 3, 16, 20).requires_grad_()
    found, expected = compiled(batch), features(batch)
    assert_equal(found, expected, 1e-6)
    of_found, of_expected = (
        torch.autograd.grad(sum(map.square().mean() for map in maps.values()), batch)[0]
        for maps in (found, expected)
    )
    assert relative_error(of_found, of_expected) < 1e-5


def test_exported_with_free_sizes() -> None:
    features = small()
    dim = torch.export.Dim
    sizes = {0: dim("n", min=1, max=64), 2: dim("h", min=8, max=512), 3: dim("w", min=8, max=512)}
    program = torch.export.export(features, (images(2, 3, 16, 24),), dynamic_shapes=(sizes,))
    batch = images(3, 3, 21, 18)
    assert_equal(program.module()(batch), features(batch), 1e-6)


@pytest.mark.parametrize("arch", ["vgg16", "vgg16_bn"])
def test_autocast_computes_in_bf16(arch: str) -> None:
    taps = ["relu1_2", "conv2_1", "pool2"]
    features, batch = VGGFeatures(arch, taps, weights=weights_of(arch)), images().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = features(batch)
    assert all(map.dtype == torch.bfloat16 for map in found.values())
    assert_equal(found, features(batch), 2e-2)
    found["pool2"].float().mean().backward()
    assert batch.grad.dtype == torch.float32 and batch.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("arch", ["vgg16", "vgg16_bn"])
def test_other_dtypes(arch: str, dtype: torch.dtype) -> None:
    taps = ["relu1_2", "conv2_1", "pool2"]
    features, batch = VGGFeatures(arch, taps, weights=weights_of(arch)), images()
    expected = features(batch)
    found = features.to(dtype)(batch.to(dtype))
    assert all(map.dtype == dtype for map in found.values())
    assert_equal(found, expected, 1e-6 if dtype == torch.float64 else 2e-2)


def test_checkpointed() -> None:
    features, batch = small(), images().requires_grad_()

    def loss(batch: Tensor) -> Tensor:
        return sum(map.square().mean() for map in features(batch).values())

    (expected,) = torch.autograd.grad(loss(batch), batch)
    (found,) = torch.autograd.grad(checkpoint(loss, batch, use_reentrant=False), batch)
    assert torch.equal(found, expected)


def test_on_the_meta_device() -> None:
    features = small(weights=None, device="meta")
    assert features(torch.empty(2, 3, 16, 16, device="meta"))["pool2"].shape == (2, 128, 4, 4)


# ------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    "form", ["model", "features", "state_dict", "prefixed", ".pth", ".safetensors"]
)
def test_weights_in_every_form(form: str, tmp_path) -> None:
    torchs = weights_of("vgg16")
    prefixed = {f"features.{key}": value for key, value in torchs.state_dict().items()}
    weights = {
        "model": nn.ModuleDict({"features": torchs, "classifier": nn.Linear(4, 4)}),
        "features": torchs,
        "state_dict": torchs.state_dict(),
        "prefixed": prefixed,
    }.get(form, tmp_path / f"vgg16{form}")
    if form == ".pth":
        torch.save(prefixed, weights)
    elif form == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(prefixed, weights)
    features = small(weights=str(weights) if form == ".pth" else weights)
    assert torch.equal(features.features[7].weight, torchs[7].weight)
    assert features.features[7].weight is not torchs[7].weight
    assert torch.equal(small(weights=features).features[7].bias, torchs[7].bias)


@pytest.mark.parametrize("by_name", [True, False])
def test_torchvisions_weights(by_name: bool, monkeypatch) -> None:
    from torchvision.models import VGG16_Weights, WeightsEnum

    state = {f"features.{key}": value for key, value in weights_of("vgg16").state_dict().items()}
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: state)
    features = small(weights="DEFAULT" if by_name else VGG16_Weights.IMAGENET1K_V1)
    assert torch.equal(features.features[7].weight, state["features.7.weight"])
