"""Masks have soft edges, and what is masked is drawn alone at full size, by the arithmetic of A1111's web UI."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.doubles import make_info
from tests.init_images import file_of, hole, marked, picture, pixels
from text2image.core.errors import InvalidRequest
from text2image.core.init_image import InitImage
from text2image.core.messages import Input, Pixels, RequestParams
from text2image.gateway.init_images import Limits, read
from text2image.gateway.painting import Fit, blurred, composed, region, resized

LIMITS = Limits(file_bytes=200_000, pixels=1_000_000)
# Sides from 64 to 256.
MODEL = make_info(inputs=tuple(Input))


def reading(image: Image.Image, mask: Image.Image, **fields: Any) -> InitImage:
    params = RequestParams(prompt="a cat", image=file_of(image), mask=file_of(mask), **fields)
    told = read(params, MODEL, LIMITS)
    assert isinstance(told.image, InitImage)
    assert (told.width, told.height) == (told.image.width, told.image.height)
    return told.image


def drawn(size: tuple[int, int]) -> tuple[Pixels, Image.Image]:
    image = picture(size, seed=9)
    return Pixels(*size, image.tobytes()), image


def finished(begun: InitImage, pixels: Pixels) -> np.ndarray[Any, Any]:
    assert begun.overlay is not None
    made = composed(pixels, begun.overlay)
    return np.frombuffer(made.rgb, np.uint8).reshape(made.height, made.width, 3)


def under(image: Image.Image, new: Image.Image, mask: Image.Image) -> np.ndarray[Any, Any]:
    """What A1111 gives out: the picture, less what is masked of it, over what was drawn."""
    kept = Image.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    return np.asarray(Image.alpha_composite(new.convert("RGBA"), kept.convert("RGBA")))[..., :3]


@pytest.mark.parametrize(("across", "down"), [(4, 4), (0, 9), (1, 0), (16, 2)])
def test_a_mask_is_blurred_as_opencv_does_it(across: int, down: int) -> None:
    expected = np.array(hole())
    if across:
        expected = cv2.GaussianBlur(expected, (2 * int(2.5 * across + 0.5) + 1, 1), across)
    if down:
        expected = cv2.GaussianBlur(expected, (1, 2 * int(2.5 * down + 0.5) + 1), down)
    found = np.asarray(blurred(hole(), across, down))
    # OpenCV rounds the kernel to parts of 256.
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_what_is_not_masked_stays_as_it_was_and_the_edge_is_soft() -> None:
    image, mask = picture(), hole()
    begun = reading(image, mask, mask_blur=(4, 4))
    soft = blurred(mask, 4, 4)
    assert np.array_equal(pixels(begun), np.array(image))
    assert np.array_equal(marked(begun), np.where(np.array(soft) >= 128, 255, 0))
    new, shown = drawn(image.size)
    expected = under(image, shown, soft.point(lambda value: min(255, 2 * value)))
    made = finished(begun, new)
    assert np.array_equal(made, expected)
    assert np.array_equal(made[0], np.array(image)[0])
    assert np.array_equal(made[48, 64], np.array(shown)[48, 64])


def test_a_hard_edge_keeps_every_other_pixel() -> None:
    begun = reading(picture(), hole(), mask_blur=(0, 0))
    new, shown = drawn((128, 96))
    inside = np.array(hole())[..., None] > 0
    assert np.array_equal(finished(begun, new), np.where(inside, shown, picture()))


def test_of_an_inverted_mask_the_rest_is_drawn() -> None:
    begun = reading(picture(), hole(), mask_blur=(0, 0), mask_inverted=True)
    assert np.array_equal(marked(begun), 255 - np.array(hole()))


def test_only_what_is_masked_is_drawn_and_pasted_where_it_was() -> None:
    image, mask = picture((400, 300)), Image.new("L", (400, 300))
    mask.paste(255, (100, 80, 140, 120))
    begun = reading(image, mask, mask_blur=(2, 2), mask_padding=16, width=128, height=64)
    soft = blurred(mask, 2, 2)
    left, top, right, bottom = soft.getbbox() or (0, 0, 0, 0)
    # Twice as wide as it is high, around the same middle.
    high = bottom - top + 32
    box = (left - 16 - high // 2, top - 16, right + 16 + high // 2, bottom + 16)
    assert begun.overlay is not None
    assert begun.overlay.box == box
    assert (begun.width, begun.height) == (128, 64)
    lanczos = Image.Resampling.LANCZOS
    expected = image.crop(box).resize((128, 64), lanczos)
    assert np.array_equal(pixels(begun), np.array(expected))
    new, shown = drawn((128, 64))
    whole = Image.new("RGB", image.size)
    whole.paste(shown.resize((box[2] - box[0], box[3] - box[1]), lanczos), box[:2])
    made = finished(begun, new)
    assert made.shape == (300, 400, 3)
    assert np.array_equal(made, under(image, whole, soft))


def test_without_a_size_it_is_drawn_in_the_models_own() -> None:
    begun = reading(picture((400, 300)), hole((400, 300)), mask_blur=(0, 0), mask_padding=0)
    assert (begun.width, begun.height) == (MODEL.width, MODEL.height)


@pytest.mark.parametrize(
    ("found", "padding", "size", "expected"),
    [
        ((100, 100, 150, 120), 10, (64, 64), (90, 75, 160, 145)),
        ((0, 0, 60, 20), 0, (64, 64), (0, 0, 60, 60)),
        ((340, 280, 400, 300), 0, (64, 64), (340, 240, 400, 300)),
        ((10, 0, 20, 300), 0, (128, 64), (0, 0, 400, 300)),
    ],
    ids=["square", "at the top", "at the end", "more than there is"],
)
def test_a_region_has_the_proportions_of_what_is_drawn(
    found: tuple[int, int, int, int], padding: int, size: tuple[int, int], expected: Any
) -> None:
    assert region(found, padding, size, (400, 300)) == expected


def test_what_is_smaller_than_the_region_goes_on_at_its_borders() -> None:
    line = np.asarray(resized(picture((100, 20)), (100, 64), Fit.INSIDE))
    inner = np.asarray(picture((100, 20)))
    assert np.array_equal(line[22:42], inner)
    assert (line[:22] == inner[0]).all()
    assert (line[42:] == inner[-1]).all()


def test_masks_of_colours_and_of_transparency_are_read_as_a1111_reads_them() -> None:
    cut = Image.new("RGBA", (128, 96), "black")
    cut.putalpha(hole())
    for mask in (hole().convert("RGBA"), cut):
        begun = reading(picture(), mask, mask_blur=(0, 0))
        assert np.array_equal(marked(begun), np.array(hole()))


def test_what_is_laid_over_is_a_part_of_what_is_asked_for() -> None:
    asked = [reading(picture(), hole(), mask_blur=(each, each)) for each in (0, 1)]
    assert asked[0] != asked[1]
    with pytest.raises(InvalidRequest, match="mask: marks nothing to draw anew: its white part"):
        reading(picture(), Image.new("L", (128, 96)), mask_blur=(4, 4))
    with pytest.raises(InvalidRequest, match="mask: has 64x64 pixels and the image"):
        reading(picture(), hole((64, 64)), mask_blur=(4, 4))
