"""Enlarges a picture's file: by Lanczos' filter here, or by an upscaler on a runner."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.upscalers import LANCZOS
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


# Makes an RGB picture of a size from another one.
Network = Callable[[Image.Image, tuple[int, int]], Awaitable[Image.Image]]


async def enlarged(
    file: bytes,
    target: Callable[[int, int], Target],
    limits: Limits,
    network: Network | None = None,
    name: str = LANCZOS,
) -> bytes:
    """The PNG file of a picture in another size, with the parameters that it carried.

    Args:
        target: finds the size, of that of the picture; raises InvalidRequest.
        network: enlarges it; without one Lanczos' filter does. What is transparent is always the filter's.
        name: of what enlarges it, for the file.

    Raises:
        InvalidRequest: the file is no picture, or would become larger than the limits.
        PayloadTooLarge: it is larger than the limits already.
    """
    if network is None:
        async with _AT_ONCE:
            return await asyncio.to_thread(_by_filter, file, target, limits)
    # A runner has a queue of its own, in which others of this gateway need not wait for this one.
    image, found = await asyncio.to_thread(_read, file, target, limits)
    large = await network(image.convert("RGB"), found.size) if found.size != image.size else image
    return await asyncio.to_thread(_written, file, image, large, found, name)


def _by_filter(file: bytes, target: Callable[[int, int], Target], limits: Limits) -> bytes:
    image, found = _read(file, target, limits)
    return _written(file, image, image.resize(found.size, _SAMPLING), found, LANCZOS)


def _read(
    file: bytes, target: Callable[[int, int], Target], limits: Limits
) -> tuple[Image.Image, Target]:
    image = opened("image", file, limits)
    found = target(*image.size)
    width, height = found.size
    if not 0 < width * height <= limits.pixels:
        reason = f"would have {width}x{height} pixels; at most {limits.pixels} are made"
        raise InvalidRequest(FieldViolation("image", reason))
    return image.convert("RGBA" if has_alpha(image) else "RGB"), found


def _written(
    file: bytes, image: Image.Image, scaled: Image.Image, found: Target, name: str
) -> bytes:
    """The file of a picture that was made from `image`; only its colours are those of `scaled`."""
    if image.mode == "RGBA" and scaled.mode != "RGBA":
        scaled.putalpha(image.getchannel("A").resize(found.size, _SAMPLING))
    if found.cut:
        left, top = ((whole - part) // 2 for whole, part in zip(found.size, found.cut, strict=True))
        scaled = scaled.crop((left, top, left + found.cut[0], top + found.cut[1]))
    info = PngInfo()
    if parameters := metadata.read(file):
        info.add_text(metadata.CHUNK, parameters)
    width, height = found.size
    if found.size != image.size:
        info.add_text(_CHUNK, f"Postprocess upscaler: {name}, Size: {width}x{height}")
    written = io.BytesIO()
    scaled.save(written, "PNG", pnginfo=info, compress_level=metadata.COMPRESS_LEVEL)
    return written.getvalue()
