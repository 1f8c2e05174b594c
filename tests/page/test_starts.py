"""Pictures to begin from: what is painted is marked, in the picture's own pixels, and shown."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from frontend import starts
from frontend.starts import Start


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def opened(png: bytes | None) -> Image.Image:
    assert png
    return Image.open(io.BytesIO(png))


def strokes(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (288, 144)) -> bytes:
    """A canvas that is painted in these places, as the page paints."""
    canvas = Image.new("RGBA", size)
    for box in boxes:
        canvas.paste(starts.MARK, box)
    return file_of(canvas)


START = Start(128, 64, file_of(Image.new("RGB", (128, 64), "red")))
LEFT, RIGHT = (0, 0, 72, 144), (216, 0, 288, 144)


def test_what_is_painted_is_marked_in_the_size_of_the_picture() -> None:
    marked = opened(starts.with_strokes(START, strokes(LEFT)).mask)
    assert (marked.size, marked.mode, marked.getbbox()) == ((128, 64), "L", (0, 0, 32, 64))
    assert {value for _, value in marked.getcolors()} == {0, 255}


def test_what_is_painted_adds_to_what_was_marked() -> None:
    once = starts.with_strokes(START, strokes(LEFT))
    both = starts.with_strokes(START, strokes(LEFT, RIGHT))
    assert starts.with_strokes(once, strokes(RIGHT)) == both != once


@pytest.mark.parametrize("canvas", [None, strokes()], ids=["untouched", "empty"])
def test_where_nothing_is_painted_nothing_is_marked(canvas: bytes | None) -> None:
    assert starts.with_strokes(START, canvas) == START


def test_a_canvas_that_no_browser_has_is_not_decoded() -> None:
    with pytest.raises(ValueError, match="5000x5000"):
        starts.with_strokes(START, strokes(size=(5000, 5000)))


def test_what_is_marked_is_seen_on_the_picture() -> None:
    assert starts.sheet_of(START) == START.png
    sheet = opened(starts.sheet_of(starts.with_strokes(START, strokes(LEFT))))
    assert sheet.getpixel((100, 10)) == (255, 0, 0)
    assert sheet.getpixel((10, 10))[2] > 100


def test_pictures_with_other_masks_are_others() -> None:
    assert starts.with_strokes(START, strokes(LEFT)).digest != START.digest


def test_the_picture_is_compared_in_the_size_that_was_drawn() -> None:
    assert starts.fitted(START, 128, 64) == START.png
    assert opened(starts.fitted(START, 64, 64)).size == (64, 64)
