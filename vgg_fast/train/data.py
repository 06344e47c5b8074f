"""The data sets by name."""

from __future__ import annotations

from pathlib import Path

from vgg_fast.train import fashion_mnist, picture_folder, standard_sets
from vgg_fast.train.dataset import Dataset, Split, synthetic
from vgg_fast.train.fashion_mnist import CLASSES
from vgg_fast.train.idx import DataError
from vgg_fast.train.options import Config

__all__ = ["CLASSES", "DataError", "Dataset", "Split", "load", "of_run"]


def of_run(config: Config) -> Dataset:
    """The data set that a resolved ``config`` names, with all options on it.

    Raises:
        DataError: it can't be found or used.
    """
    if config.dataset != "folder":
        return load(config.dataset, config.data_root)
    assert config.image_size is not None
    return picture_folder.load(
        _required(config.dataset, config.data_root),
        config.image_size,
        channels=3 if config.channels is None else config.channels,
        test_share=config.test_share,
        skip_broken=config.broken_images == "skip",
    )


def load(name: str = "fashion-mnist", root: Path | None = None, download: bool = True) -> Dataset:
    """Find and read a data set that isn't a folder of pictures.

    Args:
        name: "fashion-mnist", "mnist", "kmnist", "emnist", "cifar10" or "cifar100"; or "synthetic",
            ten kinds of invented images.
        root: a folder with the data set's files; only Fashion-MNIST is searched for without it, as
            :func:`vgg_fast.train.fashion_mnist.load` says.
        download: whether anything may be fetched; only Fashion-MNIST ever is.

    Raises:
        DataError: the files can't be found or used; the message says which, and what to do.
    """
    if name == "synthetic":
        return synthetic()
    if name == "fashion-mnist":
        return fashion_mnist.load(root, download)
    if name not in standard_sets.NAMES:
        raise DataError(
            f"there is no data set {name!r}: choose fashion-mnist, "
            f"{', '.join(standard_sets.NAMES)}, folder or synthetic"
        )
    return standard_sets.load(name, _required(name, root))


def _required(name: str, root: Path | None) -> Path:
    if root is None:
        what = "pictures" if name == "folder" else "files"
        raise DataError(f"--dataset {name} needs --data-root: name the folder with its {what}")
    return root
