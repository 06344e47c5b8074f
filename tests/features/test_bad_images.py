"""What features and losses refuse, each with one sentence; and what they warn of."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support.features import torchvisions
from vgg_fast.features import DISTS, LPIPS, ContentLoss, StyleLoss, VGGFeatures, gram_matrix
from vgg_fast.features.lpips import CHANNELS


def assert_refused(error: type[Exception], match: str, call: Callable, *args, **options) -> None:
    with pytest.raises(error) as caught:
        call(*args, **options)
    sentence = str(caught.value)
    assert re.search(match, sentence), sentence
    assert re.match(
        r"(VGGFeatures|ContentLoss|StyleLoss|LPIPS|DISTS|gram_matrix)\b.*: ", sentence
    ), sentence
    assert "\n" not in sentence


def features(**options) -> VGGFeatures:
    return VGGFeatures("vgg11", ["relu1_1", "relu2_1"], **options)


def content(**options) -> ContentLoss:
    return ContentLoss({"relu1_1": 1.0}, arch="vgg11", vgg_weights=None, **options)


def lpips(**options) -> LPIPS:
    linear = [torch.rand(c) for c in CHANNELS]
    return LPIPS(**{"vgg_weights": None, "linear_weights": linear, **options})


# ---------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arch": "vgg17"}, "arch must be one of 'vgg11', 'vgg11_bn', .*, but it is 'vgg17'"),
        ({"taps": ["relu1_3"]}, "vgg16 has no layer 'relu1_3'; it has conv1_1, relu1_1, "),
        ({"taps": ["bn1_1"]}, "vgg16 has no layer 'bn1_1'"),
        ({"taps": []}, "taps must name a layer"),
        ({"pooling": "avg"}, "pooling must be one of 'max', 'average', 'l2', but it is 'avg'"),
        ({"input_range": (1, 0)}, r"input_range must be .*, but it is \(1, 0\)"),
        ({"mean": (0.5,)}, "mean and std must be three numbers each"),
        ({"std": (0.5, 0.5, 0.0)}, "std positive"),
    ],
)
def test_arguments_of_the_features(options: dict, match: str) -> None:
    assert_refused(ValueError, match, VGGFeatures, **options)


def test_arguments_of_losses() -> None:
    own = features()
    for loss in (ContentLoss, StyleLoss):
        assert_refused(ValueError, "weights must say how much", loss, {}, features=own)
        assert_refused(ValueError, "the network's are vgg_weights", loss, "DEFAULT")
        assert_refused(
            ValueError,
            "no relu3_1 among the taps of the features: relu1_1, relu2_1",
            loss,
            {"relu3_1": 1.0},
            features=own,
        )
        weights = {"relu1_1": 1.0}
        assert_refused(ValueError, "reduction must be", loss, weights, reduction="avg")
        assert_refused(TypeError, "not a Identity", loss, weights, features=nn.Identity())
        assert_refused(ValueError, "pooling", loss, weights, features=own, pooling="max")
    assert_refused(ValueError, "distance must be one of", content, distance="l3")
    scalar = content(distance=nn.MSELoss())
    assert_refused(
        ValueError, "a value for each of the 2 images", scalar, *torch.rand(2, 2, 3, 8, 8)
    )


def test_features_of_another_kind() -> None:
    taps = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
    vgg16 = VGGFeatures("vgg16", taps)
    assert_refused(ValueError, "from 0 to 1, but normalize=False", lpips, features=vgg16)
    vgg19 = VGGFeatures("vgg19", taps, input_range=(-1, 1))
    assert_refused(ValueError, "must be vgg16's, but they are vgg19's", lpips, features=vgg19)
    assert_refused(ValueError, "pooling='l2', but", DISTS, features=vgg16)


# ------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("error", "images", "match"),
    [
        (ValueError, torch.rand(2, 1, 8, 8), r"give expand\(-1, 3, -1, -1\)"),
        (ValueError, torch.rand(2, 4, 8, 8), "leave alpha out"),
        (ValueError, torch.rand(2, 2, 8, 8), r"3 channels, but they are \(2, 2, 8, 8\)"),
        (ValueError, torch.rand(3, 8, 8), r"unsqueeze\(0\)"),
        (ValueError, torch.rand(8, 8), r"must be \(N, 3, H, W\), but they are \(8, 8\)"),
        (ValueError, torch.rand(2, 3, 8, 1), "images of 8x1 are too small .* needs 2x2"),
        (TypeError, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "but they are uint8; convert"),
        (TypeError, torch.zeros(2, 3, 8, 8, dtype=torch.complex64), "but they are complex64"),
        (TypeError, [0.5], "must be a tensor, not a list"),
        (RuntimeError, torch.rand(2, 3, 8, 8, dtype=torch.float64), "weights are float32"),
        (
            RuntimeError,
            torch.rand(2, 3, 8, 8, device="meta"),
            "are on meta, but the weights on cpu",
        ),
    ],
)
def test_images(error: type[Exception], images: Tensor, match: str) -> None:
    assert_refused(error, match, features(), images)
    assert_refused(error, match, StyleLoss({"relu2_1": 1.0}, features=features()), images, images)


def test_the_smallest_images() -> None:
    deep = VGGFeatures("vgg11", ["relu5_1"])
    assert deep(torch.rand(1, 3, 16, 17))["relu5_1"].shape == (1, 512, 1, 1)
    assert_refused(ValueError, "needs 16x16", deep, torch.rand(1, 3, 15, 17))
    assert VGGFeatures("vgg11", ["relu5_1"], pooling="l2")(torch.rand(1, 3, 1, 1))


def test_maps() -> None:
    assert_refused(ValueError, r"must be \(N, C, H, W\), but", gram_matrix, torch.rand(3, 8, 8))


# ------------------------------------------------------------------------------------------ targets


def test_targets() -> None:
    images = torch.rand(2, 3, 8, 8)
    loss, style = content(), StyleLoss({"relu1_1": 1.0}, features=features())
    for target in (torch.rand(3, 3, 8, 8), torch.rand(2, 3, 8, 9)):
        assert_refused(ValueError, "relu1_1 of the target is", loss, images, target)
        assert_refused(ValueError, "of the input's size", loss, images, loss.target(target))
    assert_refused(ValueError, "of StyleLoss, not of this", loss, images, style.target(images))
    assert_refused(ValueError, "as many or one", style, images, torch.rand(3, 3, 8, 8))
    other = StyleLoss({"relu2_1": 1.0}, features=features()).target(images)
    assert_refused(
        ValueError, "no relu1_1 among the taps of the target: relu2_1", style, images, other
    )


def test_a_target_on_another_device() -> None:
    loss = content()
    target = loss.target(torch.rand(1, 3, 8, 8))
    target.of_taps["relu1_1"] = target.of_taps["relu1_1"].to("meta")
    assert_refused(RuntimeError, "target is on meta", loss, torch.rand(2, 3, 8, 8), target)


# ------------------------------------------------------------------------------------------ weights


def test_weights_of_another_architecture() -> None:
    vgg13 = torchvisions("vgg13")
    assert_refused(ValueError, "are those of vgg13, not of vgg11", features, weights=vgg13)
    # Its first layers are those of VGG-13, and of their shapes.
    assert_refused(ValueError, "not of vgg16", VGGFeatures, "vgg16", ["relu1_2"], weights=vgg13)
    norms = torchvisions("vgg11_bn")
    assert_refused(ValueError, "are those of vgg11_bn", features, weights=norms)
    assert_refused(ValueError, "aren't those of a VGG", features, weights=nn.Linear(4, 4))
    assert_refused(ValueError, "aren't those of a VGG", features, weights={})
    few = VGGFeatures("vgg11", ["relu1_1"])
    assert_refused(ValueError, "end before conv2_1", features, weights=few)
    state = few.state_dict() | {"features.0.weight": torch.zeros(32, 3, 3, 3)}
    assert_refused(
        ValueError, r"is \(32, 3, 3, 3\), but", VGGFeatures, "vgg11", ["relu1_1"], weights=state
    )
    del state["features.0.weight"]
    assert_refused(
        ValueError, "no tensor features.0.weight", VGGFeatures, "vgg11", ["relu1_1"], weights=state
    )
    assert_refused(TypeError, "they are a int", features, weights=3)


def test_weights_in_files(tmp_path) -> None:
    def written(name: str, content: object) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return str(path)

    whole = written("whole.pth", features().state_dict())
    with open(whole, "rb") as file:
        start = file.read(1000)
    for name, content in {
        "empty.pth": b"",
        "page.pth": b"<html>Not found</html>",
        "cut.pth": start,
        "model.pth": features(),
        "cut.safetensors": start,
    }.items():
        assert_refused(
            ValueError, f"{name} is no readable", features, weights=written(name, content)
        )
    assert_refused(ValueError, "holds a list", features, weights=written("list.pth", [1]))
    assert_refused(FileNotFoundError, "there is no file", features, weights="nowhere.pth")
    features(weights=whole)


def test_weights_by_another_name() -> None:
    assert_refused(
        ValueError, "vgg11 has no weights 'IMAGENET'; torchvision has IMAGENET1K_V1", features,
        weights="IMAGENET",
    )  # fmt: skip


@pytest.mark.parametrize("missing", ["torchvision", "safetensors", "lpips"])
def test_packages_that_are_missing(missing: str, monkeypatch, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for module in ("torchvision.models", "safetensors"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    call = {
        "torchvision": lambda: features(weights="DEFAULT"),
        "safetensors": lambda: features(weights=path),
        "lpips": lambda: lpips(linear_weights=None),
    }[missing]
    assert_refused(ImportError, missing, call)


def test_linear_weights() -> None:
    assert_refused(ValueError, "have no lin0", lpips, linear_weights={})
    assert_refused(ValueError, r"\(64,\) channels", lpips, linear_weights=[torch.rand(64)])
    assert_refused(TypeError, "must be tensors", lpips, linear_weights=[1.0] * 5)
    assert_refused(ValueError, "must have alpha", DISTS, vgg_weights=None, dists_weights={})


# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("input_range", "low", "high"),
    [((0, 1), 0, 255), ((0, 1), -1, 1), ((-1, 1), 0, 255), ((0, 255), 0, 1)],
)
def test_a_range_that_cannot_be_meant(input_range, low: float, high: float) -> None:
    images = torch.rand(2, 3, 8, 8) * (high - low) + low
    own = features(input_range=input_range)
    with pytest.warns(UserWarning, match=f"input_range says {input_range[0]:g} to") as seen:
        own(images)
        own(images)
    assert len(seen) == 1 and seen[0].filename == __file__


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 8, 8),
        torch.rand(1, 3, 8, 8) * 0.01,
        torch.rand(1, 3, 8, 8) * 1.2 - 0.1,
        torch.rand(0, 3, 8, 8),
    ],
    ids=["black", "dark", "overshoot", "none"],
)
def test_ranges_that_can(images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features()(images)


def test_only_the_first_calls_are_looked_at() -> None:
    own, images = features(), torch.rand(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "VGGFeatures")
        torch.compile(own, backend="eager", fullgraph=True)(255 * images)
        torch.export.export(own, (255 * images,))
        torch.func.vmap(own)(255 * images.unsqueeze(0))
        torch.jit.trace(own, 255 * images, strict=False, check_trace=False)
        for _ in range(4):
            own(images)
        own(255 * images)
