"""The data sets that torchvision knows, in small: written in their own formats, read as it does."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from matplotlib.image import imread

from tests.train.test_train import TINY, Run, assert_same_run, metrics, run
from vgg_fast.models import VGG
from vgg_fast.train import checkpoint, data, idx, plots
from vgg_fast.train.data import DataError
from vgg_fast.train.dataset import DEVIATION, MEAN, mean_and_deviation
from vgg_fast.train.inputs import Input
from vgg_fast.train.program import main

__all__ = ["run"]

READERS = torchvision.datasets
COUNTS = {"train": 30, "t10k": 20}


def write_idx(folder: Path, names: dict[str, str], classes: int, plain: bool = True) -> None:
    """Random images and labels under these names of their parts."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(len(names) + classes)
    for part, name in names.items():
        images = torch.randint(256, (COUNTS[part], 28, 28), generator=generator)
        labels = torch.randint(classes, (COUNTS[part],), generator=generator)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{name}-{kind}-ubyte"
            idx.write(path.with_suffix(".gz"), values.to(torch.uint8))
            if plain:
                path.write_bytes(gzip.decompress(path.with_suffix(".gz").read_bytes()))
                path.with_suffix(".gz").unlink()


def write_cifar(root: Path, reader: Any, monkeypatch: pytest.MonkeyPatch, each: int = 20) -> None:
    """Files of ``each`` random images, and ``reader`` without its checksums."""
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    fine = reader is READERS.CIFAR100
    names = [f"class {i}" for i in range(100 if fine else 10)]
    for file, _ in (*reader.train_list, *reader.test_list):
        labels = [int(label) for label in rng.integers(0, len(names), each)]
        values = rng.integers(0, 256, (each, 3072), dtype=np.uint8)
        entry = {"data": values, "fine_labels" if fine else "labels": labels}
        (folder / file).write_bytes(pickle.dumps(entry))
    (folder / reader.meta["filename"]).write_bytes(pickle.dumps({reader.meta["key"]: names}))
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(reader, which, [[file, None] for file, _ in getattr(reader, which)])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": None})


def assert_as_torchvision(found: data.Dataset, readers: list[Any]) -> None:
    for split, reader in zip((found.train, found.test), readers, strict=True):
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert len(split.images) == len(split.labels) == len(reader)
        for image, label, (picture, expected) in zip(
            split.images, split.labels, reader, strict=False
        ):
            values = np.asarray(picture)
            assert np.array_equal(
                image.numpy(), values if values.ndim == 2 else values.transpose(2, 0, 1)
            )
            assert int(label) == expected
    assert found.classes == tuple(readers[0].classes)


class TestMnistAndItsSuccessors:
    NAMES = {"train": "train", "t10k": "t10k"}  # noqa: RUF012
    EMNIST = {"train": "emnist-balanced-train", "t10k": "emnist-balanced-test"}  # noqa: RUF012

    @pytest.mark.parametrize("name", ["mnist", "kmnist", "fashion-mnist"])
    def test_as_torchvision_reads_them(self, tmp_path: Path, name: str) -> None:
        reader = {"mnist": READERS.MNIST, "kmnist": READERS.KMNIST}.get(name, READERS.FashionMNIST)
        write_idx(tmp_path / reader.__name__ / "raw", self.NAMES, 10)
        found = data.load(name, tmp_path)
        assert_as_torchvision(found, [reader(str(tmp_path), train=part) for part in (True, False)])
        assert found.name == name and found.channels == 1
        assert found.source == str(tmp_path / reader.__name__ / "raw")

    def test_emnist_is_turned_upright(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "EMNIST/raw", self.EMNIST, 47)
        found = data.load("emnist", tmp_path)
        assert len(found.classes) == 47
        for split, train in ((found.train, True), (found.test, False)):
            reader = READERS.EMNIST(str(tmp_path), split="balanced", train=train)
            assert torch.equal(split.images, reader.data.transpose(1, 2))
            assert torch.equal(split.labels, reader.targets)
            assert list(found.classes) == reader.classes

    @pytest.mark.parametrize("plain", [True, False])
    @pytest.mark.parametrize("below", ["", "MNIST/raw"])
    def test_plain_or_compressed_in_either_folder(
        self, tmp_path: Path, plain: bool, below: str
    ) -> None:
        write_idx(tmp_path / below, self.NAMES, 10, plain)
        assert data.load("mnist", tmp_path).source == str(tmp_path / below)

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "MNIST/raw", self.NAMES, 10)
        (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte .*MNIST/raw.*https") as raised:
            data.load("mnist", tmp_path)
        assert "train-images" not in str(raised.value) and "\n" not in str(raised.value)

    def test_a_label_out_of_range(self, tmp_path: Path) -> None:
        write_idx(tmp_path, self.EMNIST, 47)
        path = tmp_path / "emnist-balanced-test-labels-idx1-ubyte"
        path.write_bytes(path.read_bytes()[:-1] + b"\x2f")
        with pytest.raises(DataError, match="a label 47, but labels end at 46"):
            data.load("emnist", tmp_path)


class TestCifar:
    @pytest.mark.parametrize("reader", [READERS.CIFAR10, READERS.CIFAR100])
    def test_as_torchvision_reads_them(
        self, tmp_path: Path, reader: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_cifar(tmp_path, reader, monkeypatch)
        found = data.load(reader.__name__.lower(), tmp_path)
        assert_as_torchvision(found, [reader(str(tmp_path), train=part) for part in (True, False)])
        assert found.channels == 3 and found.train.images.shape[1:] == (3, 32, 32)

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as raised:
            data.load("cifar10", tmp_path)
        message = str(raised.value)
        assert "data_batch_1" in message and str(tmp_path / "cifar-10-batches-py") in message
        assert "cifar-10-python.tar.gz" in message and "\n" not in message

    def test_other_files_are_not_unpickled(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sums = READERS.CIFAR10.train_list
        write_cifar(tmp_path, READERS.CIFAR10, monkeypatch)
        monkeypatch.setattr(READERS.CIFAR10, "train_list", sums)
        monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("it was unpickled"))
        with pytest.raises(DataError, match=r"original files of CIFAR10 .*checksum"):
            data.load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "kmnist", "emnist", "cifar10", "cifar100", "folder"])
def test_a_data_set_without_its_folder(run: Run, name: str) -> None:
    arguments = [a for a in TINY if a not in ("--data-root", TINY[TINY.index("--data-root") + 1])]
    assert main([*arguments, "--dataset", name]) == 1
    code, _, err = run("--dataset", name, "--data-root", "nowhere")
    assert code == 1 and err.count("\n") == 1 and "nowhere" in err


def test_a_data_set_without_its_folder_says_how(run: Run) -> None:
    with pytest.raises(DataError, match="--dataset cifar10 needs --data-root"):
        data.load("cifar10")


class TestNormalisation:
    @pytest.mark.parametrize("shape", [(2100, 5, 7), (50, 3, 8, 8)])
    def test_is_that_of_the_pixels(self, shape: tuple[int, ...]) -> None:
        images = torch.randint(30, 256, shape, generator=torch.Generator().manual_seed(0))
        mean, deviation = mean_and_deviation(images.to(torch.uint8))
        values = images.reshape(shape[0], -1, *shape[-2:]).double() / 255
        torch.testing.assert_close(mean, tuple(values.mean((0, 2, 3)).tolist()))
        expected = values.transpose(0, 1).flatten(1).std(1, correction=0)
        torch.testing.assert_close(deviation, tuple(expected.tolist()))

    def test_of_one_colour_can_be_divided_by(self) -> None:
        images = torch.full((4, 3, 2, 2), 51, dtype=torch.uint8)
        assert mean_and_deviation(images) == (3 * (0.2,), 3 * (1.0,))

    def test_fashion_mnist_and_invented_images_keep_theirs(self) -> None:
        for found in (
            data.load("synthetic"),
            data.load(root=Path(TINY[TINY.index("--data-root") + 1])),
        ):
            assert (found.mean, found.deviation) == ((MEAN,), (DEVIATION,))


class TestColourRun:
    @pytest.fixture
    def cifar(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        write_cifar(tmp_path / "cifar", READERS.CIFAR10, monkeypatch)
        return [
            "--dataset",
            "cifar10",
            "--data-root",
            str(tmp_path / "cifar"),
            "--batch-size",
            "25",
        ]

    def test_resumed_equals_uninterrupted(self, run: Run, cifar: list[str]) -> None:
        common = [*cifar, "--epochs", "2", "--fused", "--flip", "--crop", "4", "--erase", "0.5"]
        code, _, err = run(*common, "--output-dir", "whole")
        assert code == 0, err
        run(*common, "--steps", "6", "--output-dir", "parts")
        assert main(["--resume", "parts"]) == 0
        assert_same_run("whole", "parts")

    def test_the_checkpoint_says_what_the_network_takes(self, run: Run, cifar: list[str]) -> None:
        code, _, err = run(*cifar, "--epochs", "2", "--output-dir", "run")
        assert code == 0, err
        state = checkpoint.load(Path("run"))
        whole = data.load("cifar10", Path(cifar[3]))
        assert state["input"] == {
            "channels": 3,
            "image_size": 28,
            "mean": list(whole.mean),
            "deviation": list(whole.deviation),
            "classes": [f"class {i}" for i in range(10)],
        }
        # What it says suffices to get the same accuracy.
        model = VGG(((1, 8), (1, 16)), 3, 28, classifier_width=32).eval()
        model.load_state_dict(state["model"])
        mean, deviation = (
            torch.tensor(state["input"][name])[:, None, None] for name in ("mean", "deviation")
        )
        images = (whole.test.images / 255 - mean) / deviation
        images = torch.nn.functional.interpolate(images, (28, 28), mode="bilinear")
        with torch.no_grad():
            right = (model(images).argmax(1) == whole.test.labels).float().mean()
        assert metrics("run")["result"]["test_accuracy"] == pytest.approx(float(right))

    def test_another_normalisation_is_refused(
        self, run: Run, cifar: list[str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        run(*cifar, "--steps", "3", "--output-dir", "run")
        state = checkpoint.load(Path("run"))
        state["input"]["mean"][0] += 1e-6
        checkpoint.save(Path("run", checkpoint.NAME), state)
        capfd.readouterr()
        code, err = main(["--resume", "run"]), capfd.readouterr().err
        assert code == 1 and "normalised otherwise" in err and err.count("\n") == 1

    def test_pictures(
        self, tmp_path: Path, cifar: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main([*TINY, *cifar, "--steps", "3", "--output-dir", "run"]) == 0
        pixels = imread(tmp_path / "run/samples.png")[..., :3]
        assert (np.ptp(pixels, axis=2) > 0.5).mean() > 0.1, "there are no colours"


def test_input_of_an_earlier_checkpoint_is_fashion_mnists(run: Run) -> None:
    run("--steps", "1", "--output-dir", "run")
    state = checkpoint.load(Path("run"))
    found = Input.from_state(state)
    assert found.as_plain_values() == state["input"]
    del state["input"]
    assert Input.from_state(state) == found
    checkpoint.save(Path("run", checkpoint.NAME), state)
    code, _, err = run("--resume", "run", "--steps", "2")
    assert code == 0, err


@pytest.mark.parametrize("count", [21, 130])
def test_confusion_of_many_classes(tmp_path: Path, count: int) -> None:
    names = [f"class {i}" for i in range(count)]
    plots.confusion_matrix(torch.eye(count).long() * 3, names, tmp_path / "matrix.png")
    pixels = imread(tmp_path / "matrix.png")
    assert pixels.shape[1] >= 150 * min(0.2 * count, 24)
