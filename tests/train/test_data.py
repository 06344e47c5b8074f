"""Finding, checking and cutting up Fashion-MNIST; nothing here reaches a network."""

import gzip
import hashlib
import shutil
import socket
import subprocess
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from vgg_fast.train import data, fashion_mnist, idx
from vgg_fast.train.augmentation import NOTHING, Augmentation
from vgg_fast.train.batches import DEVIATION, MEAN, Batches
from vgg_fast.train.data import DataError, Split
from vgg_fast.train.options import Config

SAMPLE = Path(__file__).parents[1] / "data"
AUGMENT = Augmentation.of(Config(augment=True))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A copy of the sample, to break."""
    for file in SAMPLE.glob("*.gz"):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No package, an empty cache, and neither network nor apt; gives the cache."""
    monkeypatch.setattr(fashion_mnist, "PACKAGE_FOLDER", tmp_path / "usr/share")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "_reachable", lambda url: False)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    return tmp_path / "cache/vgg_fast/fashion-mnist"


def as_originals(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the sample in ``folder`` pass for the whole data set."""
    files = {
        name: hashlib.sha256(read_gz(folder, name)).hexdigest() for name in fashion_mnist.FILES
    }
    monkeypatch.setattr(fashion_mnist, "FILES", files)


def read_gz(folder: Path, name: str) -> bytes:
    return gzip.decompress((folder / f"{name}.gz").read_bytes())


class TestSample:
    def test_is_balanced_and_small(self) -> None:
        found = data.load(root=SAMPLE)
        for split in (found.train, found.test):
            assert split.images.shape == (500, 28, 28) and split.images.dtype == torch.uint8
            assert split.labels.bincount().tolist() == [50] * 10
        assert sum(file.stat().st_size for file in SAMPLE.iterdir() if file.is_file()) < 1e6

    def test_has_its_licence(self) -> None:
        text = (SAMPLE / "LICENSE").read_text("utf-8")
        assert "MIT License" in text and "Zalando SE" in text


class TestSearch:
    def test_plain_files_do_as_well(self, sample: Path) -> None:
        for file in list(sample.glob("*.gz")):
            (sample / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
            file.unlink()
        found, original = data.load(root=sample), data.load(root=SAMPLE)
        assert torch.equal(found.train.images, original.train.images)
        assert torch.equal(found.test.labels, original.test.labels)
        assert found.source == str(sample)

    def test_the_package_comes_before_the_cache(
        self, sample: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        as_originals(monkeypatch, SAMPLE)
        shutil.copytree(SAMPLE, nowhere)
        assert data.load().source == str(nowhere)
        monkeypatch.setattr(fashion_mnist, "PACKAGE_FOLDER", sample)
        assert data.load().source == str(sample)

    def test_a_root_without_the_files_is_not_replaced_by_another_folder(self, sample: Path) -> None:
        (sample / "t10k-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(DataError, match=f"{sample} lacks t10k-labels-idx1-ubyte") as raised:
            data.load(root=sample)
        assert "train-" not in str(raised.value)

    def test_nothing_found_lists_every_way(self, nowhere: Path) -> None:
        with pytest.raises(DataError) as raised:
            data.load()
        for way in ("apt-get install", "--data-root", str(nowhere), "http", "--dataset synthetic"):
            assert way in str(raised.value)
        assert not list(nowhere.parent.glob(".*")), "something half fetched was left"

    def test_a_host_that_says_nothing_costs_seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fashion_mnist, "CONNECT_TIMEOUT", 0.1)
        end, ended = fashion_mnist.threading.Event(), fashion_mnist.threading.Event()

        def say_nothing(*_: Any) -> None:
            end.wait(60)
            ended.set()
            raise TimeoutError

        monkeypatch.setattr(socket, "create_connection", say_nothing)
        try:
            assert not fashion_mnist._reachable("http://example.invalid/")
            assert not ended.is_set(), "it waited for the host"
        finally:
            end.set()

    def test_behind_a_proxy_the_proxy_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
            monkeypatch.setenv("no_proxy", "")
            assert fashion_mnist._reachable("http://example.invalid/")

    def test_the_original_files_are_checked(
        self, sample: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fashion_mnist, "PACKAGE_FOLDER", sample)
        with pytest.raises(DataError, match="checksum"):
            data.load()

    def test_unknown_name(self) -> None:
        with pytest.raises(DataError, match="no data set 'cifar'"):
            data.load("cifar")


class TestFetch:
    def test_out_of_the_package(
        self, tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        as_originals(monkeypatch, SAMPLE)
        monkeypatch.setattr(shutil, "which", lambda tool: tool)
        commands = []

        def run(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command[0])
            if "download" in command:
                (cwd / f"{fashion_mnist.PACKAGE}_1_all.deb").touch()
            if command[0].endswith("dpkg-deb"):
                target = cwd / "unpacked" / fashion_mnist.PACKAGE_FOLDER.relative_to("/")
                shutil.copytree(SAMPLE, target)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        assert data.load().source == str(nowhere)
        assert commands == ["apt-get", "dpkg-deb"]
        assert data.load().source == str(nowhere)
        assert len(commands) == 2, "fetched although it is in the cache"

    def test_a_machine_without_package_lists_gets_its_own(
        self, nowhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        as_originals(monkeypatch, SAMPLE)
        monkeypatch.setattr(shutil, "which", lambda tool: tool)
        lists = []

        def run(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
            own = [o.split("=")[1] for o in command if o.startswith("-oDir::State::Lists=")]
            if "update" in command:
                assert Path(own[0], "partial").is_dir() and cwd in Path(own[0]).parents
                lists.extend(own)
            if "download" in command and own != lists[:1]:
                raise AssertionError("other lists than those that were updated")
            if "download" in command and not own:
                return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate it")
            if "download" in command:
                (cwd / f"{fashion_mnist.PACKAGE}_1_all.deb").touch()
            if command[0].endswith("dpkg-deb"):
                shutil.copytree(
                    SAMPLE, cwd / "unpacked" / fashion_mnist.PACKAGE_FOLDER.relative_to("/")
                )
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        assert data.load().source == str(nowhere)
        assert len(lists) == 1

    def test_what_a_killed_process_left_is_removed(
        self, nowhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = nowhere.parent / ".fetch-abc"
        left.mkdir(parents=True)
        (left / "half").touch()
        with pytest.raises(DataError):
            data.load()
        assert not left.exists()

    def test_two_processes_fetch_once(self, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        as_originals(monkeypatch, SAMPLE)
        fetched = []

        def fetch(scratch: Path) -> Path:
            fetched.append(scratch)
            time.sleep(0.1)
            shutil.copytree(SAMPLE, scratch / "raw")
            return scratch / "raw"

        monkeypatch.setattr(fashion_mnist, "_from_torchvision", fetch)
        with ThreadPoolExecutor(4) as pool:
            sources = list(pool.map(lambda _: data.load().source, range(4)))
        assert sources == 4 * [str(nowhere)] and len(fetched) == 1

    def test_a_cache_that_cannot_be_made(
        self, tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(DataError, match=r"cache .*file.* can't be made"):
            data.load()


class TestBrokenFiles:
    @pytest.mark.parametrize("keep", [0, 2, 1000])
    def test_truncated_gz(self, sample: Path, keep: int) -> None:
        file = sample / "train-images-idx3-ubyte.gz"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(DataError, match=str(file)) as raised:
            data.load(root=sample)
        assert "\n" not in str(raised.value)

    def test_flipped_byte(self, sample: Path) -> None:
        file = sample / "train-images-idx3-ubyte.gz"
        contents = bytearray(file.read_bytes())
        contents[len(contents) // 2] ^= 0xFF
        file.write_bytes(contents)
        with pytest.raises(DataError, match=f"{file} is broken"):
            data.load(root=sample)

    @pytest.mark.parametrize(
        ("contents", "words"),
        [
            (b"", "isn't an IDX file"),
            (b"\0\0\x08\x01\0\0", "isn't an IDX file"),
            (b"\0\0\x0d\x01\0\0\0\x01\0", "isn't an IDX file"),  # float32
            (b"\0\0\x08\x03" + 12 * b"\0", "isn't an IDX file"),  # three dimensions
            (b"\0\0\x08\x01\0\0\0\x09\0", "has 9"),
            (b"\0\0\x08\x01\xff\xff\xff\xff\0", "broken"),
        ],
    )
    def test_plain_labels(self, sample: Path, contents: bytes, words: str) -> None:
        (sample / "t10k-labels-idx1-ubyte").write_bytes(contents)
        with pytest.raises(DataError, match=f"t10k-labels-idx1-ubyte .*{words}"):
            data.load(root=sample)

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_no_more_is_read_than_the_header_says(self, sample: Path, suffix: str) -> None:
        """A few kilobytes that unpack to 64 MiB; 6 MB unpack to 6 GiB."""
        contents = b"\0\0\x08\x01\0\0\0\x09" + bytes(64 << 20)
        path = sample / f"labels{suffix}"
        path.write_bytes(gzip.compress(contents) if suffix else contents)
        del contents
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match=r"sizes \[9\] make 17 bytes, .* more than 17"):
                idx.read(path, 1)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 << 20

    def test_a_header_that_speaks_of_more_than_the_machine_has(self, sample: Path) -> None:
        sizes = 3 * b"\x7f\xff\xff\xff"
        (sample / "images").write_bytes(b"\0\0\x08\x03" + sizes + bytes(100))
        with pytest.raises(DataError, match=r"holds [\d,.]+ GiB, and this machine has"):
            idx.read(sample / "images", 3)

    def test_more_labels_than_images(self, sample: Path) -> None:
        idx.write(sample / "train-labels-idx1-ubyte.gz", torch.zeros(501, dtype=torch.uint8))
        with pytest.raises(DataError, match=r"500 images.*501 labels"):
            data.load(root=sample)

    def test_label_out_of_range(self, sample: Path) -> None:
        labels = torch.full((500,), 10, dtype=torch.uint8)
        idx.write(sample / "train-labels-idx1-ubyte.gz", labels)
        with pytest.raises(DataError, match="label 10"):
            data.load(root=sample)

    def test_images_of_another_size(self, sample: Path) -> None:
        images = torch.zeros(500, 27, 28, dtype=torch.uint8)
        idx.write(sample / "train-images-idx3-ubyte.gz", images)
        with pytest.raises(DataError, match="not images of 28 x 28"):
            data.load(root=sample)


class TestBatches:
    @staticmethod
    def numbered(count: int) -> Split:
        images = torch.arange(count, dtype=torch.uint8)[:, None, None].expand(count, 28, 28)
        return Split(images.clone(), torch.arange(count))

    def test_every_image_once_with_its_label(self) -> None:
        batches = Batches(self.numbered(23), 5, 28, shuffle=True, generator=torch.Generator())
        seen = [(x[:, 0, 3, 4], y) for x, y in batches]
        assert [len(y) for _, y in seen] == [5, 5, 5, 5, 3] and len(batches) == 5
        labels = torch.cat([y for _, y in seen])
        assert sorted(labels.tolist()) == list(range(23)) and labels.tolist() != list(range(23))
        pixels = torch.cat([x for x, _ in seen]) * DEVIATION + MEAN
        torch.testing.assert_close(pixels * 255, labels.float())

    def test_drop_last(self) -> None:
        batches = Batches(self.numbered(23), 5, 28, drop_last=True)
        assert len(batches) == 4 == len(list(batches))
        assert all(len(y) == 5 for _, y in batches)

    def test_resized_and_normalised_as_torch_does(self) -> None:
        split = data.load(root=SAMPLE).test
        ((x, _),) = Batches(Split(split.images[:7], split.labels[:7]), 7, 32)
        images = (split.images[:7, None].float() / 255 - MEAN) / DEVIATION
        torch.testing.assert_close(x, interpolate(images, (32, 32), mode="bilinear"))
        assert x.shape == (7, 1, 32, 32) and x.dtype == torch.float32

    @pytest.mark.parametrize("augment", [False, True])
    def test_the_generator_decides_a_pass(self, augment: bool) -> None:
        split = data.load(root=SAMPLE).train
        generator = torch.Generator().manual_seed(3)
        batches = Batches(
            split,
            100,
            28,
            shuffle=True,
            generator=generator,
            augmentation=AUGMENT if augment else NOTHING,
        )
        start = generator.get_state()
        first, second = list(batches), list(batches)
        generator.set_state(start)
        again = list(batches)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0][1], second[0][1])

    def test_augment_flips_and_shifts_each_image(self) -> None:
        image = torch.zeros(28, 28, dtype=torch.uint8)
        image[10, 5] = 255
        split = Split(image.expand(400, 28, 28).clone(), torch.zeros(400, dtype=torch.long))
        batches = Batches(split, 400, 28, augmentation=AUGMENT, generator=torch.Generator())
        ((x, _),) = batches
        places = {(r, c) for _, r, c in (x[:, 0] > 0).nonzero().tolist()}
        rows, columns = range(8, 13), [*range(3, 8), *range(20, 25)]
        assert places == {(r, c) for r in rows for c in columns}


def test_synthetic_is_balanced_and_always_the_same() -> None:
    first, again = data.load("synthetic"), data.load("synthetic")
    assert torch.equal(first.train.images, again.train.images)
    counts = first.train.labels.bincount()
    assert len(counts) == len(first.classes) == 10 and counts.min() == counts.max()
