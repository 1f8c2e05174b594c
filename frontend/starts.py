"""Pictures that drawing begins from: read as the server reads them, and marked by the visitor."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from typing import Self

from PIL import Image, ImageChops, ImageOps

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.init_image import InitImage
from text2image.core.messages import ModelInfo, RequestParams
from text2image.core.settings import get_settings
from text2image.gateway import init_images
from text2image.gateway.metadata import COMPRESS_LEVEL

# What is marked looks like this over the picture, and what is drawn on the canvas like the same.
MARK = (143, 99, 234, 150)
# Strokes are as wide as they look: their edges fade over a pixel.
_STROKE = MARK[3] // 2
_HALF = 128
# Of what a browser sends of a canvas, in pixels of a side.
_LARGEST_CANVAS = 2048
# Sides of two pictures that differ by less than this share have the same proportions.
_SAME_PROPORTIONS = 0.02


@dataclass(frozen=True, slots=True)
class Start:
    """PNG files of one size in pixels: the picture, and white where it is drawn anew; None where that is all of it."""

    width: int
    height: int
    png: bytes = field(repr=False)
    mask: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, image: InitImage) -> Self:
        size = (image.width, image.height)
        mask = None if image.mask is None else _png(Image.frombytes("L", size, image.mask))
        return cls(*size, _png(Image.frombytes("RGB", size, image.rgb)), mask)

    @property
    def digest(self) -> str:
        """Tells it from others, in hex digits."""
        return hashlib.sha256(self.png + (self.mask or b"")).hexdigest()


def read(file: bytes, model: ModelInfo) -> Start:
    """A file that a visitor brought, in the size that the model draws of it; what is transparent is marked.

    Raises:
        InvalidRequest: it is no picture.
        PayloadTooLarge: it is larger than the limits.
    """
    return Start.of(_read(RequestParams(prompt="", image=file), model))


def size_for(start: Start, model: ModelInfo) -> tuple[int, int]:
    """Width and height of what this model makes of it."""
    image = _read(RequestParams(prompt="", image=start.png), model)
    return image.width, image.height


def with_mask(start: Start, file: bytes, model: ModelInfo) -> Start:
    """The same, marked where this picture is white.

    Raises:
        InvalidRequest: it is no picture, has other proportions, or marks nothing.
        PayloadTooLarge: it is larger than the limits.
    """
    try:
        mask = Start.of(_read(RequestParams(prompt="", image=file), model))
    except InvalidRequest as error:
        raise InvalidRequest(
            *(FieldViolation("mask", v.reason) for v in error.violations)
        ) from None
    share = mask.width * start.height / (mask.height * start.width)
    if abs(share - 1) > _SAME_PROPORTIONS:
        reason = f"is {mask.width} × {mask.height} pixels, which are not the picture's proportions"
        raise InvalidRequest(FieldViolation("mask", reason))
    marked = _opened(mask.png).convert("L").resize((start.width, start.height))
    marked = marked.point(lambda value: 255 if value >= _HALF else 0)
    if not marked.getbbox():
        reason = "marks nothing to draw anew: its white part does"
        raise InvalidRequest(FieldViolation("mask", reason))
    return replace(start, mask=_png(marked))


def with_strokes(start: Start, strokes: bytes | None) -> Start:
    """The same with what was painted on a canvas over it marked too; the canvas may have another size."""
    if strokes is None:
        return start
    canvas = Image.open(io.BytesIO(strokes), formats=("PNG",))
    if max(canvas.size) > _LARGEST_CANVAS:
        raise ValueError(f"a canvas of {canvas.width}x{canvas.height} pixels")
    painted = canvas.convert("RGBA").getchannel("A").resize((start.width, start.height))
    marked = painted.point(lambda value: 255 if value >= _STROKE else 0)
    if not marked.getbbox():
        return start
    if start.mask:
        marked = ImageChops.lighter(marked, _opened(start.mask).convert("L"))
    return replace(start, mask=_png(marked))


def sheet_of(start: Start) -> bytes:
    """The picture with what is marked shown on it, as PNG."""
    if start.mask is None:
        return start.png
    image = _opened(start.png).convert("RGBA")
    mark = Image.new("RGBA", image.size, MARK[:3])
    share = _opened(start.mask).convert("L").point(lambda value: value * MARK[3] // 255)
    mark.putalpha(share)
    return _png(Image.alpha_composite(image, mark).convert("RGB"))


def fitted(start: Start, width: int, height: int) -> bytes:
    """What drawing began from, in the size that was drawn, as PNG."""
    if (width, height) == (start.width, start.height):
        return start.png
    return _png(ImageOps.fit(_opened(start.png), (width, height), Image.Resampling.LANCZOS))


def _read(params: RequestParams, model: ModelInfo) -> InitImage:
    image = init_images.read(params, model, init_images.Limits.of(get_settings())).image
    assert isinstance(image, InitImage)
    return image


def _opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=COMPRESS_LEVEL)
    return file.getvalue()
