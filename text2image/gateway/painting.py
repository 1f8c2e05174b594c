"""Paints into pictures as A1111's web UI does: masks have soft edges, what is masked may be drawn at full size alone,
and whatever is not masked stays as it was, to the pixel.

The arithmetic is that of its version 1.10: `StableDiffusionProcessingImg2Img.init` and `apply_overlay` in
`modules/processing.py`, `modules/masking.py`, and `resize_image` in `modules/images.py`. What the network is told to
draw anew is the soft mask, rounded, as it rounds it too.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.init_image import InitImage, Overlay
from text2image.core.messages import ModelInfo, Pixels, RequestParams

_SAMPLING = Image.Resampling.LANCZOS
_HALF = 128
# Standard deviations of the blur that are looked at.
_REACH = 2.5
_GROUND = "#ffffff"


class Fit(Enum):
    """How a picture is brought to a size: `resize_mode` of A1111."""

    STRETCH = 0
    COVER = 1
    INSIDE = 2


def painted(
    params: RequestParams, image: Image.Image, mask: Image.Image, size: tuple[int, int]
) -> RequestParams:
    """A request that paints into a picture, with pixels and what is laid over them when they are drawn.

    Args:
        size: width and height that are drawn.

    Raises:
        InvalidRequest: nothing is masked.
    """
    assert params.mask_blur is not None
    soft = blurred(_marked(mask, inverted=bool(params.mask_inverted)), *params.mask_blur)
    flat = _flattened(image)
    found = soft.getbbox()
    if found is None:
        which = "black" if params.mask_inverted else "white"
        reason = f"marks nothing to draw anew: its {which} part does"
        raise InvalidRequest(FieldViolation("mask", reason))
    if params.mask_padding is None:
        fit = Fit.STRETCH if params.stretched else Fit.COVER
        flat, soft = resized(flat, size, fit), resized(soft, size, fit)
        drawn, rounded, box = flat, soft, None
        # So all that is masked is new, and the soft edge lies around it.
        soft = soft.point(lambda value: min(255, 2 * value))
    else:
        box = region(found, params.mask_padding, size, flat.size)
        drawn = resized(flat.crop(box), size, Fit.INSIDE)
        rounded = resized(soft.crop(box), size, Fit.INSIDE)
    overlay = Overlay(*flat.size, _left(flat, soft).tobytes(), box)
    binary = rounded.point(lambda value: 255 if value >= _HALF else 0)
    begun = InitImage.of(*size, drawn.tobytes(), binary.tobytes(), overlay)
    return replace(params, image=begun, mask=None, width=size[0], height=size[1])


def composed(pixels: Pixels, overlay: Overlay) -> Pixels:
    """What was drawn, where it belongs, and over it what stays of the picture."""
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.rgb)
    size = overlay.width, overlay.height
    if overlay.box is not None:
        left, top, right, bottom = overlay.box
        whole = Image.new("RGBA", size)
        whole.paste(resized(image, (right - left, bottom - top), Fit.COVER), (left, top))
        image = whole
    image = image.convert("RGBA")
    image.alpha_composite(Image.frombytes("RGBA", size, overlay.rgba))
    return Pixels(*size, image.convert("RGB").tobytes())


def size_of_region(params: RequestParams, model: ModelInfo) -> tuple[int, int]:
    """Width and height in which a region is drawn: the model's own, unless others are named."""
    return params.width or model.width, params.height or model.height


def blurred(mask: Image.Image, across: float, down: float) -> Image.Image:
    """A gray picture after Gaussian filters of these standard deviations, in pixels; borders are mirrored.

    As OpenCV's `GaussianBlur` for kernels of 2 int(2.5 sigma + 0.5) + 1, but for its rounding of the kernel.
    """
    rows = np.asarray(mask)
    for axis, sigma in ((1, across), (0, down)):
        reach = int(_REACH * sigma + 0.5)
        if sigma <= 0 or not reach:
            continue
        kernel = np.exp(-(np.arange(-reach, reach + 1, dtype=np.float64) ** 2) / (2 * sigma**2))
        kernel /= kernel.sum()
        around = [(reach, reach) if each == axis else (0, 0) for each in (0, 1)]
        padded = np.pad(rows.astype(np.float32), around, mode="reflect")
        length = rows.shape[axis]
        summed = np.zeros(rows.shape, np.float32)
        for place, weight in enumerate(kernel.astype(np.float32)):
            summed += weight * padded.take(range(place, place + length), axis)
        rows = np.rint(summed).clip(0, 255).astype(np.uint8)
    return Image.fromarray(rows)


def region(
    marked: tuple[int, int, int, int], padding: int, size: tuple[int, int], whole: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The box around what is marked with this much beside it, and of the proportions of `size` where it can be.

    Boxes are left, top, right and bottom; `whole` is the picture's size.
    """
    left, top, right, bottom = marked
    box = [
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, whole[0]),
        min(bottom + padding, whole[1]),
    ]
    wide, high = box[2] - box[0], box[3] - box[1]
    proportion = size[0] / size[1]
    axis = 1 if wide / high > proportion else 0
    wanted = wide / proportion if axis else high * proportion
    more = int(wanted - (box[axis + 2] - box[axis]))
    start, end = box[axis] - more // 2, box[axis + 2] + more - more // 2
    beyond = max(0, end - whole[axis])
    start, end = start - beyond, end - beyond
    if start < 0:
        start, end = 0, end - start
    box[axis], box[axis + 2] = start, min(end, whole[axis])
    return box[0], box[1], box[2], box[3]


def resized(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """A picture brought to a size; one that is to lie inside of it goes on at its borders as they are there."""
    if fit is Fit.STRETCH:
        return _scaled(image, size)
    own, asked = image.width * size[1], image.height * size[0]
    by_width = own > asked if fit is Fit.INSIDE else own < asked
    inner = (
        (size[0], max(1, image.height * size[0] // image.width))
        if by_width
        else (max(1, image.width * size[1] // image.height), size[1])
    )
    scaled = _scaled(image, inner)
    left, top = size[0] // 2 - inner[0] // 2, size[1] // 2 - inner[1] // 2
    result = Image.new(image.mode, size)
    result.paste(scaled, (left, top))
    if by_width and top > 0:
        _edge(result, scaled, (0, 0, inner[0], 1), (0, 0), (size[0], top))
        low = (0, inner[1] - 1, inner[0], inner[1])
        _edge(result, scaled, low, (0, top + inner[1]), (size[0], top))
    elif left > 0:
        _edge(result, scaled, (0, 0, 1, inner[1]), (0, 0), (left, size[1]))
        far = (inner[0] - 1, 0, inner[0], inner[1])
        _edge(result, scaled, far, (left + inner[0], 0), (left, size[1]))
    return result


def _edge(
    onto: Image.Image,
    of: Image.Image,
    line: tuple[int, int, int, int],
    place: tuple[int, int],
    size: tuple[int, int],
) -> None:
    onto.paste(of.crop(line).resize(size, Image.Resampling.NEAREST), place)


def _scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    scaled: Image.Image = image.resize(size, _SAMPLING)
    return scaled


def _marked(mask: Image.Image, *, inverted: bool) -> Image.Image:
    """Gray, white where it is drawn anew; of a mask with transparent parts that is what is not transparent."""
    extremes: Any = mask.getextrema() if mask.mode == "RGBA" else None
    if extremes and extremes[-1] != (255, 255):
        gray = mask.getchannel("A").point(lambda value: 255 if value > _HALF else 0)
    else:
        gray = mask.convert("L")
    return ImageOps.invert(gray) if inverted else gray


def _flattened(image: Image.Image) -> Image.Image:
    """What is transparent is white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    flat = Image.new("RGB", image.size, _GROUND)
    flat.paste(image, mask=image)
    return flat


def _left(image: Image.Image, mask: Image.Image) -> Image.Image:
    """What stays of a picture, as transparent as it is masked."""
    left = Image.new("RGBa", image.size)
    left.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    return left.convert("RGBA")
