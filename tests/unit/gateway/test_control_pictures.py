"""Pictures that steer others: how they are fitted and prepared, and what is said of those that are of no use."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.doubles import make_info
from tests.init_images import file_of, marked, picture, pixels
from text2image.core.errors import InvalidRequest, PayloadTooLarge
from text2image.core.init_image import InitImage
from text2image.core.messages import Control, ControlInfo, Input, RequestParams
from text2image.gateway.init_images import Limits, read

LIMITS = Limits(file_bytes=200_000, pixels=1_000_000)
# Sides from 64 to 256, 128 x 128 its own.
MODEL = make_info(inputs=tuple(Input), controls=(ControlInfo("edges", "0123456789"),))


def reading(file: bytes, preprocess: str = "", **fields: object) -> InitImage:
    control = Control("edges", file, preprocess=preprocess)
    params = RequestParams(prompt="a cat", controls=(control,), **fields)  # type: ignore[arg-type]
    (told,) = read(params, MODEL, LIMITS).controls or ()
    assert isinstance(told.image, InitImage)
    assert replace(told, image=file) == control
    return told.image


def box(size: tuple[int, int], inner: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size, "gray")
    image.paste("white", inner)
    return image


def test_it_is_of_the_size_that_is_drawn_and_covers_it() -> None:
    wide = Image.new("RGB", (256, 128), "gray")
    wide.paste("white", (64, 0, 192, 128))
    assert np.array_equal(
        pixels(reading(file_of(wide))), np.full((MODEL.height, MODEL.width, 3), 255)
    )
    told = reading(file_of(wide), width=256, height=128)
    assert np.array_equal(pixels(told), np.array(wide))
    # As large as the picture that the drawing begins from, where that says the size.
    begun = read(
        RequestParams(
            prompt="a cat",
            image=file_of(picture((192, 64))),
            controls=(Control("edges", file_of(wide)),),
        ),
        MODEL,
        LIMITS,
    )
    (control,) = begun.controls or ()
    assert isinstance(control.image, InitImage)
    assert (control.image.width, control.image.height) == (192, 64) == (begun.width, begun.height)


def test_what_is_transparent_is_black_and_no_mask() -> None:
    image = Image.new("RGBA", (128, 128), (255, 255, 255, 0))
    image.paste((255, 0, 0, 255), (0, 0, 64, 128))
    told = reading(file_of(image))
    assert told.mask is None
    assert tuple(pixels(told)[9, 9]) == (255, 0, 0)
    assert tuple(pixels(told)[9, 100]) == (0, 0, 0)


def test_for_inpainting_it_is_what_is_to_be_drawn() -> None:
    image = Image.new("RGBA", (128, 128), (255, 255, 255, 0))
    image.paste((255, 0, 0, 255), (0, 0, 64, 128))
    told = reading(file_of(image), "inpaint")
    assert (marked(told)[:, :60] == 0).all()
    assert (marked(told)[:, 70:] == 255).all()
    with pytest.raises(InvalidRequest, match="what is transparent in its image, and nothing is"):
        reading(file_of(picture()), "inpaint")


def test_edges_are_cannys_of_the_fitted_picture() -> None:
    cv2 = pytest.importorskip("cv2", reason="the extra canny")
    image = box((256, 256), (64, 64, 192, 192))
    told = pixels(reading(file_of(image), "canny"))
    fitted = pixels(reading(file_of(image)))
    assert np.array_equal(told, np.repeat(cv2.Canny(fitted, 100, 200)[..., None], 3, 2))
    assert set(np.unique(told)) == {0, 255}
    assert told[32:96, 31:34].any()


def test_without_opencv_it_is_said_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InvalidRequest, match=r"pip install -r requirements/canny\.txt"):
        reading(file_of(picture()), "canny")


def test_what_is_of_no_use_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'edges', whose image is no picture that can be read"):
        reading(b"not a picture")
    with pytest.raises(PayloadTooLarge, match="controls has 200001 bytes"):
        reading(bytes(200_001))
    with pytest.raises(PayloadTooLarge, match="2000x1000 pixels"):
        reading(file_of(Image.new("L", (2000, 1000))))
    # Before any of it is read.
    with pytest.raises(InvalidRequest, match="it must be one of canny, inpaint"):
        reading(bytes(200_001), "pose")
    with pytest.raises(InvalidRequest, match="width: is 4096 pixels"):
        reading(file_of(picture()), width=4096)


def test_damaged_files_are_refused_or_read_and_never_break_anything() -> None:
    chance = random.Random(3)
    whole = {kind: file_of(picture((96, 64)), kind) for kind in ("PNG", "JPEG", "WEBP")}
    for number in range(300):
        file = bytearray(whole[("PNG", "JPEG", "WEBP")[number % 3]])
        for _ in range(chance.randint(1, 6)):
            file[chance.randrange(len(file))] = chance.randrange(256)
        if number % 4 == 0:
            del file[chance.randrange(len(file)) :]
        try:
            told = reading(bytes(file), ("", "canny", "inpaint")[number % 3])
        except (InvalidRequest, PayloadTooLarge):
            continue
        assert (told.width, told.height) == (MODEL.width, MODEL.height)
