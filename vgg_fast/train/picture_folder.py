"""Pictures of one's own: a folder for each class, decoded by Pillow into one tensor."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from vgg_fast.train import memory
from vgg_fast.train.dataset import Dataset, Split, measured
from vgg_fast.train.idx import DataError
from vgg_fast.train.pictures import in_8_bits, middle

# Given to the threads at once: a broken picture stops the rest, and Ctrl-C does.
PART = 256
SHOWN = 3  # names in a message
SHUFFLE_SEED = 0
KINDS = ", ".join(IMG_EXTENSIONS)

Sample = tuple[str, int]
"""The path of a picture, and its class."""


def load(
    root: Path, size: int, *, channels: int = 3, test_share: float = 0.1, skip_broken: bool = False
) -> Dataset:
    """Read a folder that has a folder for each class, or train/ and val/ (or test/) with them.

    A folder that isn't divided is: of each class, the same pictures are tested on in every run.
    Pictures of any size and mode become uint8 of ``size`` x ``size``: turned as their EXIF says,
    put on white where they are transparent, the shorter side resized (bilinear, antialiased) and
    the middle cut out. Hidden files and folders don't count, and neither do files of other kinds.

    Args:
        root: the folder.
        size: height and width of the images.
        channels: 1 for grey, 3 for colour.
        test_share: of each class, where the folder isn't divided.
        skip_broken: leave out files that can't be decoded.

    Raises:
        DataError: a class, its pictures or their file is missing or can't be used, or all of them
            need more memory than there is.
    """
    try:
        folders = _parts(root)
        classes = _classes(folders[0])
        if len(folders) == 2:
            _require_same(folders, classes)
        listed = [_shuffled(_pictures(folder, classes)) for folder in folders]
    except OSError as error:
        raise DataError(f"{error.filename or root} can't be read: {error.strerror}") from error
    least = 3 - len(folders)  # one picture of a class can't be divided
    for folder, samples in zip(folders, listed, strict=True):
        _require_each([label for _, label in samples], classes, folder, least, f"({KINDS})")
    _require_memory(root, sum(map(len, listed)), size, channels)
    broken: list[str] = []
    splits = [_decoded(samples, size, channels, skip_broken, broken) for samples in listed]
    for folder, split in zip(folders, splits, strict=True):
        _require_each(split.labels.tolist(), classes, folder, least, "that can be decoded")
    train, test = splits if len(splits) == 2 else _divided(splits[0], test_share)
    return measured("folder", str(root), classes, train, test, _notes(broken))


def decode(path: str, size: int, channels: int) -> np.ndarray:
    """The picture ``path`` as uint8 (channels, size, size).

    Raises:
        Exception: it can't be decoded; Pillow's decoders raise whatever they like.
    """
    with Image.open(path) as opened:
        if opened.mode == "F":  # whose range another picture of the set needn't share
            raise ValueError("it holds floating-point values")
        # A photo of many megapixels is decoded at a fraction of them, where its format can that.
        opened.draft(None, (2 * size, 2 * size))
        picture = in_8_bits(opened).convert("L" if channels == 1 else "RGB")
    values = np.asarray(middle(picture, size))
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


# ------------------------------------------------------------------------------------------------


def _parts(root: Path) -> list[Path]:
    """The folders for training and testing; ``root`` alone, if it isn't divided."""
    if not root.is_dir():
        raise DataError(f"{root} isn't a folder: name one that has a folder for each class")
    if not (root / "train").is_dir() or not _folders(root / "train"):
        return [root]  # "train" may be the name of a class
    for name in ("val", "test"):
        if (root / name).is_dir():
            return [root / "train", root / name]
    raise DataError(
        f"{root} has train, but neither val nor test: add one, or name {root / 'train'} itself, "
        "and --test-share of it will be tested on"
    )


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _classes(root: Path) -> list[str]:
    classes = _folders(root)
    if len(classes) < 2:
        has = f"has only one class, {classes[0]}" if classes else "has no folders"
        raise DataError(f"{root} {has}: put the pictures into a folder for each class")
    return classes


def _require_same(folders: Sequence[Path], classes: Sequence[str]) -> None:
    others = _folders(folders[1])
    for has, lacks, names in (
        (folders[0], folders[1], set(classes) - set(others)),
        (folders[1], folders[0], set(others) - set(classes)),
    ):
        if names:
            raise DataError(
                f"{has} has {_some(sorted(names), 'classes')} that {lacks} lacks: both must have "
                "the same classes"
            )


def _pictures(root: Path, classes: Sequence[str]) -> list[Sample]:
    """All pictures below ``root``, in the order of their classes and names."""
    return make_dataset(
        str(root),
        {name: i for i, name in enumerate(classes)},
        is_valid_file=_is_picture,
        allow_empty=True,
    )


def _shuffled(samples: Sequence[Sample]) -> list[Sample]:
    """Always in the same way: a trial run tests on the first images, which are of all classes."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(SHUFFLE_SEED))
    return [samples[i] for i in order.tolist()]


def _is_picture(path: str) -> bool:
    name = os.path.basename(path)
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")


def _require_each(
    labels: Sequence[int], classes: Sequence[str], folder: Path, least: int, kind: str
) -> None:
    counts = Counter(labels)
    for label, name in enumerate(classes):
        if counts[label] < least:
            has = f"no pictures {kind}"
            if counts[label]:
                has = f"one picture {kind}, and training and testing need one each"
            raise DataError(f"{folder / name} has {has}: put more there, or remove it")


def _divided(split: Split, share: float) -> tuple[Split, Split]:
    """For training and testing; both have each class. ``split``, which is shuffled, is used up."""
    is_test = torch.zeros(len(split.labels), dtype=torch.bool)
    for label in range(int(split.labels.max()) + 1):
        (own,) = (split.labels == label).nonzero(as_tuple=True)
        count = min(max(1, round(share * len(own))), len(own) - 1)
        is_test[own[:count]] = True
    test = Split(split.images[is_test], split.labels[is_test])
    # In place: a copy could be more than the memory holds.
    (kept,) = (~is_test).nonzero(as_tuple=True)
    for to, at in enumerate(kept.tolist()):
        split.images[to] = split.images[at]
    return Split(split.images[: len(kept)], split.labels[kept]), test


def _require_memory(root: Path, count: int, size: int, channels: int) -> None:
    needed, there = count * channels * size**2, memory.of_machine()
    if needed > there:
        raise DataError(
            f"the {count:,} pictures of {root} take {memory.in_gib(needed)} as {size} x {size}, "
            f"and this machine has {memory.in_gib(there)}: lower --image-size, or use fewer "
            "pictures"
        )


def _decoded(
    samples: Sequence[Sample], size: int, channels: int, skip_broken: bool, broken: list[str]
) -> Split:
    """The images of ``samples``; paths that can't be decoded are added to ``broken``."""
    shape = (size, size) if channels == 1 else (channels, size, size)
    images = torch.empty(len(samples), *shape, dtype=torch.uint8)
    labels: list[int] = []
    for (path, label), found in zip(samples, _decode_all(samples, size, channels), strict=True):
        if isinstance(found, Exception):
            if not skip_broken:
                raise DataError(
                    f"{path} can't be decoded ({_reason(found)}): repair or remove it, or leave "
                    "out all such files with --broken-images skip"
                ) from found
            broken.append(path)
            continue
        images[len(labels)] = torch.from_numpy(found.reshape(shape))
        labels.append(label)
    return Split(images[: len(labels)], torch.tensor(labels, dtype=torch.long))


def _decode_all(
    samples: Sequence[Sample], size: int, channels: int
) -> Iterator[np.ndarray | Exception]:
    """What becomes of each, in order. Threads, because Pillow decodes without Python's lock."""

    def attempt(sample: Sample) -> np.ndarray | Exception:
        try:
            return decode(sample[0], size, channels).copy()
        except MemoryError:
            raise
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(samples), PART):
            yield from pool.map(attempt, samples[start : start + PART])


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no picture"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _notes(broken: Sequence[str]) -> list[str]:
    if not broken:
        return []
    return [f"left out, because they can't be decoded: {_some(sorted(broken), 'files')}"]


def _some(names: Sequence[str], what: str) -> str:
    """The first names, and how many there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{len(names):,} {what} ({shown}, ...)"
