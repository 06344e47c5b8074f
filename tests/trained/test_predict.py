"""``python -m vgg_fast.predict``: pictures of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.trained.test_trained_network import coloured
from vgg_fast.train.data import CLASSES
from vgg_fast.train.pictures import in_8_bits
from vgg_fast.trained import network
from vgg_fast.trained.pictures import BrokenPicture, as_image, read


def deep(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)


def transparent(picture: Image.Image) -> Image.Image:
    """The shape alone, dark on nothing."""
    inverted = ImageOps.invert(picture).convert("RGBA")
    inverted.putalpha(picture.point(lambda value: 255 if value else 0))
    return inverted


def test_the_classes_are_those_that_the_network_sees(
    call: Any, trained: Any, picture: Any, clothes: Any, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(70):  # more than are looked at at once
        picture(i).save(tmp_path / f"pictures/{i:02}.png")
    (tmp_path / "pictures/notes.txt").write_text("no picture")
    code, out, err = call("predict", trained.folder, "pictures", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["file"] for row in rows] == [f"pictures/{i:02}.png" for i in range(70)]
    whole = network.load(trained.folder, "cpu")
    expected = whole.scores(whole.input.prepared(clothes.images[:70])).softmax(1)
    for row, probabilities in zip(rows, expected, strict=True):
        values, order = probabilities.topk(3)
        found = [(row["class"], row["probability"])]
        found += [(other["class"], other["probability"]) for other in row["next"]]
        assert [name for name, _ in found] == [CLASSES[i] for i in order]
        assert [p for _, p in found] == pytest.approx(values.tolist(), rel=1e-4, abs=1e-6)
        assert row["inverted"] is False


def test_what_people_read(call: Any, trained: Any, picture: Any) -> None:
    picture(0).save("boot.png")
    ImageOps.invert(picture(0)).save("dark.png")
    code, out, err = call("predict", trained.folder, "boot.png", "dark.png", "--no-fused")
    assert code == 0, err
    first, boot, dark = out.splitlines()
    assert "10 classes, 32 x 32 grey images" in first and "plain" in first
    assert boot.startswith("boot.png: Ankle boot ") and boot.count("%") == 3
    assert dark == boot.replace("boot.png", "dark.png") + " (inverted)"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a.png", lambda p: p.convert("RGB")),
        ("a.png", lambda p: p.convert("P")),
        ("a.png", lambda p: p.convert("LA")),
        ("a.png", deep),
        ("a.png", transparent),
        ("a.tif", lambda p: p.convert("CMYK")),
        ("a.tif", lambda p: p.convert("F")),
        ("a.tif", lambda p: Image.fromarray(np.asarray(p) / np.float32(255))),
        ("a.webp", lambda p: p.convert("RGB")),
        ("a.jpg", lambda p: p.resize((700, 700))),
        ("a.gif", lambda p: p),
        ("a.bmp", lambda p: ImageOps.invert(p).resize((56, 56))),
    ],
)
def test_every_mode_and_size_shows_the_same(
    trained: Any, picture: Any, tmp_path: Path, name: str, change: Any
) -> None:
    whole = network.load(trained.folder, "cpu")
    seen = []
    change(picture(0)).save(tmp_path / name)
    for shown in (picture(0), read(tmp_path / name)):
        image, _ = as_image(in_8_bits(shown), whole, "auto")
        assert image.dtype == torch.uint8 and image.shape[0] == 1
        assert image.shape[1] == image.shape[2] <= 32
        seen.append(whole.input.prepared(image.unsqueeze(0)))
    assert float((seen[0] - seen[1]).abs().mean()) < 0.12  # of a deviation of 1


def test_a_photograph_is_turned_as_it_says(tmp_path: Path, picture: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 270 degrees
    picture(0).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.png").tobytes() == picture(0).tobytes()


def test_a_picture_that_is_not_square_is_widened(trained: Any) -> None:
    whole = network.load(trained.folder, "cpu")
    narrow = Image.new("L", (10, 20), 7)
    narrow.putpixel((5, 10), 200)
    image, _ = as_image(narrow, whole, "auto")
    assert image.shape == (1, 20, 20) and int(image.max()) == 200
    assert int((image == 7).sum()) == 399 and int(image[0, 10, 10]) == 200
    image, _ = as_image(Image.new("L", (4000, 1), 7), whole, "auto")
    assert image.shape == (1, 32, 32) and bool((image == 7).all())


def test_light_and_dark(trained: Any, picture: Any) -> None:
    whole = network.load(trained.folder, "cpu")
    light = ImageOps.invert(picture(0))
    as_it_is, _ = as_image(picture(0), whole, "no")
    for shown, invert, inverted in (
        (picture(0), "auto", False),
        (light, "auto", True),
        (light, "yes", True),
    ):
        image, was = as_image(shown, whole, invert)
        assert was == inverted and torch.equal(image, as_it_is)
    for shown, invert in ((light, "no"), (picture(0), "yes")):
        image, was = as_image(shown, whole, invert)
        assert was == (invert == "yes") and torch.equal(image, 255 - as_it_is)


def test_no_test_image_is_taken_for_the_other_way_round(trained: Any, clothes: Any) -> None:
    whole = network.load(trained.folder, "cpu")
    for image in clothes.images:
        assert not as_image(Image.fromarray(image.numpy()), whole, "auto")[1]
        assert as_image(Image.fromarray(255 - image.numpy()), whole, "auto")[1]


def test_colours_and_the_middle_of_a_photograph(call: Any, trained: Any, tmp_path: Path) -> None:
    folder = coloured(trained, tmp_path / "run")
    photograph = Image.new("RGB", (300, 100), "red")
    photograph.paste("white", (100, 0, 200, 100))
    whole = network.load(folder, "cpu")
    image, inverted = as_image(photograph, whole, "auto")
    assert image.shape == (3, 32, 32) and not inverted
    assert bool((image[:, :, 1:-1] == 255).all())  # at the edge, the filter also sees what is red
    photograph.save(tmp_path / "a.png")
    code, out, err = call("predict", folder, "a.png", "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    assert {row["class"], row["next"][0]["class"]} == {"cat", "dog"}
    assert row["probability"] + row["next"][0]["probability"] == pytest.approx(1)


class TestBroken:
    def test_each_is_named_and_the_others_go_on(
        self, call: Any, trained: Any, picture: Any, tmp_path: Path
    ) -> None:
        picture(0).resize((300, 300)).save(tmp_path / "whole.png")
        half = (tmp_path / "whole.png").read_bytes()[:-300]
        (tmp_path / "half.png").write_bytes(half)
        (tmp_path / "text.png").write_text("no picture")
        (tmp_path / "empty.png").touch()
        files = ["half.png", "text.png", "whole.png", "empty.png", "nowhere.png", 300 * "x"]
        code, out, err = call("predict", trained.folder, *files)
        assert code == 1 and "whole.png: Ankle boot" in out.splitlines()[1]
        lines = err.splitlines()
        assert [line.split()[3] for line in lines] == [f for f in files if f != "whole.png"]
        assert all("can't be read as a picture: " in line for line in lines)
        code, out, _ = call("predict", trained.folder, "--json", *files)
        rows = json.loads(out)
        assert code == 1 and ["error" in row for row in rows] == [f != "whole.png" for f in files]

    def test_a_picture_of_too_many_pixels(
        self, tmp_path: Path, picture: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        picture(0).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(BrokenPicture, match="exceeds limit"):
            read(tmp_path / "a.png")

    def test_nothing_to_look_at(self, call: Any, trained: Any, tmp_path: Path) -> None:
        (tmp_path / "bare").mkdir()
        for arguments, words in (
            ([], "there are no pictures to look at"),
            (["bare"], "the folder bare holds no picture"),
        ):
            code, _, err = call("predict", trained.folder, *arguments)
            assert code == 1 and words in err and err.count("\n") == 1
