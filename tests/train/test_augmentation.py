"""Each augmentation against a plain one of a single image, and over a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.test_train import Run, assert_same_run, metrics, run, weights
from vgg_fast.train import checkpoint
from vgg_fast.train.augmentation import AREA, Augmentation, Drawn, views
from vgg_fast.train.batches import DEVIATION, MEAN, Batches
from vgg_fast.train.config import TrainingError, resolved
from vgg_fast.train.dataset import Split
from vgg_fast.train.options import Config

__all__ = ["run"]

COUNT, HEIGHT, WIDTH = 40, 9, 12


def pictures(channels: int) -> Tensor:
    values = torch.rand(COUNT, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    return values + 0.01  # zeros come from augmentation alone


def moved(image: Tensor, flip: bool, down: int, right: int, by: int, border: str) -> Tensor:
    """One image, a pixel at a time."""
    channels, height, width = image.shape
    result = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                row, column = y + down - by, x + right - by
                if border == "reflect":
                    row, column = reflected(row, height), reflected(column, width)
                if 0 <= row < height and 0 <= column < width:
                    result[c, y, x] = image[c, row, width - 1 - column if flip else column]
    return result


def reflected(place: int, size: int) -> int:
    place = abs(place)
    return 2 * (size - 1) - place if place >= size else place


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("border", ["zeros", "reflect"])
def test_flips_and_shifts_are_those_of_each_image(channels: int, border: str) -> None:
    images, augmentation = pictures(channels), Augmentation(flip=True, crop=3, border=border)
    drawn = augmentation.draw(COUNT, (HEIGHT, WIDTH), torch.Generator().manual_seed(2))
    found = augmentation.moved(images, drawn)
    assert drawn.flips is not None and drawn.shifts is not None
    assert 0 < int(drawn.flips.sum()) < COUNT
    assert drawn.shifts.unique().tolist() == list(range(7))
    for i, image in enumerate(images):
        down, right = (int(shift) for shift in drawn.shifts[:, i, 0, 0])
        expected = moved(image, bool(drawn.flips[i]), down, right, 3, border)
        assert torch.equal(found[i], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_rectangle_of_each_image_is_erased(channels: int) -> None:
    images, augmentation = pictures(channels), Augmentation(erase=0.5)
    drawn = augmentation.draw(COUNT, (HEIGHT, WIDTH), torch.Generator().manual_seed(2))
    found = augmentation.erased(images, drawn)
    assert drawn.rectangles is not None
    for i, (top, bottom, left, right) in enumerate(drawn.rectangles.T.tolist()):
        expected = images[i].clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(found[i], expected)
    assert 10 < sum(torch.equal(a, b) for a, b in zip(images, found, strict=True)) < 30


@pytest.mark.parametrize("size", [(28, 28), (100, 100), (64, 200), (3, 50)])
def test_the_area_of_rectangles(size: tuple[int, int]) -> None:
    drawn = Augmentation(erase=1.0).draw(5000, size, torch.Generator().manual_seed(3))
    assert drawn.rectangles is not None
    top, bottom, left, right = drawn.rectangles
    assert int(top.min()) == 0 and int(bottom.max()) == size[0]
    assert int(left.min()) == 0 and int(right.max()) == size[1]
    rows, columns = bottom - top, right - left
    assert int(rows.min()) >= 1 and int(columns.min()) >= 1
    if min(size) < 28:
        return  # whole pixels are too coarse
    shares = (rows * columns) / (size[0] * size[1])
    assert 0.7 * AREA[0] < float(shares.min()) and float(shares.max()) < 1.1 * AREA[1]
    assert float(shares.mean()) == pytest.approx(sum(AREA) / 2, rel=0.05)
    ratio = rows / columns
    assert float(ratio.min()) < 0.5 and float(ratio.max()) > 2


def test_what_is_erased_is_the_mean_whatever_the_normalisation() -> None:
    images = torch.full((30, 3, 8, 8), 200, dtype=torch.uint8)
    batches = Batches(
        Split(images, torch.zeros(30, dtype=torch.long)),
        30,
        8,
        augmentation=Augmentation(erase=1.0),
        mean=(0.1, 0.2, 0.3),
        deviation=(0.5, 0.25, 0.2),
    )
    ((x, _),) = batches
    expected = (200 / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 0.2])
    for image in x:
        erased = (image == 0).all(0)
        assert 0 < int(erased.sum()) < 64
        others = image[:, ~erased]
        torch.testing.assert_close(others, expected[:, None].expand_as(others))


class TestOptions:
    def test_augment_is_flip_and_crop(self) -> None:
        assert Augmentation.of(Config(augment=True)) == Augmentation(flip=True, crop=2)
        assert Augmentation.of(Config(flip=True, crop=2)) == Augmentation(flip=True, crop=2)
        assert Augmentation.of(Config(augment=True, crop=4)).crop == 4
        assert not Augmentation.of(Config())

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"preset": "fast", "alternate_flips": True}, "add --flip"),
            ({"erase": 1.5}, r"--erase must be in \[0, 1\]"),
            ({"erase": float("nan")}, r"--erase must be in \[0, 1\]"),
            ({"crop": -1}, "--crop must be at least 0"),
            ({"test_share": 0.0}, "--test-share must be in"),
            ({"channels": 3}, "--channels is for --dataset folder"),
        ],
    )
    def test_what_is_refused(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(TrainingError, match=words):
            resolved(Config(device="cpu", **options))  # type: ignore[arg-type]

    def test_a_crop_of_the_whole_image(self, run: Run) -> None:
        code, _, err = run("--crop", "28")
        assert code == 1 and "--crop must be less than the 28 pixels" in err
        assert err.count("\n") == 1 and not list(Path("runs").iterdir())

    def test_augment_and_its_parts_give_the_same_run(self, run: Run) -> None:
        run("--augment", "--steps", "6", "--output-dir", "one")
        run("--flip", "--crop", "2", "--steps", "6", "--output-dir", "other")
        run("--steps", "6", "--output-dir", "plain")
        assert_same_run("one", "other")
        pairs = zip(weights("one").values(), weights("plain").values(), strict=True)
        assert not all(torch.equal(a, b) for a, b in pairs)


class TestAlternateFlips:
    AUGMENTATION = Augmentation(flip=True, alternate=True, seed=4)

    def test_two_epochs_have_each_image_both_ways(self) -> None:
        values = pictures(1)[:, 0, :, :9].mul(250).to(torch.uint8)
        split = Split(values, torch.arange(COUNT))
        batches = Batches(
            split,
            7,
            9,
            shuffle=True,
            generator=torch.Generator().manual_seed(0),
            augmentation=self.AUGMENTATION,
        )
        plain = dict(self.by_label(Batches(split, 7, 9)))
        seen: list[dict[int, bool]] = []
        for epoch in range(4):
            batches.epoch = epoch
            seen.append(
                {label: not torch.equal(x, plain[label]) for label, x in self.by_label(batches)}
            )
            for label, x in self.by_label(batches):
                assert torch.equal(x.flip(2) if seen[-1][label] else x, plain[label])
        assert 10 < sum(seen[0].values()) < 30
        assert seen[0] == seen[2] and seen[1] == seen[3]
        assert all(seen[0][i] != seen[1][i] for i in range(COUNT))

    @staticmethod
    def by_label(batches: Batches) -> list[tuple[int, Tensor]]:
        return [
            (int(y), x) for images, labels in batches for x, y in zip(images, labels, strict=True)
        ]

    def test_another_seed_flips_others(self) -> None:
        other = Augmentation(flip=True, alternate=True, seed=5)
        flips = [a.flips_in(0, 500) for a in (self.AUGMENTATION, other, self.AUGMENTATION)]
        assert flips[0] is not None and flips[1] is not None and flips[2] is not None
        assert torch.equal(flips[0], flips[2])
        assert 150 < int((flips[0] ^ flips[1]).sum()) < 350

    @pytest.mark.parametrize("stop", ["4", "13"])
    def test_resuming_reproduces_them(self, run: Run, stop: str) -> None:
        common = ["--epochs", "2", "--flip", "--alternate-flips", "--crop", "1", "--erase", "0.3"]
        common += ["--crop-border", "reflect"]
        run(*common, "--output-dir", "whole")
        run(*common, "--steps", stop, "--output-dir", "parts")
        code, _, err = run("--resume", "parts")
        assert code == 0, err
        assert_same_run("whole", "parts")


def test_a_part_of_what_was_drawn_is_that_of_these_images() -> None:
    augmentation, images = Augmentation(flip=True, crop=2, erase=0.5), pictures(3)
    drawn = augmentation.draw(COUNT, (HEIGHT, WIDTH), torch.Generator().manual_seed(2))
    whole = augmentation.erased(augmentation.moved(images, drawn), drawn)
    part = slice(10, 25)
    own = drawn.of(part)
    assert torch.equal(augmentation.erased(augmentation.moved(images[part], own), own), whole[part])
    assert Drawn().of(part) == Drawn()


class TestViews:
    def test_are_those_of_each_image(self) -> None:
        images = pictures(3)
        found = views(images)
        assert len(found) == 6 and torch.equal(found[0], images)
        for i, image in enumerate(images[:3]):
            for view, flip, start in zip(
                found, 3 * [False] + 3 * [True], 2 * [1, 2, 0], strict=True
            ):
                expected = moved(image, False, start, start, 1, "reflect")
                assert torch.equal(view[i], expected.flip(2) if flip else expected)

    def test_their_accuracy_is_reported_apart(self, run: Run) -> None:
        run("--epochs", "2", "--output-dir", "plain")
        code, out, err = run("--epochs", "2", "--average-views", "--output-dir", "views")
        assert code == 0, err
        found = metrics("views")
        averaged = [row.pop("test_accuracy_averaged") for row in found["history"]]
        assert found["result"]["test_accuracy_averaged"] == averaged[-1]
        assert f"averaged {averaged[0]:.4f}" in out
        accuracies = [row["test_accuracy"] for row in metrics("plain")["history"]]
        assert [row["test_accuracy"] for row in found["history"]] == accuracies
        assert averaged != accuracies and averaged[-1] > 0.3
        assert "test_accuracy_averaged" not in metrics("plain")["result"]
        assert averaged[-1] == pytest.approx(self.reference("views"))

    @staticmethod
    def reference(folder: str) -> float:
        """From the checkpoint alone, a view at a time."""
        from tests.train.test_train import SAMPLE
        from vgg_fast.models import VGG
        from vgg_fast.train import data

        split = data.load(root=SAMPLE).test
        model = VGG(((1, 8), (1, 16)), image_size=28, classifier_width=32).eval()
        model.load_state_dict(checkpoint.load(Path(folder))["model"])
        images = (split.images[:, None] / 255 - MEAN) / DEVIATION
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
        total = torch.zeros(len(images), 10)
        with torch.no_grad():
            for start in (0, 1, 2):
                view = padded[:, :, start : start + 28, start : start + 28].contiguous()
                total += model(view) + model(view.flip(3))
        return float((total.argmax(1) == split.labels).float().mean())

    def test_an_earlier_run_goes_on_with_it(self, run: Run) -> None:
        run("--epochs", "2", "--steps", "10", "--save-every", "1", "--output-dir", "run")
        state = checkpoint.load(Path("run"))
        state["config"]["steps"] = None  # as if it had been interrupted: its row stays
        checkpoint.save(Path("run", checkpoint.NAME), {**state, "format": checkpoint.FORMAT})
        code, _, err = run("--resume", "run", "--average-views")
        assert code == 0, err
        rows = metrics("run")["history"]
        assert ["test_accuracy_averaged" in row for row in rows] == [False, True]
        code, _, err = run("--resume", "run")
        assert code == 0, err
