"""Files that a client sends to begin from: what is read of them, how it is fitted, and that none does harm."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.doubles import make_info
from tests.init_images import file_of, hole, marked, picture, pixels
from text2image.core.errors import InvalidRequest, PayloadTooLarge
from text2image.core.init_image import InitImage
from text2image.core.messages import Input, RequestParams
from text2image.gateway.init_images import Limits, read

LIMITS = Limits(file_bytes=200_000, pixels=1_000_000)
# Sides from 64 to 256.
MODEL = make_info(inputs=tuple(Input))
ORIENTATION = 0x0112


def reading(image: bytes, mask: bytes | None = None, **fields: Any) -> InitImage:
    params = RequestParams(prompt="a cat", image=image, mask=mask, **fields)
    told = read(params, MODEL, LIMITS)
    assert isinstance(told.image, InitImage)
    assert (told.width, told.height) == (told.image.width, told.image.height)
    assert told.mask is None
    return told.image


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_of_a_size_that_is_drawn_is_read_as_it_is(kind: str) -> None:
    image = picture()
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(reading(file_of(image, kind, **options))), np.array(image))


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.full((64, 64), 51 * 257, np.uint16))


@pytest.mark.parametrize(
    ("made", "kind", "colour"),
    [
        (lambda: picture((64, 64)).quantize(2), "PNG", None),
        (lambda: Image.new("1", (64, 64), 1), "PNG", (255, 255, 255)),
        (lambda: Image.new("L", (64, 64), 40), "JPEG", (40, 40, 40)),
        (lambda: Image.new("LA", (64, 64), (40, 255)), "PNG", (40, 40, 40)),
        (sixteen_bits, "PNG", (51, 51, 51)),
        (lambda: Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (lambda: Image.new("RGBA", (64, 64), (9, 8, 7, 255)), "PNG", (9, 8, 7)),
    ],
    ids=["palette", "bilevel", "gray", "gray and alpha", "16 bits", "cmyk", "opaque"],
)
def test_pictures_of_every_mode_are_read(
    made: Callable[[], Image.Image], kind: str, colour: tuple[int, ...] | None
) -> None:
    read_ = reading(file_of(made(), kind))
    assert read_.mask is None
    if colour:
        assert np.abs(pixels(read_).astype(int) - colour).max() <= 2


def test_of_an_animated_picture_the_first_one_is_read() -> None:
    first, second = picture(seed=1), picture(seed=2)
    options = {"save_all": True, "append_images": [second], "lossless": True}
    for kind in ("PNG", "WEBP"):
        assert np.array_equal(pixels(reading(file_of(first, kind, **options))), np.array(first))


def test_a_picture_is_turned_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    lying = picture((128, 64))
    read_ = reading(file_of(lying, exif=exif))
    assert (read_.width, read_.height) == (64, 128)
    assert np.array_equal(pixels(read_), np.rot90(np.array(lying), -1))


@pytest.mark.parametrize(
    ("own", "asked", "drawn"),
    [
        ((128, 96), {}, (128, 96)),
        ((130, 93), {}, (128, 96)),
        ((800, 400), {}, (256, 128)),
        ((20, 40), {}, (64, 128)),
        ((1000, 10), {}, (256, 64)),
        ((400, 300), {"width": 128}, (128, 96)),
        ((300, 400), {"height": 128}, (96, 128)),
        ((300, 400), {"width": 64, "height": 64}, (64, 64)),
    ],
)
def test_the_size_is_the_pictures_own_as_near_as_it_is_drawn(
    own: tuple[int, int], asked: dict[str, int], drawn: tuple[int, int]
) -> None:
    read_ = reading(file_of(picture(own)), **asked)
    assert (read_.width, read_.height) == drawn


def test_it_is_scaled_to_cover_the_size_and_cut_evenly() -> None:
    wide = Image.new("RGB", (192, 64), "red")
    wide.paste("blue", (64, 0, 128, 64))
    read_ = pixels(reading(file_of(wide), width=64, height=64))
    assert np.abs(read_.astype(int) - (0, 0, 255)).max() <= 2


def test_white_in_a_mask_is_drawn_anew_and_black_is_kept() -> None:
    read_ = reading(file_of(picture()), file_of(hole()))
    assert np.array_equal(marked(read_), np.array(hole()))
    # Halves are one or the other, and what is not there is not white.
    gray = reading(file_of(picture()), file_of(Image.linear_gradient("L").resize((128, 96))))
    assert set(np.unique(marked(gray))) == {0, 255}
    clear = Image.merge("LA", (Image.new("L", (128, 96), 255), hole()))
    assert np.array_equal(marked(reading(file_of(picture()), file_of(clear))), np.array(hole()))


def test_what_is_transparent_is_drawn_anew_unless_there_is_a_mask() -> None:
    cut = picture().convert("RGBA")
    cut.putalpha(hole().point(lambda value: 255 - value))
    assert np.array_equal(marked(reading(file_of(cut))), np.array(hole()))
    mask = Image.new("L", (128, 96), 255)
    assert marked(reading(file_of(cut), file_of(mask))).min() == 255


def test_a_transparent_border_is_drawn_on_into() -> None:
    larger = Image.new("RGBA", (192, 160))
    larger.paste(picture(), (32, 32))
    read_ = reading(file_of(larger))
    assert (read_.width, read_.height) == (192, 160)
    assert marked(read_)[:32].min() == 255
    assert marked(read_)[32:128, 32:160].max() == 0


def test_of_a_mask_by_alpha_the_transparent_part_is_drawn_anew() -> None:
    mask = Image.new("RGBA", (128, 96))
    mask.putalpha(hole().point(lambda value: 255 - value))
    read_ = reading(file_of(picture()), file_of(mask), mask_by_alpha=True)
    assert np.array_equal(marked(read_), np.array(hole()))
    with pytest.raises(InvalidRequest, match="mask: has no transparent part"):
        reading(file_of(picture()), file_of(hole()), mask_by_alpha=True)


def test_of_an_inverted_mask_what_is_black_is_drawn_anew() -> None:
    read_ = reading(file_of(picture()), file_of(hole()), mask_inverted=True)
    assert np.array_equal(marked(read_), 255 - np.array(hole()))
    white = Image.new("L", (128, 96), 255)
    with pytest.raises(InvalidRequest, match="mask: marks nothing to draw anew: its black part"):
        reading(file_of(picture()), file_of(white), mask_inverted=True)


def test_a_picture_that_is_stretched_keeps_its_borders() -> None:
    sides = Image.new("RGB", (128, 64), "red")
    sides.paste("blue", (64, 0, 128, 64))
    stretched = pixels(reading(file_of(sides), width=64, height=64, stretched=True))
    assert stretched[32, 0].tolist() == [255, 0, 0]
    assert stretched[32, 63].tolist() == [0, 0, 255]
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 16, 64))
    masked = reading(file_of(sides), file_of(mask), width=64, height=64, stretched=True)
    assert marked(masked)[32].tolist() == [255] * 8 + [0] * 56


def test_equal_pixels_are_the_same_picture_whatever_file_they_were_in() -> None:
    one, other = reading(file_of(picture())), reading(file_of(picture(), "WEBP", lossless=True))
    assert one == other
    assert hash(one) == hash(other)
    assert reading(file_of(picture()), file_of(hole())) != one
    assert reading(file_of(picture(seed=1))) != one


@pytest.mark.parametrize(
    ("image", "mask", "fields", "told"),
    [
        (b"", None, {}, "image: is no picture"),
        (b"GIF89a", None, {}, "image: is no picture"),
        (file_of(picture(), "GIF"), None, {}, "image: is no picture"),
        (file_of(picture())[:-600], None, {}, "image: is no picture"),
        (file_of(picture()), b"no", {}, "mask: is no picture"),
        (file_of(picture()), file_of(hole((64, 64))), {}, "mask: has 64x64 pixels and the image"),
        (file_of(picture()), file_of(Image.new("L", (128, 96))), {}, "mask: marks nothing"),
        (file_of(picture()), None, {"width": 65}, "width: is 65 pixels"),
        (file_of(picture()), None, {"height": 1 << 30}, "height: is 1073741824 pixels"),
    ],
)
def test_what_is_wrong_is_told_by_its_field(
    image: bytes, mask: bytes | None, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        reading(image, mask, **fields)


def test_a_model_that_draws_from_a_text_alone_is_given_no_picture() -> None:
    params = RequestParams(prompt="a cat", image=file_of(picture()))
    with pytest.raises(InvalidRequest, match="image: is not taken: double draws from a text alone"):
        read(params, make_info(), LIMITS)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("sides", [(1001, 1000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_of_too_many_pixels_is_never_decoded(sides: tuple[int, int]) -> None:
    with pytest.raises(PayloadTooLarge, match="at most 1000000 pixels are read"):
        reading(bomb(*sides))


def test_a_jpeg_that_takes_for_ever_is_refused() -> None:
    sound = file_of(picture(), "JPEG", progressive=True)
    scans = sound.index(b"\xff\xda")
    scan = sound[scans : sound.index(b"\xff", scans + 20)]
    with pytest.raises(InvalidRequest, match="image: is a JPEG of more than 100 scans"):
        reading(sound[:-2] + 200 * scan + sound[-2:])
    assert reading(sound)


def test_a_file_of_too_many_bytes_is_not_opened() -> None:
    with pytest.raises(PayloadTooLarge, match="image has 200001 bytes; at most 200000"):
        reading(bytes(200_001))


SOUND = [
    file_of(picture((80, 64))),
    file_of(picture((80, 64)), "JPEG"),
    file_of(picture((80, 64)), "WEBP"),
    file_of(picture((80, 64)), "WEBP", lossless=True),
    file_of(picture((64, 72)).quantize(8)),
    file_of(picture((64, 72)).convert("LA")),
    file_of(picture((64, 72)).convert("CMYK"), "JPEG"),
    file_of(sixteen_bits()),
    file_of(picture((64, 64)), "PNG", save_all=True, append_images=[picture((64, 64), 1)]),
    bomb(300, 300),
]


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Files that were sound once: cut off, with other bytes in them, with a part repeated, or with two heads."""
    file = bytearray(draw(st.sampled_from(SOUND)))
    match draw(st.sampled_from(["cut", "changed", "repeated", "joined", "header"])):
        case "cut":
            del file[draw(st.integers(0, len(file))) :]
        case "changed":
            for _ in range(draw(st.integers(1, 12))):
                file[draw(st.integers(0, len(file) - 1))] = draw(st.integers(0, 255))
        case "repeated":
            start = draw(st.integers(0, len(file) - 1))
            file[start:start] = file[start : start + draw(st.integers(1, 400))]
        case "joined":
            other = draw(st.sampled_from(SOUND))
            file = (
                file[: draw(st.integers(0, len(file)))] + other[draw(st.integers(0, len(other))) :]
            )
        case _:
            start = draw(st.integers(8, min(60, len(file) - 4)))
            file[start : start + 4] = draw(st.binary(min_size=4, max_size=4))
    return bytes(file)


def outcome(image: bytes, mask: bytes | None) -> InitImage | InvalidRequest | PayloadTooLarge:
    try:
        return reading(image, mask)
    except (InvalidRequest, PayloadTooLarge) as error:
        return error


@settings(max_examples=1400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(image=files(), mask=st.none() | files() | st.binary(max_size=60))
def test_no_file_does_harm(image: bytes, mask: bytes | None) -> None:
    """More than two thousand, as pictures and as masks: each is read, or refused by its field or by its size."""
    match outcome(image, mask):
        case InvalidRequest(violations=violations):
            assert {each.field for each in violations} <= {"image", "mask"}
        case PayloadTooLarge() as refusal:
            assert str(refusal).startswith(("image", "mask"))
        case InitImage(width=width, height=height, rgb=rgb):
            assert len(rgb) == width * height * 3
