"""A picture in two passes is told of as one, and what its second passes fail with ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from tests.samples import MODEL, REQUEST
from text2image.core.errors import Internal, InvalidRequest, Unavailable
from text2image.core.hires import passes, require_single
from text2image.core.init_image import InitImage
from text2image.core.limits import work_of
from text2image.core.loras import HASH_DIGITS
from text2image.core.messages import (
    Completed,
    Event,
    GeneratedImage,
    ModelInfo,
    Pixels,
    Progress,
    Queued,
    Request,
    Timings,
    UpscalerInfo,
)
from text2image.core.upscalers import written
from text2image.gateway import hires

ASKED = replace(
    REQUEST, n=2, steps=4, hires_scale=1.5, hires_strength=0.5, hires_steps=6, width=64, height=64
)
T = Timings(1, 1, 1, 1)
FULL = Unavailable("full", reason=Unavailable.FULL, retry_after=0.001)


class Drawer:
    """Draws in one pass: a step, and a picture of one colour for each seed; `before` may raise."""

    def __init__(
        self, before: Callable[[Request], None] = lambda request: None, *, hangs: bool = False
    ) -> None:
        """`hangs`: second passes come to no end."""
        self.asked: list[Request] = []
        self.under_way = 0
        self._before = before
        self._hangs = hangs

    async def generate(self, request: Request) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
        self.asked.append(request)
        self.under_way += 1
        try:
            self._before(request)
            yield Queued(1.0), MODEL
            await asyncio.sleep(0)
            for index in range(request.n):
                seed = request.seed_of(index)
                yield Progress(index, 1, request.steps_drawn), MODEL
                if self._hangs and request.image is not None:
                    await asyncio.Event().wait()
                rgb = bytes([seed]) * (request.width * request.height * 3)
                pixels = Pixels(request.width, request.height, rgb)
                yield GeneratedImage(index, seed, pixels, Timings(1, 1, 1, 1)), MODEL
            yield Completed("the end"), MODEL
        finally:
            self.under_way -= 1

    async def events(self, request: Request) -> list[Event]:
        async with aclosing(hires.drawn(request, self.generate)) as drawn:
            return [event async for event, _ in drawn]


async def test_a_request_in_one_pass_is_drawn_as_it_is() -> None:
    drawer = Drawer()
    request = replace(REQUEST, n=2)
    assert await drawer.events(request) == [event async for event, _ in Drawer().generate(request)]
    assert drawer.asked == [request]


async def test_an_upscaler_enlarges_between_the_passes_and_its_tiles_count_as_steps() -> None:
    sharp = UpscalerInfo("sharp", MODEL.revision[:HASH_DIGITS], 2, tile=48)
    network = replace(MODEL, id="upscaler:sharp", upscale=2)
    asked: list[Request] = []

    async def generate(request: Request) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
        asked.append(request)
        enlarges = request.model == network.id
        model, by = (network, 2) if enlarges else (MODEL, 1)
        size = request.width * by, request.height * by
        yield Progress(0, request.steps_drawn, request.steps_drawn), model
        shade = 9 if enlarges else 5
        yield (
            GeneratedImage(0, 7, Pixels(*size, bytes([shade]) * (3 * size[0] * size[1])), T),
            model,
        )
        yield Completed(), model

    request = replace(ASKED, n=1, hires_scale=3.0, hires_upscaler=written(sharp))
    async with aclosing(hires.drawn(request, generate, [sharp])) as drawn:
        events = [event async for event, _ in drawn]
    # Twice as large is too small, so once more: 4 tiles of 64 pixels, and 16 of 128.
    assert [(each.width, each.steps) for each in asked[1:3]] == [(64, 4), (128, 16)]
    second = asked[3].image
    assert isinstance(second, InitImage)
    assert (second.width, set(second.rgb)) == (192, {9})
    told = [(each.step, each.steps) for each in events if isinstance(each, Progress)]
    assert told == [(4, 27), (8, 27), (24, 27), (27, 27)]
    assert work_of(request) - work_of(replace(request, hires_upscaler=None)) == 192 * 192
    with pytest.raises(InvalidRequest, match="has changed or is gone"):
        async with aclosing(hires.drawn(request, generate)) as drawn:
            await anext(drawn)


async def test_two_passes_are_told_of_as_one() -> None:
    drawer = Drawer()
    events = await drawer.events(ASKED)
    assert isinstance(events[0], Queued)
    assert events[-1] == Completed("the end")
    progress = [event for event in events if isinstance(event, Progress)]
    # Four steps, and half of six.
    assert {event.steps for event in progress} == {7}
    assert sorted((event.index, event.step) for event in progress) == [
        (0, 1),
        (0, 5),
        (1, 1),
        (1, 5),
    ]
    images = sorted(
        (event for event in events if isinstance(event, GeneratedImage)),
        key=lambda image: image.index,
    )
    assert [(image.index, image.seed) for image in images] == [(0, 7), (1, 8)]
    assert {(image.pixels.width, image.pixels.height) for image in images} == {(96, 96)}
    assert images[0].timings == Timings(2, 2, 2, 2)
    assert len(events) == 1 + len(progress) + 2 + 1


async def test_each_second_pass_begins_from_its_own_enlarged_picture() -> None:
    drawer = Drawer()
    await drawer.events(ASKED)
    first, *seconds = drawer.asked
    assert first == passes(ASKED)[0]
    assert sorted(each.seed for each in seconds) == [7, 8]
    for each in seconds:
        assert (each.n, each.steps, each.strength) == (1, 6, 0.5)
        assert each.image is not None
        assert each.image.rgb == bytes([each.seed]) * (96 * 96 * 3)
        assert require_single(each)


async def test_what_is_half_drawn_waits_for_room() -> None:
    refused: list[Request] = []

    def refuse_twice(request: Request) -> None:
        if request.image is not None and len(refused) < 2:
            refused.append(request)
            raise FULL

    events = await Drawer(refuse_twice).events(ASKED)
    assert len(refused) == 2
    assert sum(isinstance(event, GeneratedImage) for event in events) == 2


@pytest.mark.parametrize("seed", [7, 8])
async def test_what_one_second_pass_fails_with_ends_all(seed: int) -> None:
    def fail(request: Request) -> None:
        if request.image is not None and request.seed == seed:
            raise Internal

    drawer = Drawer(fail)
    with pytest.raises(Internal):
        await drawer.events(ASKED)
    assert drawer.under_way == 0


async def test_leaving_ends_the_work() -> None:
    drawer = Drawer(hangs=True)
    async with aclosing(hires.drawn(ASKED, drawer.generate)) as drawn:
        async for event, _ in drawn:
            if isinstance(event, Progress) and event.step > ASKED.steps:
                assert drawer.under_way
                break
    assert drawer.under_way == 0


def test_both_passes_are_charged() -> None:
    small, large = 64 * 64 * 4, 96 * 96 * (3 + 1)
    assert work_of(replace(ASKED, sampler=REQUEST.sampler)) == 2 * (small + large)


def test_a_runner_draws_in_one_pass() -> None:
    with pytest.raises(InvalidRequest, match="hires_scale: is for gateways"):
        require_single(ASKED)
