"""Checkpoints: whole or not at all, and sentences for those that can't be used."""

import errno
import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from vgg_fast.models import VGG
from vgg_fast.train import checkpoint, files
from vgg_fast.train.config import TrainingError

STATE: dict[str, Any] = {
    "config": {"seed": 1},
    "data": {"train": 5},
    "model": {"weight": torch.arange(3.0)},
    "optimizer": {"state": {}},
    "scaler": {},
    "step": 7,
    "history": [],
    "epoch_seconds": 1.5,
    "epoch_sums": {"images": 5},
    "order_at_epoch": torch.arange(5),
    "random": torch.arange(7),
}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / checkpoint.NAME, STATE)
    for path in (tmp_path, tmp_path / checkpoint.NAME):
        state = checkpoint.load(path)
        assert state["step"] == 7 and state["config"] == {"seed": 1}
        assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])


@pytest.mark.parametrize(
    ("error", "wording"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "file can't be written .No space"),
        (KeyboardInterrupt(), None),
        (RuntimeError("a mistake of the program"), None),
    ],
)
def test_an_interrupted_write_leaves_the_earlier_file(
    tmp_path: Path, error: BaseException, wording: str | None
) -> None:
    path = tmp_path / "file"
    path.write_text("earlier")

    def half(file: BinaryIO) -> None:
        file.write(b"new, but not al")
        raise error

    with pytest.raises(type(error) if wording is None else TrainingError, match=wording):
        files.write_atomically(path, half)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_whole(tmp_path: Path) -> None:
    files.save_json(tmp_path / "m.json", {"a": [1, 2.5, None], "b": "×"})
    assert json.loads((tmp_path / "m.json").read_text("utf-8")) == {"a": [1, 2.5, None], "b": "×"}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    with pytest.raises(TrainingError, match=r"there is no checkpoint .*checkpoint\.pt"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / checkpoint.NAME
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole) if keep < 1 else keep)])
    with pytest.raises(TrainingError, match=f"{path} is broken") as raised:
        checkpoint.load(path)
    assert "\n" not in str(raised.value)


def test_a_pickle_that_would_run_something_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"format": 1, "model": Attack(), "config": {}}, tmp_path / "attack.pt")
    with pytest.raises(TrainingError, match="is broken") as raised:
        checkpoint.load(tmp_path / "attack.pt")
    assert not (tmp_path / "ran").exists()
    # torch advises to load without its safeguard.
    assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)


def test_torch_and_unzip_read_it(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NAME
    checkpoint.save(path, STATE)
    for mmap in (False, True):
        assert torch.load(path, weights_only=True, mmap=mmap)["step"] == 7
    assert zipfile.ZipFile(path).testzip() is None


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NAME
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(TrainingError) as raised:
            checkpoint.load(path)
        assert "\n" not in str(raised.value) and "weights_only" not in str(raised.value)


@pytest.mark.parametrize("name", [*STATE, "format"])
def test_a_missing_key_and_one_of_another_type(tmp_path: Path, name: str) -> None:
    for wrong in ({}, {name: "something else"}, {name: True}, {name: None}):
        state = {"format": checkpoint.FORMAT, **STATE}
        del state[name]
        with open(tmp_path / checkpoint.NAME, "w+b") as file:
            torch.save({**state, **wrong}, file)
            checkpoint._seal(file)
        with pytest.raises(TrainingError, match=r"isn't a checkpoint|has format") as raised:
            checkpoint.load(tmp_path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("contents", [{"weight": torch.zeros(3)}, [1, 2], torch.zeros(2)])
def test_a_file_of_something_else(tmp_path: Path, contents: Any) -> None:
    torch.save(contents, tmp_path / "other.pt")
    with pytest.raises(TrainingError, match="isn't a checkpoint"):
        checkpoint.load(tmp_path / "other.pt")


def test_a_later_format(tmp_path: Path) -> None:
    torch.save({**STATE, "format": checkpoint.FORMAT + 1}, tmp_path / "later.pt")
    with pytest.raises(TrainingError, match=f"has format {checkpoint.FORMAT + 1}"):
        checkpoint.load(tmp_path / "later.pt")


def test_another_architecture_is_refused_and_the_model_is_as_it_was() -> None:
    model = VGG(((1, 4),), image_size=8, classifier_width=8)
    other = VGG(((1, 6),), image_size=8, classifier_width=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TrainingError, match=r"another architecture: its 0\.0\.weight is \(6, 1"):
        checkpoint.load_model(model, other.state_dict(), Path("c.pt"))
    deeper = VGG(((2, 4),), image_size=8, classifier_width=8)
    with pytest.raises(TrainingError, match="another architecture"):
        checkpoint.load_model(model, deeper.state_dict(), Path("c.pt"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_fused_and_plain_share_weights() -> None:
    fused = VGG(((1, 4),), image_size=8, classifier_width=8, fused=True)
    plain = VGG(((1, 4),), image_size=8, classifier_width=8, fused=False)
    checkpoint.load_model(plain, fused.state_dict(), Path("c.pt"))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, fused.state_dict()[name])
