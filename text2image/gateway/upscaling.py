"""Enlarges a picture's file by Lanczos' filter, without a model."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.gateway import metadata
from text2image.gateway.init_images import Limits, has_alpha, opened

# Pictures that are enlarged at once, since each takes memory and a core.
_AT_ONCE = asyncio.Semaphore(2)
_SAMPLING = Image.Resampling.LANCZOS
# Where A1111 tells what was done to a picture after it was drawn.
_CHUNK = "postprocessing"


@dataclass(frozen=True, slots=True)
class Target:
    """The size to scale to, in pixels, and the size that is cut from the middle of that."""

    size: tuple[int, int]
    cut: tuple[int, int] | None = None


async def enlarged(file: bytes, target: Callable[[int, int], Target], limits: Limits) -> bytes:
    """The PNG file of a picture in another size, with the parameters that it carried.

    Args:
        target: finds the size, of that of the picture; raises InvalidRequest.

    Raises:
        InvalidRequest: the file is no picture, or would become larger than the limits.
        PayloadTooLarge: it is larger than the limits already.
    """
    async with _AT_ONCE:
        return await asyncio.to_thread(_enlarged, file, target, limits)


def _enlarged(file: bytes, target: Callable[[int, int], Target], limits: Limits) -> bytes:
    image = opened("image", file, limits)
    found = target(*image.size)
    width, height = found.size
    if not 0 < width * height <= limits.pixels:
        reason = f"would have {width}x{height} pixels; at most {limits.pixels} are made"
        raise InvalidRequest(FieldViolation("image", reason))
    colour = image.convert("RGBA" if has_alpha(image) else "RGB")
    scaled: Image.Image = colour.resize(found.size, _SAMPLING)
    if found.cut:
        left, top = ((whole - part) // 2 for whole, part in zip(found.size, found.cut, strict=True))
        scaled = scaled.crop((left, top, left + found.cut[0], top + found.cut[1]))
    info = PngInfo()
    if parameters := metadata.read(file):
        info.add_text(metadata.CHUNK, parameters)
    if found.size != image.size:
        info.add_text(_CHUNK, f"Postprocess upscaler: Lanczos, Size: {width}x{height}")
    written = io.BytesIO()
    scaled.save(written, "PNG", pnginfo=info, compress_level=metadata.COMPRESS_LEVEL)
    return written.getvalue()
