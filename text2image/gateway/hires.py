"""Draws in two passes what asks for that: small, and on from the enlarged pictures (`core/hires.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from PIL import Image

from text2image.core.hires import passes
from text2image.core.init_image import InitImage
from text2image.core.messages import (
    Completed,
    Control,
    Event,
    GeneratedImage,
    Pixels,
    Progress,
    Request,
    Timings,
    UpscalerInfo,
)
from text2image.core.upscalers import named
from text2image.gateway.enlarging import (
    Drawn,
    Generate,
    enlarged,
    steps_in,
    until_there_is_room,
)

_SAMPLING = Image.Resampling.LANCZOS


async def drawn(
    request: Request, generate: Generate, upscalers: Sequence[UpscalerInfo] = ()
) -> AsyncGenerator[Drawn, None]:
    """The events of a request as if one drawing were all of it; closing the generator ends the work.

    The second passes of all its pictures are drawn at once. They wait for room as long as `generate` lets them, since
    what is half drawn is refused no more.

    Args:
        generate: draws a request in one pass.
        upscalers: those that there are.

    Raises:
        InvalidRequest: its upscaler is gone.
        Text2ImageError: as `generate` raises.
    """
    first, second = passes(request)
    if second is None:
        async with aclosing(generate(first)) as events:
            async for each in events:
                yield each
        return
    upscaler = named(request.hires_upscaler, upscalers)
    tiles = steps_in(upscaler, (request.width, request.height), request.final_size)
    in_all = first.steps_drawn + tiles + second.steps_drawn
    small: list[GeneratedImage] = []
    completed: list[Drawn] = []
    async with aclosing(generate(first)) as events:
        async for event, model in events:
            if isinstance(event, GeneratedImage):
                small.append(event)
            elif isinstance(event, Completed):
                completed.append((event, model))
            else:
                yield _as_part(event, 0, in_all), model
    async with _together(
        [_second(request, image, upscaler, generate) for image in small]
    ) as merged:
        async for each in merged:
            yield each
    for each in completed:
        yield each


async def _second(
    request: Request, small: GeneratedImage, upscaler: UpscalerInfo | None, generate: Generate
) -> AsyncGenerator[Drawn, None]:
    """Progress and picture of the second pass of one picture; what else there is was told of the first."""
    size, final = (request.width, request.height), request.final_size
    picture = Image.frombytes("RGB", size, small.pixels.rgb)
    first, second = passes(request)
    assert second is not None
    enlarging = steps_in(upscaler, size, final)
    before = first.steps_drawn + enlarging
    in_all = before + second.steps_drawn
    async with aclosing(enlarged(picture, final, upscaler, generate)) as parts:
        async for part in parts:
            if isinstance(part, Image.Image):
                picture = part
            else:
                told = replace(part[0], index=small.index)
                yield _as_part(told, first.steps_drawn, in_all), part[1]
    begun = InitImage.of(*final, await asyncio.to_thread(picture.tobytes))
    _, second = passes(request, begun)
    assert second is not None
    controls = await asyncio.to_thread(_enlarged_controls, request)
    alone = replace(second, n=1, seed=small.seed, controls=controls)
    async with aclosing(until_there_is_room(alone, generate)) as events:
        async for event, model in events:
            if isinstance(event, GeneratedImage):
                timings = _sum(small.timings, event.timings)
                yield replace(event, index=small.index, timings=timings), model
            elif isinstance(event, Progress):
                own = replace(event, index=small.index)
                yield _as_part(own, before, in_all), model


def _as_part(event: Event, before: int, in_all: int) -> Event:
    """An event of one pass as that of both, with the steps that came before."""
    if not isinstance(event, Progress):
        return event
    return replace(event, step=before + event.step, steps=in_all)


def _enlarged(pixels: Pixels, width: int, height: int) -> InitImage:
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.rgb)
    return InitImage.of(width, height, image.resize((width, height), _SAMPLING).tobytes())


def _enlarged_controls(request: Request) -> tuple[Control, ...]:
    """What steers the second pass: the same pictures, of its size."""
    enlarged = []
    for control in request.controls:
        small = control.image
        assert isinstance(small, InitImage)
        large = _enlarged(Pixels(small.width, small.height, small.rgb), *request.final_size)
        if small.mask is not None:
            mask = Image.frombytes("L", (small.width, small.height), small.mask)
            mask = mask.resize(request.final_size, Image.Resampling.NEAREST)
            large = InitImage.of(large.width, large.height, large.rgb, mask.tobytes())
        enlarged.append(replace(control, image=large))
    return tuple(enlarged)


def _sum(one: Timings, other: Timings) -> Timings:
    return Timings(
        queued=one.queued + other.queued,
        denoising=one.denoising + other.denoising,
        decoding=one.decoding + other.decoding,
        encoding=one.encoding + other.encoding,
    )


@asynccontextmanager
async def _together(
    sources: Sequence[AsyncGenerator[Drawn, None]],
) -> AsyncIterator[AsyncGenerator[Drawn, None]]:
    """What several generators yield, as it comes; what one of them raises ends all of them, and so does leaving."""
    queue: asyncio.Queue[Drawn | BaseException | None] = asyncio.Queue(len(sources) + 1)

    async def pour(source: AsyncGenerator[Drawn, None]) -> None:
        try:
            async with aclosing(source):
                async for each in source:
                    await queue.put(each)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    async def merged() -> AsyncGenerator[Drawn, None]:
        left = len(sources)
        while left:
            each = await queue.get()
            if isinstance(each, BaseException):
                raise each
            if each is None:
                left -= 1
            else:
                yield each

    tasks = [asyncio.create_task(pour(source)) for source in sources]
    try:
        async with aclosing(merged()) as events:
            yield events
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
