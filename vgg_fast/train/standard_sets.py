"""MNIST, KMNIST, EMNIST, CIFAR-10 and CIFAR-100, read where somebody has put their files.

LeCun et al. 1998; Clanuwat et al. 2018 (arXiv:1812.01718); Cohen et al. 2017 (arXiv:1702.05373);
Krizhevsky 2009.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision import datasets

from vgg_fast.train import idx
from vgg_fast.train.dataset import Dataset, Split, measured
from vgg_fast.train.idx import DataError


class _Idx(NamedTuple):
    """A data set of IDX files."""

    folders: tuple[str, ...]  # below the root, where they may lie; the first one that has them all
    prefixes: tuple[str, str]  # of the files for training and testing
    classes: tuple[str, ...]
    home: str
    is_transposed: bool = False


# Its split "balanced", of 47 classes: letters whose small and capital forms look alike are one.
_EMNIST = "balanced"
_PARTS = ("train", "t10k")
_IDX = {
    "mnist": _Idx(
        ("", "MNIST/raw"),
        _PARTS,
        tuple(datasets.MNIST.classes),
        "https://ossci-datasets.s3.amazonaws.com/mnist",
    ),
    "kmnist": _Idx(
        ("", "KMNIST/raw"),
        _PARTS,
        tuple(datasets.KMNIST.classes),
        "http://codh.rois.ac.jp/kmnist",
    ),
    "emnist": _Idx(
        ("", "EMNIST/raw", "gzip"),
        (f"emnist-{_EMNIST}-train", f"emnist-{_EMNIST}-test"),
        tuple(datasets.EMNIST.classes_split_dict[_EMNIST]),
        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
        is_transposed=True,
    ),
}
_CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
NAMES = (*_IDX, *_CIFAR)


def load(name: str, root: Path) -> Dataset:
    """Read a data set; nothing is downloaded.

    Args:
        name: one of ``NAMES``. "emnist" is its split "balanced", turned upright: its files have the
            images transposed.
        root: the folder that torchvision's class of the same name would be given; for all but
            CIFAR, it may also hold the IDX files themselves, plain or ``.gz``.

    Raises:
        DataError: a file is missing, or isn't what it should be.
    """
    return _read_idx(name, root) if name in _IDX else _read_cifar(name, root)


def _read_idx(name: str, root: Path) -> Dataset:
    known = _IDX[name]
    pairs = [(f"{p}-images-idx3-ubyte", f"{p}-labels-idx1-ubyte") for p in known.prefixes]
    files = [file for pair in pairs for file in pair]
    folders = [root / folder for folder in known.folders]
    missing = [[file for file in files if idx.find(folder, file) is None] for folder in folders]
    fewest = min(missing, key=len)
    if fewest:
        raise DataError(
            f"{', '.join(fewest)} (plain or .gz) can't be found in "
            f"{' or '.join(map(str, folders))}: get them from {known.home}"
        )
    folder = folders[missing.index(fewest)]
    train, test = (idx.read_split(folder, pair, len(known.classes), {}) for pair in pairs)
    if known.is_transposed:
        train, test = (Split(s.images.mT.contiguous(), s.labels) for s in (train, test))
    return measured(name, str(folder), known.classes, train, test)


def _read_cifar(name: str, root: Path) -> Dataset:
    reader = _CIFAR[name]
    folder = root / reader.base_folder
    names = [file for file, _ in (*reader.train_list, *reader.test_list)]
    names.append(reader.meta["filename"])
    try:
        missing = [file for file in names if not (folder / file).is_file()]
        if missing:
            raise DataError(
                f"{', '.join(missing)} can't be found in {folder}: get {reader.filename} from "
                f"{reader.url}, and unpack it in {root}"
            )
        parts = [reader(str(root), train=train, download=False) for train in (True, False)]
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror}") from error
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        # torchvision compares the checksums before it unpickles anything.
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{folder} doesn't hold the original files of {reader.__name__} (a checksum differs): "
            f"unpack {reader.filename} again"
        ) from error
    train, test = (
        Split(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)
        )
        for part in parts
    )
    return measured(name, str(folder), parts[0].classes, train, test)
