"""Folders of pictures: any size, mode and format; divided or not; and every way to be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from tests.train.test_train import Run, run
from vgg_fast.train import checkpoint, memory, picture_folder
from vgg_fast.train.data import DataError
from vgg_fast.train.program import main

__all__ = ["run"]

CLASSES = ("cat", "dog", "owl")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def of_one_colour(path: Path, class_: int, number: int) -> None:
    """A picture that is easily told from those of other classes, and from all others."""
    values = np.full((20 + number, 30, 3), 20, dtype=np.uint8)
    values[..., class_] = 200
    values[0, :, 0] = number
    put(path, values)


@pytest.fixture
def undivided(tmp_path: Path) -> Path:
    """A folder of ten PNG for each class."""
    for i, name in enumerate(CLASSES):
        for number in range(10):
            of_one_colour(tmp_path / "pictures" / name / f"{number}.png", i, number)
    return tmp_path / "pictures"


@pytest.fixture
def divided(undivided: Path) -> Path:
    """The same, with the last four of each class in val/."""
    root = undivided.with_name("divided")
    for path in undivided.rglob("*.png"):
        part = root / ("train" if int(path.stem) < 6 else "val") / path.parent.name
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, part)
    return root


class TestDecoding:
    """Against Pillow and torchvision, a picture at a time."""

    @pytest.mark.parametrize("size", [(40, 60), (60, 40), (40, 40), (8, 12), (20, 20)])
    @pytest.mark.parametrize("suffix", ["png", "bmp", "jpg", "webp", "ppm", "tif"])
    def test_shorter_side_and_centre(
        self, tmp_path: Path, size: tuple[int, int], suffix: str
    ) -> None:
        path = tmp_path / f"a.{suffix}"
        put(path, noise(*size))
        found = picture_folder.decode(str(path), 20, 3)
        with Image.open(path) as image:
            expected = functional.center_crop(functional.resize(image.convert("RGB"), 20), 20)
        assert found.dtype == np.uint8 and found.shape == (3, 20, 20)
        # Where the middle doesn't start at a whole pixel, theirs is rounded and ours isn't.
        assert np.abs(found.transpose(1, 2, 0).astype(int) - np.asarray(expected)).max() <= 1

    def test_odd_sizes_keep_the_middle(self, tmp_path: Path) -> None:
        values = np.zeros((31, 77, 3), np.uint8)
        values[:, 36:41] = 255
        put(tmp_path / "a.png", values)
        (found, *_) = picture_folder.decode(str(tmp_path / "a.png"), 15, 3)
        assert np.array_equal(found, found[:, ::-1]) and found[:, 7].min() == 255
        assert found[:, :4].max() == 0

    def test_a_very_long_picture_costs_no_more_than_its_middle(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png", noise(2, 30_000))
        assert picture_folder.decode(str(tmp_path / "a.png"), 224, 3).shape == (3, 224, 224)

    @pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA", "I;16"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_modes(self, tmp_path: Path, mode: str, channels: int) -> None:
        image = Image.new("RGB", (10, 10), (200, 200, 200))
        if mode == "I;16":
            image = Image.fromarray(np.full((10, 10), 200 * 256 + 77, np.uint16))
        elif mode != "RGB":
            image = image.convert(mode, palette=Image.Palette.ADAPTIVE)
        path = tmp_path / f"a.{'tif' if mode in ('CMYK', 'YCbCr') else 'png'}"
        image.save(path)
        with Image.open(path) as again:
            assert again.mode == mode
        found = picture_folder.decode(str(path), 10, channels)
        assert found.shape == (channels, 10, 10)
        if mode != "1":  # which is dithered
            assert np.abs(found.astype(int) - 200).max() <= 2

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparency_is_put_on_white(self, tmp_path: Path, mode: str) -> None:
        values = np.zeros((10, 10, 4), np.uint8)
        values[:, 5:, 3] = 255  # black; the left half is clear
        image = Image.fromarray(values)
        if mode == "P":
            palette = Image.fromarray((values[..., 3] > 0).astype(np.uint8))
            palette.putpalette([9, 9, 9, 0, 0, 0])
            palette.save(tmp_path / "a.png", transparency=0)
        else:
            image.convert(mode).save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as again:
            assert again.mode == mode
        for channels in (1, 3):
            found = picture_folder.decode(str(tmp_path / "a.png"), 10, channels)
            assert (found[:, :, :5] == 255).all() and (found[:, :, 5:] == 0).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_rotation(self, tmp_path: Path, orientation: int) -> None:
        turns = {
            1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1], 5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
            8: lambda a: np.rot90(a),
        }  # fmt: skip
        values, exif = noise(12, 12), Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
        found = picture_folder.decode(str(tmp_path / "a.png"), 12, 3)
        assert np.array_equal(found.transpose(1, 2, 0), turns[orientation](values))

    def test_a_large_photo_at_a_fraction(self, tmp_path: Path) -> None:
        y, x = np.mgrid[0:1200, 0:1600] / 1600
        values = (np.stack([x, y, np.sin(9 * x) / 2 + 0.5], 2) * 255).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / "a.jpg", quality=95)
        found = picture_folder.decode(str(tmp_path / "a.jpg"), 32, 3)
        whole = functional.center_crop(functional.resize(Image.fromarray(values), 32), 32)
        assert np.abs(found.transpose(1, 2, 0).astype(int) - np.asarray(whole)).max() <= 4


class TestDivision:
    def test_train_and_val(self, divided: Path) -> None:
        found = picture_folder.load(divided, 16)
        assert found.classes == CLASSES and found.source == str(divided)
        assert found.train.images.shape == (18, 3, 16, 16)
        assert found.train.labels.bincount().tolist() == [6, 6, 6]
        assert found.test.labels.bincount().tolist() == [4, 4, 4]
        assert len(found.test.labels[:5].unique()) == 3, "a trial would test on one class"
        for split in (found.train, found.test):
            for image, label in zip(split.images, split.labels, strict=True):
                assert int(image[:, 8].float().mean(1).argmax()) == int(label)

    def test_test_instead_of_val(self, divided: Path) -> None:
        before = picture_folder.load(divided, 16).identity()
        (divided / "val").rename(divided / "test")
        assert picture_folder.load(divided, 16).identity() == before

    def test_train_alone(self, divided: Path) -> None:
        shutil.rmtree(divided / "val")
        with pytest.raises(DataError, match="has train, but neither val nor test"):
            picture_folder.load(divided, 16)

    def test_a_class_may_be_called_train(self, undivided: Path) -> None:
        (undivided / "dog").rename(undivided / "train")
        assert picture_folder.load(undivided, 16).classes == ("cat", "owl", "train")

    @pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.3, 3), (0.01, 1), (0.99, 9)])
    def test_each_class_is_divided_and_always_the_same(
        self, undivided: Path, share: float, count: int
    ) -> None:
        found = picture_folder.load(undivided, 16, test_share=share)
        assert found.test.labels.bincount().tolist() == 3 * [count]
        assert found.train.labels.bincount().tolist() == 3 * [10 - count]
        assert len(torch.unique(torch.cat([found.train.images, found.test.images]), dim=0)) == 30
        again = picture_folder.load(undivided, 16, test_share=share)
        assert again.identity() == found.identity()

    def test_what_is_hidden_or_no_picture_does_not_count(self, undivided: Path) -> None:
        before = picture_folder.load(undivided, 16).identity()
        (undivided / ".cache").mkdir()
        (undivided / "notes.txt").touch()
        (undivided / "cat/notes.txt").touch()
        (undivided / "cat/._0.png").touch()
        assert picture_folder.load(undivided, 16).identity() == before

    def test_capitals_and_folders_below(self, undivided: Path) -> None:
        (undivided / "cat/more").mkdir()
        (undivided / "cat/0.png").rename(undivided / "cat/more/0.PNG")
        found = picture_folder.load(undivided, 16)
        assert len(found.train.labels) + len(found.test.labels) == 30

    def test_grey(self, undivided: Path) -> None:
        found = picture_folder.load(undivided, 16, channels=1)
        assert found.train.images.shape == (27, 16, 16) and found.channels == 1
        assert len(found.mean) == len(found.deviation) == 1


class TestWhatIsWrong:
    def refused(self, root: Path, words: str, **options: bool) -> None:
        with pytest.raises(DataError, match=words) as raised:
            picture_folder.load(root, 16, **options)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "none", "isn't a folder")

    def test_without_classes(self, tmp_path: Path) -> None:
        put(tmp_path / "a.png", noise(9, 9))
        self.refused(tmp_path, "has no folders: put the pictures into a folder for each class")

    def test_one_class(self, undivided: Path) -> None:
        for name in CLASSES[1:]:
            shutil.rmtree(undivided / name)
        self.refused(undivided, "has only one class, cat")

    def test_a_class_without_pictures(self, undivided: Path) -> None:
        (undivided / "ant").mkdir()
        (undivided / "ant/a.txt").touch()
        self.refused(undivided, r"pictures/ant has no pictures \(\.jpg")

    def test_a_class_with_one_picture(self, undivided: Path) -> None:
        of_one_colour(undivided / "ant/0.png", 0, 0)
        self.refused(undivided, "pictures/ant has one picture")

    def test_classes_differ(self, divided: Path) -> None:
        (divided / "val/owl").rename(divided / "val/emu")
        self.refused(divided, "train has owl that .*val lacks: both must have the same classes")
        (divided / "val/emu").rename(divided / "val/owl")
        (divided / "val/fox").mkdir()
        self.refused(divided, "val has fox that .*train lacks")

    def test_more_than_the_memory(self, undivided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "of_machine", lambda: 30 * 3 * 16 * 16 - 1)
        self.refused(undivided, "the 30 pictures .*lower --image-size")
        monkeypatch.setattr(memory, "of_machine", lambda: 30 * 3 * 16 * 16)
        picture_folder.load(undivided, 16)

    @pytest.fixture
    def broken(self, undivided: Path) -> Path:
        """Five that can't be decoded, of which one is truncated and one is text."""
        for number in range(4):
            path = undivided / "dog" / f"{number}.png"
            path.write_bytes(path.read_bytes()[: (60, 50, 0, 40)[number]])
        (undivided / "owl/text.jpg").write_text("this is a text, and no picture")
        Image.fromarray(noise(40, 40)).save(undivided / "cat/0.jpg")
        path = undivided / "cat/0.jpg"
        path.write_bytes(path.read_bytes()[:-500])
        return undivided

    def test_a_broken_picture_is_named(self, broken: Path) -> None:
        self.refused(broken, r"(dog/\d\.png|owl/text.jpg) can't be decoded .*--broken-images skip")
        shutil.rmtree(broken / "dog")
        (broken / "owl/text.jpg").unlink()
        self.refused(broken, r"cat/0\.jpg can't be decoded \(.*truncated")

    def test_or_left_out(self, broken: Path) -> None:
        found = picture_folder.load(broken, 16, skip_broken=True)
        whole = torch.cat([found.train.labels, found.test.labels])
        assert whole.bincount().tolist() == [10, 6, 10]
        (note,) = found.notes
        assert "6 files" in note and "cat/0.jpg" in note and "dog/0.png" in note
        for split in (found.train, found.test):
            assert len(split.images) == len(split.labels)
            for image, label in zip(split.images, split.labels, strict=True):
                assert int(image[:, 8].float().mean(1).argmax()) == int(label)

    def test_nothing_left_of_a_class(self, undivided: Path) -> None:
        for path in (undivided / "dog").iterdir():
            path.write_bytes(b"")
        words = "dog has no pictures that can be decoded"
        self.refused(undivided, words, skip_broken=True)

    def test_floats(self, undivided: Path) -> None:
        Image.fromarray(np.zeros((9, 9), np.float32)).save(undivided / "cat/a.tif")
        self.refused(undivided, r"a\.tif can't be decoded \(it holds floating-point values\)")


class TestRun:
    @pytest.mark.parametrize("channels", ["1", "3", None])
    def test_learns_and_goes_on(
        self, run: Run, undivided: Path, channels: str | None, capfd: pytest.CaptureFixture[str]
    ) -> None:
        more = [] if channels is None else ["--channels", channels]
        common = [
            "--dataset",
            "folder",
            "--data-root",
            str(undivided),
            "--test-share",
            "0.4",
            *more,
        ]
        common += ["--batch-size", "6", "--lr", "0.02", "--epochs", "12"]
        code, out, err = run(*common, "--output-dir", "run")
        assert code == 0, err
        assert "18 training and 12 test images" in out
        state = checkpoint.load(Path("run"))
        assert state["input"]["channels"] == int(channels or 3)
        assert state["input"]["classes"] == list(CLASSES)
        if channels != "1":
            assert state["history"][-1]["test_accuracy"] == 1.0
        of_one_colour(undivided / "cat/0.png", 1, 7)
        code, err = main(["--resume", "run"]), capfd.readouterr().err
        assert code == 1 and "other images" in err

    def test_channels_cannot_change(self, run: Run, undivided: Path) -> None:
        common = ["--dataset", "folder", "--data-root", str(undivided), "--batch-size", "6"]
        assert run(*common, "--channels", "3", "--steps", "2", "--output-dir", "run")[0] == 0
        code, _, err = run(*common, "--resume", "run", "--channels", "1")
        assert code == 1 and "--channels can't change from 3 to 1" in err

    def test_what_is_left_out_is_told(self, run: Run, undivided: Path) -> None:
        (undivided / "cat/0.png").write_bytes(b"")
        common = ["--dataset", "folder", "--data-root", str(undivided), "--batch-size", "6"]
        code, _, err = run(*common, "--steps", "1")
        assert code == 1 and "cat/0.png can't be decoded" in err and err.count("\n") == 1
        code, out, err = run(*common, "--steps", "1", "--broken-images", "skip")
        assert code == 0 and f"can't be decoded: {undivided / 'cat/0.png'}" in out
