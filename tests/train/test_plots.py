"""The pictures of a run, and the earlier picture where one can't be made."""

from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from matplotlib.colors import same_color, to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn

from vgg_fast.layers import Conv3x3, MaxPool2x2
from vgg_fast.models import SEED_ARCH, VGG
from vgg_fast.train import plots
from vgg_fast.train.config import TrainingError

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
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return min(picture.shape[:2]) > 300 and 0.005 < share < 0.9


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from here on, drawn."""
    drawn: list[Figure] = []
    save = plots._save

    def keep(figure: Figure, path: Path) -> None:
        save(figure, path)
        drawn.append(figure)

    monkeypatch.setattr(plots, "_save", keep)
    return drawn


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_curves(tmp_path: Path, epochs: int) -> None:
    plots.curves(HISTORY[:epochs], tmp_path / "curves.png", "a run")
    assert is_drawn(tmp_path / "curves.png")


def test_curves_show_every_value_at_whole_epochs(tmp_path: Path, figures: list[Figure]) -> None:
    for history in (HISTORY[:1], HISTORY):
        plots.curves(history, tmp_path / "curves.png")
        for axes, what in zip(figures[-1].axes, ("loss", "accuracy"), strict=True):
            (low, high), (first, last) = axes.get_ylim(), axes.get_xlim()
            for line, part in zip(axes.lines, ("train", "test"), strict=True):
                values = [row[f"{part}_{what}"] for row in history]
                assert list(line.get_ydata()) == values
                assert all(low < value < high for value in values)
            shown = [tick for tick in axes.get_xticks() if first <= tick <= last]
            assert shown and all(tick == int(tick) for tick in shown)


def test_curves_mark_what_is_not_finite(tmp_path: Path, figures: list[Figure]) -> None:
    nan, inf = float("nan"), float("inf")
    plots.curves([HISTORY[0], {**HISTORY[1], "train_loss": inf}], tmp_path / "curves.png")
    loss, accuracy = figures[0].axes
    crosses = [line for line in loss.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[2]]
    assert crosses[0].get_label() == "train: not finite"
    assert not [line for line in accuracy.lines if line.get_marker() == "x"]
    assert not [text.get_text() for text in loss.texts]

    nothing = [{**row, "train_loss": nan, "test_loss": inf} for row in HISTORY]
    plots.curves(nothing, tmp_path / "curves.png")
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["no finite value"]


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
    assert is_drawn(tmp_path / "samples.png")


def test_samples_of_nothing(tmp_path: Path, figures: list[Figure]) -> None:
    nothing = torch.zeros(0, 28, 28, dtype=torch.uint8)
    plots.samples(nothing, torch.zeros(0), CLASSES, tmp_path / "samples.png", torch.zeros(0))
    assert min(imread(tmp_path / "samples.png").shape[:2]) > 300
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["no images"]


def test_samples_mark_right_and_wrong(tmp_path: Path, figures: list[Figure]) -> None:
    images = torch.zeros(3, 28, 28, dtype=torch.uint8)
    labels, predictions = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2])
    plots.samples(images, labels, CLASSES, tmp_path / "samples.png", predictions)
    (axes,) = figures[0].axes
    texts = [(text.get_text(), text.get_color()) for text in axes.texts]
    assert [text for text, _ in texts] == ["shirt", "✓ shirt", "bag", "✗ boot", "boot", "✓ boot"]
    assert same_color(texts[1][1], plots.GREEN) and same_color(texts[3][1], plots.RED)
    assert len(axes.images) == 3
    assert [frame.get_xy() for frame in axes.patches] == [(1.2, 0)]  # around the second


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of words of the drawing that touch."""
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        (a, b)
        for i, (a, first) in enumerate(boxes)
        for b, second in boxes[i + 1 :]
        if first.overlaps(second)
    ]


@pytest.mark.parametrize(
    ("size", "width", "fused"), [(224, 1.0, False), (224, 1.0, True), (32, 0.25, True)]
)
def test_network_is_labelled(
    tmp_path: Path, figures: list[Figure], size: int, width: float, fused: bool
) -> None:
    # On the meta device: nothing is computed, and the seed's 129 million parameters take no memory.
    model = VGG(SEED_ARCH, image_size=size, width=width, fused=fused, device="meta")
    plots.network(model, (1, size, size), tmp_path / "network.png", "a network")
    (figure,) = figures
    assert overlapping(figure) == []
    assert all(figure.bbox.containsx(text.get_window_extent().x1) for text in figure.axes[0].texts)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert figure.axes[0].get_title() == f"{total:,} parameters"
    (legend,) = figure.legends
    kinds = ["input", "fused" if fused else "conv", "pool", "linear"]
    shown = {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    assert shown == {plots.KINDS[kind][1]: plots.KINDS[kind][0] for kind in kinds}


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
    tail = [
        ("linear", "linear\nReLU", (16,), 32 * 16 + 16),
        ("linear", "linear\nReLU", (16,), 16 * 16 + 16),
        ("linear", "linear", (10,), 16 * 10 + 10),
    ]
    assert plots.stages_of(plain, (1, 8, 8)) == [
        ("input", "input", (1, 8, 8), 0),
        ("conv", "conv 3×3\nReLU", (4, 8, 8), 40),
        ("pool", "pool 2×2", (4, 4, 4), 0),
        ("conv", "conv 3×3\nReLU", (8, 4, 4), 296),
        ("conv", "conv 3×3\nReLU", (8, 4, 4), 584),
        ("pool", "pool 2×2", (8, 2, 2), 0),
        *tail,
    ]
    assert plots.stages_of(fused, (1, 8, 8)) == [
        ("input", "input", (1, 8, 8), 0),
        ("fused", "conv 3×3\nReLU", (4, 8, 8), 40),
        ("pool", "pool 2×2", (4, 4, 4), 0),
        ("fused", "conv 3×3\nReLU", (8, 4, 4), 296),
        ("fused", "conv 3×3\nReLU", (8, 4, 4), 584),
        ("pool", "pool 2×2", (8, 2, 2), 0),
        *tail,
    ]


def test_stages_of_other_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, (1, 3)), nn.MaxPool2d((2, 1)), MaxPool2x2(), Conv3x3(4, 2, bias=False)
    )
    assert plots.stages_of(model, (1, 8, 10)) == [
        ("input", "input", (1, 8, 10), 0),
        ("conv", "conv 1×3", (4, 8, 8), 16),
        ("pool", "pool 2×1", (4, 4, 8), 0),
        ("pool", "pool 2×2", (4, 2, 4), 0),
        ("fused", "conv 3×3", (2, 2, 4), 72),
    ]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"),
        (640, "640"),
        (999, "999"),
        (1000, "1.00 k"),
        (73_856, "73.9 k"),
        (590_080, "590 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (102_764_544, "103 M"),
        (2_000_000_000, "2.00 G"),
    ],
)
def test_numbers_of_parameters_are_short(count: int, words: str) -> None:
    assert plots._short(count) == words


def test_the_earlier_picture_stays_where_one_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "network.png"
    path.write_bytes(b"earlier")
    with pytest.raises(RuntimeError):
        plots.network(nn.Sequential(nn.Linear(3, 2)), (1, 8, 8), path, "wrong shape")
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_the_earlier_picture_stays_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(figure: Figure, file: BinaryIO, **options: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "curves.png"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(TrainingError, match=r"curves.png can't be written \(No space left"):
        plots.curves(HISTORY, path)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
