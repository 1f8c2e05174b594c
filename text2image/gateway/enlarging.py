"""Enlarges pictures by an upscaler of a runner, or else by Lanczos' filter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from PIL import Image

from text2image.core.errors import Unavailable
from text2image.core.init_image import InitImage
from text2image.core.messages import (
    Event,
    GeneratedImage,
    ModelInfo,
    Progress,
    Request,
    UpscalerInfo,
)
from text2image.core.upscalers import changed, enlarging, is_of, sizes_of, steps_of, written

Drawn = tuple[Event, ModelInfo]
Generate = Callable[[Request], AsyncGenerator[Drawn, None]]
Told = tuple[Progress, ModelInfo]

_SAMPLING = Image.Resampling.LANCZOS
# What a picture waits for room, if the runner does not say how long that takes, in seconds.
_PAUSE = 1.0


def steps_in(upscaler: UpscalerInfo | None, size: tuple[int, int], final: tuple[int, int]) -> int:
    """What the progress of `enlarged` counts in all; 0 without an upscaler."""
    if upscaler is None:
        return 0
    return sum(steps_of(upscaler, each) for each in sizes_of(upscaler, size, final))


async def enlarged(
    image: Image.Image, size: tuple[int, int], upscaler: UpscalerInfo | None, generate: Generate
) -> AsyncGenerator[Told | Image.Image, None]:
    """An RGB picture in another size: by the upscaler until it is large enough, and to the size by Lanczos' filter.

    Before the picture, which is the last, it tells of the tiles that are done; closing the generator ends the work.

    Args:
        upscaler: None for the filter alone.
        generate: draws a request.

    Raises:
        InvalidRequest: the picture is too large for the upscaler, or that has changed.
        Text2ImageError: as `generate` raises.
    """
    done, steps = 0, steps_in(upscaler, image.size, size)
    for each in sizes_of(upscaler, image.size, size) if upscaler else ():
        assert upscaler
        async with aclosing(_by_network(image, upscaler, generate)) as parts:
            async for part in parts:
                if isinstance(part, Image.Image):
                    image = part
                else:
                    progress, model = part
                    yield replace(progress, step=done + progress.step, steps=steps), model
        done += steps_of(upscaler, each)
    yield await asyncio.to_thread(_fitted, image, size)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, _SAMPLING)


async def _by_network(
    image: Image.Image, upscaler: UpscalerInfo, generate: Generate
) -> AsyncGenerator[Told | Image.Image, None]:
    pixels = await asyncio.to_thread(image.tobytes)
    asked = enlarging(upscaler, InitImage.of(*image.size, pixels))
    async with aclosing(until_there_is_room(asked, generate)) as events:
        async for event, model in events:
            if isinstance(event, Progress):
                yield event, model
            elif isinstance(event, GeneratedImage):
                if not is_of(model, upscaler):
                    raise changed(written(upscaler))
                drawn = event.pixels
                yield Image.frombytes("RGB", (drawn.width, drawn.height), drawn.rgb)


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
