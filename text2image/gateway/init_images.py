"""Reads the pictures that a request begins from and is steered by, and masks, out of files that may hold anything.

A file is read here, once, and nowhere else: runners get pixels. How a picture is fitted to the size that is drawn:

- Without a size it is its own, scaled down or up if the model draws no such size, and each side to the nearest multiple
  that the model draws. With one side the other follows from the picture's own.
- It is scaled until it covers that size, and what is too much is cut off evenly at both ends.
- What is transparent is drawn anew, unless there is a mask. So a picture with a transparent border is drawn on.
- With a soft mask it is fitted as `painting.py` has it.

Control pictures are fitted in the same way to the size that is drawn, whatever theirs is; what is transparent in them
is black.
"""

from __future__ import annotations

import asyncio
import io
import warnings
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageOps

from text2image.core import controls
from text2image.core.controls import CANNY, INPAINT
from text2image.core.errors import (
    DeadlineExceeded,
    FieldViolation,
    InvalidRequest,
    PayloadTooLarge,
    Text2ImageError,
)
from text2image.core.init_image import InitImage
from text2image.core.messages import Control, ModelInfo, RequestParams
from text2image.core.settings import Settings
from text2image.core.validation import check_inputs, check_size
from text2image.gateway.edges import edges
from text2image.gateway.painting import painted, size_of_region

# Pictures that are read at once.
_AT_ONCE = 2
FORMATS = ("PNG", "JPEG", "WEBP")
_SAMPLING = Image.Resampling.LANCZOS
# From here on a mask's pixel is drawn anew, as diffusers' `VaeImageProcessor.binarize` has it; opaque pixels are kept.
_HALF = 128
# Modes of 16 bits for each pixel, and of 32.
_WIDE = ("I", "F")
_WIDEST = 65535
# A JPEG may go over all of its picture any number of times, in a few bytes each; cameras and editors do so ten times.
_SCAN, _MOST_SCANS = b"\xff\xda", 100


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest file that is read, in bytes, and the largest picture, in pixels."""

    file_bytes: int
    pixels: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(settings.max_image_bytes, settings.max_image_pixels)


class Reader:
    """Reads the pictures of requests, a few at a time, since each takes memory as long as that lasts."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def read(self, params: RequestParams, model: ModelInfo, deadline: float) -> RequestParams:
        """As `read` below; one without a picture comes back at once.

        Args:
            deadline: in the event loop's time.

        Raises:
            DeadlineExceeded: it passed before it was this one's turn.
            Text2ImageError: as `read` says.
        """
        if params.image is None and not params.controls:
            return params
        try:
            async with asyncio.timeout_at(deadline), self._turns:
                return await asyncio.to_thread(read, params, model, self._limits)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the image was read") from None


def read(params: RequestParams, model: ModelInfo, limits: Limits) -> RequestParams:
    """The same request with pixels in place of files, and the size that they have. Takes a while: call it in a thread.

    Raises:
        InvalidRequest: a file is no picture, mask and picture do not fit, or the model draws from none.
        PayloadTooLarge: a file or its picture is larger than the limits.
    """
    check_inputs(params, model)
    controls.check(params.controls, model)
    if isinstance(params.image, bytes) or params.controls:
        check_size(params, model)
    if isinstance(params.image, bytes):
        params = _begun(params, params.image, model, limits)
    if not params.controls:
        return params
    size = (params.width or model.width, params.height or model.height)
    return replace(
        params, controls=tuple(_steered(each, *size, limits) for each in params.controls)
    )


def _steered(control: Control, width: int, height: int, limits: Limits) -> Control:
    """A control with the pixels of its picture, at the size that is drawn."""
    if not isinstance(control.image, bytes):
        return control
    try:
        image = opened("controls", control.image, limits)
    except InvalidRequest as error:
        why = error.violations[0].reason
        raise _refused("controls", f"name {control.name!r}, whose image {why}") from None
    hole = None
    if control.preprocess == INPAINT:
        clear = _alpha_mask(image)
        if clear is None:
            reason = (
                f"ask {control.name!r} to draw what is transparent in its image, and nothing is"
            )
            raise _refused("controls", reason)
        hole = _binary(_fitted(clear, width, height)).tobytes()
    elif has_alpha(image):
        ground = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    fitted = _fitted(_rgb(image), width, height)
    if control.preprocess == CANNY:
        fitted = edges(fitted)
    drawn = InitImage.of(width, height, fitted.tobytes(), hole)
    return replace(control, image=drawn)


def _begun(params: RequestParams, file: bytes, model: ModelInfo, limits: Limits) -> RequestParams:
    """A request with the pixels of the picture that it begins from, and the size that it is drawn in."""
    image = opened("image", file, limits)
    mask = None if params.mask is None else opened("mask", params.mask, limits)
    if mask is not None and params.mask_blur is not None:
        if mask.size != image.size:
            raise _other_size(mask, image)
        whole = params.mask_padding is None
        size = _size(params, model, *image.size) if whole else size_of_region(params, model)
        return painted(params, image, mask, size)
    width, height = _size(params, model, *image.size)
    marked = (
        _alpha_mask(image) if mask is None else _mask(mask, image, by_alpha=params.mask_by_alpha)
    )
    if mask is not None and marked and params.mask_inverted:
        marked = ImageOps.invert(marked)
    if mask is not None and not (marked and marked.getbbox()):
        raise _refused("mask", f"marks nothing to draw anew: {_marks(params)}")
    fit = _stretched if params.stretched else _fitted
    fitted = fit(_rgb(image), width, height)
    drawn = InitImage.of(
        width,
        height,
        fitted.tobytes(),
        None if marked is None else _binary(fit(marked, width, height)).tobytes(),
    )
    return replace(params, image=drawn, mask=None, width=width, height=height)


def _marks(params: RequestParams) -> str:
    if params.mask_inverted:
        return "its black part does"
    return "its transparent part does" if params.mask_by_alpha else "its white part does"


def _refused(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation(field, reason))


def opened(field: str, file: bytes, limits: Limits) -> Image.Image:
    """A file's first picture, whole, as it is to be looked at."""
    if len(file) > limits.file_bytes:
        raise PayloadTooLarge(
            f"{field} has {len(file)} bytes; at most {limits.file_bytes} are read"
        )
    try:
        with warnings.catch_warnings():
            # Of pictures that may be too large, which are measured here.
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(file), formats=FORMATS)
            width, height = image.size
            if width * height > limits.pixels:
                raise _too_large(field, f"{width}x{height} pixels", limits)
            if image.format == "JPEG" and file.count(_SCAN) > _MOST_SCANS:
                raise _refused(field, f"is a JPEG of more than {_MOST_SCANS} scans; save it again")
            image.load()
            return _without_palette(_upright(image))
    except Image.DecompressionBombError:
        raise _too_large(field, "more pixels than any picture here", limits) from None
    except Text2ImageError:
        raise
    except Exception as error:
        # Decoders raise what they like at files that are cut off or made up.
        reason = (
            f"is no picture that can be read: {_said(error)}; send a whole PNG, JPEG or WebP file"
        )
        raise _refused(field, reason) from None


def _said(error: Exception) -> str:
    """What a decoder says, without the object that it may name."""
    said = " ".join(str(error).split()).partition(" <")[0]
    return said[:120] or type(error).__name__


def _too_large(field: str, what: str, limits: Limits) -> PayloadTooLarge:
    return PayloadTooLarge(f"{field} has {what}; at most {limits.pixels} pixels are read")


def _upright(image: Image.Image) -> Image.Image:
    """As cameras say that it is to be held; one whose notes cannot be read is left as it is."""
    try:
        upright: Image.Image = ImageOps.exif_transpose(image)
        return upright
    except Exception:
        return image


def _without_palette(image: Image.Image) -> Image.Image:
    """With colours for places in a palette, which may lie: of more transparent ones than there are, say."""
    if image.mode != "P":
        return image
    plain: Image.Image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return plain


def _size(params: RequestParams, model: ModelInfo, width: int, height: int) -> tuple[int, int]:
    """The size that is drawn, of a picture of this size; see the module."""
    if params.width is not None and params.height is not None:
        return params.width, params.height
    if params.width is not None:
        return params.width, _side(height * params.width / width, model)
    if params.height is not None:
        return _side(width * params.height / height, model), params.height
    scale = max(1.0, model.min_side / min(width, height))
    scale = min(scale, model.max_side / max(width, height))
    return _side(width * scale, model), _side(height * scale, model)


def _side(pixels: float, model: ModelInfo) -> int:
    multiple = model.side_multiple
    least, most = -(-model.min_side // multiple), model.max_side // multiple
    return multiple * max(least, min(most, round(pixels / multiple)))


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    fitted: Image.Image = ImageOps.fit(image, (width, height), _SAMPLING)
    return fitted


def _stretched(image: Image.Image, width: int, height: int) -> Image.Image:
    stretched: Image.Image = image.resize((width, height), _SAMPLING)
    return stretched


def has_alpha(image: Image.Image) -> bool:
    return "A" in image.mode or "a" in image.mode or "transparency" in image.info


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _alpha_mask(image: Image.Image) -> Image.Image | None:
    """What is transparent; None if nothing is."""
    if not has_alpha(image):
        return None
    clear = _alpha(image).point(lambda value: 255 - value)
    return clear if _binary(clear).getbbox() else None


def _mask(mask: Image.Image, image: Image.Image, *, by_alpha: bool) -> Image.Image:
    """What a mask marks, white."""
    if mask.size != image.size:
        raise _other_size(mask, image)
    if by_alpha:
        if not has_alpha(mask):
            raise _refused("mask", "has no transparent part; that is what is drawn anew")
        return _binary(_alpha(mask).point(lambda value: 255 - value))
    gray = _rgb(mask).convert("L")
    if has_alpha(mask):
        # What is not there is not white.
        gray = Image.composite(gray, Image.new("L", mask.size), _alpha(mask))
    return _binary(gray)


def _other_size(mask: Image.Image, image: Image.Image) -> InvalidRequest:
    sizes = f"{mask.width}x{mask.height} pixels and the image {image.width}x{image.height}"
    return _refused("mask", f"has {sizes}; both must have one size")


def _binary(mask: Image.Image) -> Image.Image:
    return mask.point(lambda value: 255 if value >= _HALF else 0)


def _rgb(image: Image.Image) -> Image.Image:
    """8 bit RGB; what is transparent keeps the colour that lies there."""
    if image.mode.startswith(_WIDE):
        wide: Any = image.convert("I")
        image = wide.point(lambda value: value * (255 / _WIDEST) + 0.5).convert("L")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
