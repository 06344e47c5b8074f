"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747): found, checked, read."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torchvision

from vgg_fast.dispatch import environment
from vgg_fast.train import idx
from vgg_fast.train.dataset import Dataset
from vgg_fast.train.idx import DataError
from vgg_fast.train.locking import locked

CLASSES = tuple(torchvision.datasets.FashionMNIST.classes)
PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# SHA-256 of each uncompressed file
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

# An unreachable host doesn't answer at all: after this many seconds it is given up.
CONNECT_TIMEOUT = 4
APT_TIMEOUT = 180


def load(root: Path | None = None, download: bool = True) -> Dataset:
    """Find and read Fashion-MNIST.

    Its files are looked for in ``root`` if it is given (or in FashionMNIST/raw below it, where
    torchvision puts them), and nowhere else; or else where the package dataset-fashion-mnist of
    Debian and Ubuntu installs them, in the cache ($XDG_CACHE_HOME/vgg_fast, or ~/.cache/vgg_fast),
    and at last fetched into the cache: by torchvision, or out of that package by apt-get, which
    needs no root.

    Args:
        root: a folder with the four IDX files, plain or ``.gz``. They may be other images than
            Fashion-MNIST's, of the same size and number of classes.
        download: whether anything may be fetched.

    Raises:
        DataError: the files can't be found or used; the message lists every way to get them.
    """
    if root is not None:
        for folder in (root, root / "FashionMNIST" / "raw"):
            if _is_complete(folder):
                return _read(folder, check=False)
        missing = ", ".join(file for file in FILES if idx.find(root, file) is None)
        raise DataError(f"{root} lacks {missing} (plain or .gz): name a folder that has them")
    for folder in (PACKAGE_FOLDER, _cache()):
        if _is_complete(folder):
            return _read(folder, check=True)
    if not download:
        raise DataError(_ways("nothing may be downloaded"))
    return _read(_fetch(), check=True)


def _read(folder: Path, check: bool) -> Dataset:
    train_images, train_labels, test_images, test_labels = FILES
    sums = FILES if check else {}
    train = idx.read_split(folder, (train_images, train_labels), len(CLASSES), sums)
    test = idx.read_split(folder, (test_images, test_labels), len(CLASSES), sums)
    return Dataset("fashion-mnist", str(folder), CLASSES, train, test)


def _is_complete(folder: Path) -> bool:
    return all(idx.find(folder, name) is not None for name in FILES)


def _cache() -> Path:
    return environment.cache_folder() / "fashion-mnist"


# ----------------------------------------------------------------------------------------------


def _fetch() -> Path:
    """Fetch the files into the cache, all or none, and give its folder."""
    cache = _cache()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            _ways(f"the cache {cache.parent} can't be made: {error.strerror}")
        ) from error
    try:
        with locked(cache.parent / ".fetch.lock", wait=True):
            if _is_complete(cache):  # another process has just downloaded it
                return cache
            for left in cache.parent.glob(".fetch-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            return _fetch_into(cache)
    except OSError as error:
        raise DataError(
            _ways(f"the cache {cache.parent} can't be written: {error.strerror}")
        ) from error


def _fetch_into(cache: Path) -> Path:
    failures = []
    ways: dict[str, Callable[[Path], Path]] = {
        "download by torchvision": _from_torchvision,
        "apt-get download": _from_package,
    }
    for way, fetch in ways.items():
        with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".fetch-") as scratch:
            try:
                found = fetch(Path(scratch))
                _read(found, check=True)
            except (DataError, OSError, RuntimeError, subprocess.SubprocessError) as error:
                failures.append(f"{way}: {str(error).strip() or type(error).__name__}")
                continue
            _move_into(cache, found)
            return cache
    raise DataError(_ways("; ".join(failures)))


def _move_into(cache: Path, found: Path) -> None:
    """Each file appears whole."""
    cache.mkdir(exist_ok=True)
    for name in FILES:
        path = idx.find(found, name)
        assert path is not None
        os.replace(path, cache / path.name)


def _from_torchvision(scratch: Path) -> Path:
    mirrors = torchvision.datasets.FashionMNIST.mirrors
    if not any(_reachable(url) for url in mirrors):
        hosts = ", ".join(str(urlsplit(url).hostname) for url in mirrors)
        raise DataError(f"{hosts} can't be reached")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        torchvision.datasets.FashionMNIST(str(scratch), download=True)
    finally:
        socket.setdefaulttimeout(before)
    return scratch / "FashionMNIST" / "raw"


def _reachable(url: str) -> bool:
    """Whether a connection to its host, or to the proxy that serves it, opens in time.

    In a thread, because a name server may hang, too.
    """
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname, port), CONNECT_TIMEOUT).close()
        except OSError:
            return
        opened.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT)
    return opened.is_set()


def _from_package(scratch: Path) -> Path:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(f"{tool} isn't installed")
    apt = ["apt-get", "-qq", "-oAcquire::Retries=0"]
    apt += [f"-oAcquire::{p}::Timeout={CONNECT_TIMEOUT}" for p in ("http", "https")]
    apt.append("-oAPT::Sandbox::User=root")  # apt's own user can't enter the scratch folder
    problem = _run([*apt, "download", PACKAGE], scratch)
    if problem:
        # A fresh machine or image has no package lists, and renewing them needs root: these are our
        # own.
        lists, archives = scratch / "lists", scratch / "archives"
        for folder in (lists, archives):
            (folder / "partial").mkdir(parents=True)
        apt += [f"-oDir::State::Lists={lists}", f"-oDir::Cache={archives}"]
        problem = _run([*apt, "update"], scratch) or _run([*apt, "download", PACKAGE], scratch)
    packages = list(scratch.glob("*.deb"))
    if problem or not packages:
        raise DataError(problem or "no package came")
    problem = _run(["dpkg-deb", "-x", str(packages[0]), "unpacked"], scratch)
    if problem:
        raise DataError(problem)
    return scratch / "unpacked" / PACKAGE_FOLDER.relative_to("/")


def _run(command: list[str], folder: Path) -> str:
    """What went wrong, in one line; nothing if nothing did."""
    try:
        run = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=APT_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} took more than {APT_TIMEOUT} s"
    if run.returncode == 0:
        return ""
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"{command[0]} failed"


def _ways(problem: str) -> str:
    return (
        f"Fashion-MNIST wasn't found, and can't be downloaded: {problem}\n"
        "Any of these helps:\n"
        f"  apt-get install {PACKAGE}            on Debian and Ubuntu, as root\n"
        f"  put {', '.join(FILES)} (plain or .gz)\n"
        f"  into {_cache()}, or into a folder named by --data-root\n"
        f"  the files: {torchvision.datasets.FashionMNIST.mirrors[0]}\n"
        "  --dataset synthetic                              trains on invented images"
    )
