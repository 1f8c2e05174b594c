"""A contact sheet shows each picture in its row and column, and says what those are."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.init_images import file_of
from text2image.gateway.sheets import MAX_CELLS, SIDE, contact_sheet

RED, BLUE, GREEN = (250, 0, 0), (0, 0, 250), (0, 250, 0)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    return file_of(Image.new("RGB", size, colour))


def sheet_of(*made: object) -> Image.Image:
    return Image.open(io.BytesIO(contact_sheet(*made))).convert("RGB")  # type: ignore[arg-type]


def test_pictures_stand_where_they_belong_and_what_is_missing_is_left_grey() -> None:
    sheet = sheet_of(
        [[plain(RED), plain(BLUE)], [plain(GREEN, (64, 32)), None]],
        ["seed 1", "seed 2"],
        ["a fox", "a cat"],
    )
    width, height = sheet.size
    pixels = [
        sheet.getpixel((width - x * SIDE - SIDE // 2, height - y * SIDE - SIDE // 2))
        for y in (1, 0)
        for x in (1, 0)
    ]
    assert pixels[:3] == [RED, BLUE, GREEN]
    assert len(set(pixels[3])) == 1  # type: ignore[arg-type]


def test_labels_are_written_and_take_no_room_where_there_are_none() -> None:
    cells = [[plain(RED)]]
    labelled, plain_one = sheet_of(cells, ["seed 1"], ["a fox"]), sheet_of(cells, [""], [""])
    assert labelled.width > plain_one.width
    assert labelled.height > plain_one.height
    other = sheet_of(cells, ["seed 2"], ["a fox"])
    assert other.size == labelled.size
    assert other.tobytes() != labelled.tobytes()


def test_a_label_of_any_length_stays_in_its_place() -> None:
    cells = [[plain(RED)], [plain(BLUE)]]
    sheet = sheet_of(cells, [""], ["a fox " * 500, "a cat"])
    assert sheet.size == sheet_of(cells, [""], ["a fox", "a cat"]).size
    # Nothing of the first row's is written into the second picture's.
    assert sheet.getpixel((sheet.width - SIDE // 2, sheet.height - SIDE // 2)) == BLUE


def test_more_than_can_be_looked_at_is_refused() -> None:
    with pytest.raises(ValueError, match=str(MAX_CELLS)):
        contact_sheet([[None] * (MAX_CELLS + 1)], [""] * (MAX_CELLS + 1), [""])
    with pytest.raises(ValueError, match="label"):
        contact_sheet([[None]], [], [""])
