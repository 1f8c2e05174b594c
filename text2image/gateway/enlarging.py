"""Enlarges pictures by an upscaler of a runner, or else by Lanczos' filter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from PIL import Image

from text2image.core.errors import FieldViolation, InvalidRequest, Unavailable
from text2image.core.init_image import InitImage
from text2image.core.messages import Event, GeneratedImage, ModelInfo, Request
from text2image.core.upscalers import MAX_PIXELS, enlarging, is_of

Drawn = tuple[Event, ModelInfo]
Generate = Callable[[Request], AsyncGenerator[Drawn, None]]

_SAMPLING = Image.Resampling.LANCZOS
# As often as A1111 has a network enlarge a picture that is still too small.
_ROUNDS = 3
# What a picture waits for room, if the runner does not say how long that takes, in seconds.
_PAUSE = 1.0


async def enlarged(
    image: Image.Image, size: tuple[int, int], upscaler: str, generate: Generate
) -> Image.Image:
    """An RGB picture in another size: by the upscaler until it is large enough, and to the size by Lanczos' filter.

    Args:
        upscaler: as `core.upscalers.chosen` writes it; empty for the filter alone.
        generate: draws a request.

    Raises:
        InvalidRequest: the picture is too large for the upscaler, or that has changed.
        Text2ImageError: as `generate` raises.
    """
    for _ in range(_ROUNDS if upscaler else 0):
        if image.width >= size[0] and image.height >= size[1]:
            break
        larger = await _by_network(image, upscaler, generate)
        scale, image = larger.width // image.width, larger
        if scale < 2 or image.width * image.height * scale**2 > MAX_PIXELS:
            # Once more would help nothing, or be more than a runner makes.
            break
    return await asyncio.to_thread(_fitted, image, size)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, _SAMPLING)


async def _by_network(image: Image.Image, upscaler: str, generate: Generate) -> Image.Image:
    pixels = await asyncio.to_thread(image.tobytes)
    asked = enlarging(upscaler, InitImage.of(*image.size, pixels))
    async with aclosing(until_there_is_room(asked, generate)) as events:
        async for event, model in events:
            if not isinstance(event, GeneratedImage):
                continue
            if not is_of(model, upscaler):
                reason = f"is {upscaler!r}, whose file has changed or is gone; ask again"
                raise InvalidRequest(FieldViolation("upscaler", reason))
            drawn = event.pixels
            return Image.frombytes("RGB", (drawn.width, drawn.height), drawn.rgb)
    raise Unavailable("the upscaler drew nothing", reason=Unavailable.NO_RUNNER)


async def until_there_is_room(request: Request, generate: Generate) -> AsyncGenerator[Drawn, None]:
    """The events of a request that waits for room as long as `generate` lets it.

    Raises:
        Text2ImageError: as `generate` raises.
    """
    while True:
        try:
            async with aclosing(generate(request)) as events:
                async for each in events:
                    yield each
            return
        except Unavailable as refusal:
            if refusal.reason != Unavailable.FULL:
                raise
            await asyncio.sleep(refusal.retry_after or _PAUSE)
