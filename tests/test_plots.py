"""The pictures of a run, and the earlier picture where one can't be made."""

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from torch import nn

from vgg_fast import plots
from vgg_fast.models import VGG

HISTORY = [
    {
        "epoch": e,
        "train_loss": 1 / e,
        "test_loss": 1.1 / e,
        "train_accuracy": 0.5,
        "test_accuracy": 0.4,
    }
    for e in (1, 2, 3)
]
CLASSES = ("shirt", "bag", "boot")


def is_drawn(path: Path) -> bool:
    """Whether the picture is large, and neither empty nor full."""
    picture = imread(path)[..., :3]
    share = float((picture < 0.98).any(-1).mean())
    return min(picture.shape[:2]) > 300 and 0.005 < share < 0.9


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves(tmp_path: Path, epochs: int) -> None:
    plots.curves(HISTORY[:epochs], tmp_path / "curves.png", "a run")
    assert is_drawn(tmp_path / "curves.png")


@pytest.mark.parametrize("counts", [[[5, 1, 0], [0, 9, 0], [2, 0, 3]], [[0, 0, 0]] * 3])
def test_confusion_matrix(tmp_path: Path, counts: list[list[int]]) -> None:
    plots.confusion_matrix(torch.tensor(counts), CLASSES, tmp_path / "confusion.png")
    assert is_drawn(tmp_path / "confusion.png")


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("count", [2, 11])  # less than a row, and a row that isn't full
def test_samples(tmp_path: Path, count: int, predicted: bool) -> None:
    images = torch.randint(256, (count, 28, 28), dtype=torch.uint8)
    labels = torch.arange(count) % 3
    predictions = torch.zeros(count, dtype=torch.long) if predicted else None
    plots.samples(images, labels, CLASSES, tmp_path / "samples.png", predictions)
    assert (tmp_path / "samples.png").stat().st_size > 5000


@pytest.mark.parametrize("fused", [False, True])
def test_network_draws_every_layer(tmp_path: Path, fused: bool) -> None:
    model = VGG(((1, 4), (2, 8)), image_size=8, classifier_width=16, fused=fused).train()
    plots.network(model, (1, 8, 8), tmp_path / "network.png", "a network")
    assert is_drawn(tmp_path / "network.png")
    assert model.training
    assert not any(layer._forward_hooks for layer in model.modules())


def test_stages_are_those_of_the_model() -> None:
    plain = VGG(((1, 4), (2, 8)), image_size=8, classifier_width=16, fused=False)
    fused = VGG(((1, 4), (2, 8)), image_size=8, classifier_width=16)
    tail = [("linear\nReLU", (16,)), ("linear\nReLU", (16,)), ("linear", (10,))]
    assert plots._stages(plain, (1, 8, 8)) == [
        ("input", (1, 8, 8)),
        ("conv 3×3\nReLU", (4, 8, 8)),
        ("pool 2×2", (4, 4, 4)),
        ("conv 3×3\nReLU", (8, 4, 4)),
        ("conv 3×3\nReLU", (8, 4, 4)),
        ("pool 2×2", (8, 2, 2)),
        *tail,
    ]
    assert plots._stages(fused, (1, 8, 8)) == [
        ("input", (1, 8, 8)),
        ("conv 3×3\nReLU\npool\nfused", (4, 4, 4)),
        ("conv 3×3\nReLU\nfused", (8, 4, 4)),
        ("conv 3×3\nReLU\npool\nfused", (8, 2, 2)),
        *tail,
    ]


def test_the_earlier_picture_stays_where_one_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "network.png"
    path.write_bytes(b"earlier")
    with pytest.raises(RuntimeError):
        plots.network(nn.Sequential(nn.Linear(3, 2)), (1, 8, 8), path, "wrong shape")
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
