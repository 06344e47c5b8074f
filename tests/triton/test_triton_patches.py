"""Which pixels a program takes: whole maps, without waste where VGG's maps allow it."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="there is no Triton for this platform")

from vgg_fast.triton.patch import Patch, images_that_fit, patch_for


@pytest.mark.parametrize(
    ("size", "patch"),
    [(224, (1, 16, 16)), (112, (1, 16, 16)), (56, (4, 8, 8)), (28, (16, 4, 4)), (14, (64, 2, 2))],
)
def test_vggs_maps_are_cut_without_waste(size: int, patch: tuple[int, int, int]) -> None:
    assert patch_for(256, size, size, 256, 64) == patch
    assert Patch(*patch).pixels(256, size, size) == 256 * size * size


@pytest.mark.parametrize("images", [1, 4, 64])
@pytest.mark.parametrize("pixels", [16, 64, 256])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 13), (100, 14, 14), (2, 1, 500), (5, 31, 2)])
def test_a_patch_is_what_was_asked_for(shape, pixels: int, images: int) -> None:
    patch = patch_for(*shape, pixels, images)
    assert patch.n * patch.h * patch.w == pixels
    assert patch.n <= images and patch.h % 2 == patch.w % 2 == 0 and patch.h <= 16
    covered = zip(patch.cover(*shape), patch, shape, strict=True)
    assert all(count * side >= extent for count, side, extent in covered)


def test_no_smaller_waste_is_possible() -> None:
    patch = patch_for(100, 14, 14, 128, 64)
    assert patch == (4, 2, 16) and patch.pixels(100, 14, 14) == 100 * 14 * 16


def test_large_maps_leave_room_for_one_image() -> None:
    assert images_that_fit(14, 14, 512) > 64
    assert images_that_fit(4000, 4000, 512) == 1
