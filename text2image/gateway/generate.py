"""The road of a request through the gateway, from top to bottom, in the order in which things happen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from text2image.core import loras, validation
from text2image.core.errors import ContentBlocked, Unavailable
from text2image.core.keys import Scope
from text2image.core.lifecycle import Work, draining
from text2image.core.limits import work_of
from text2image.core.messages import (
    ClientEvent,
    Completed,
    Event,
    GeneratedImage,
    Loading,
    ModelInfo,
    Picture,
    Queued,
    Request,
    RequestParams,
    State,
    Status,
    StreamOptions,
    UpscalerInfo,
)
from text2image.core.settings import get_settings
from text2image.gateway import hires
from text2image.gateway.auth import Authenticator, Caller, Credentials
from text2image.gateway.background import BackgroundLine
from text2image.gateway.cache import PictureCache, key_of
from text2image.gateway.context import Enlarging, RequestContext
from text2image.gateway.denylist import DenyList
from text2image.gateway.enlarging import enlarged
from text2image.gateway.finishing import Finisher
from text2image.gateway.in_flight import InFlight
from text2image.gateway.init_images import Limits, Reader
from text2image.gateway.overhead import Overhead
from text2image.gateway.quota import Quotas
from text2image.gateway.runners import Runners
from text2image.gateway.saving import Saver
from text2image.gateway.singleflight import Flight, SingleFlight, identity_of
from text2image.gateway.store import Storage
from text2image.gateway.urls import PictureUrls
from text2image.observe import tracing
from text2image.observe.metrics import GatewayMetrics

if TYPE_CHECKING:
    from text2image.gateway.shared.locks import DrawingLocks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drawing:
    """All pictures of a request, in the order of their index; `message` tells people how it went.

    `remembered` tells whether the gateway keeps pictures to answer with.
    """

    pictures: list[Picture]
    message: str
    remembered: bool

    @property
    def cached(self) -> bool:
        """Whether all pictures were drawn for earlier requests."""
        return all(picture.cached for picture in self.pictures)


class Gateway:
    """What every transport calls: `authenticate`, then `stream` or `draw`.

    `store` is None where pictures are not to be saved, `cache` where none are kept, `urls` where none have any; prompts
    are written to the log only with `log_prompts`. With `prompt_loras` tags of prompts are adapters. `finisher` makes
    files of what is drawn, and `denied` knows the prompts that are not.
    """

    def __init__(
        self,
        runners: Runners,
        store: Storage | None,
        metrics: GatewayMetrics,
        work: Work,
        *,
        cache: PictureCache | None = None,
        locks: DrawingLocks | None = None,
        authenticator: Authenticator | None = None,
        quotas: Quotas | None = None,
        urls: PictureUrls | None = None,
        images: Limits | None = None,
        finisher: Finisher | None = None,
        denied: DenyList | None = None,
        log_prompts: bool = False,
        prompt_loras: bool = True,
    ) -> None:
        self.runners = runners
        self.metrics = metrics
        self.work = work
        self.urls = urls
        self.in_flight = InFlight()
        self._cache = cache
        self._finisher = finisher or Finisher(metrics)
        self._saver = Saver(store, self._finisher, metrics)
        self._denied = denied
        self._overhead = Overhead()
        self._line = BackgroundLine()
        self._locks = locks
        self._authenticator = authenticator or Authenticator(metrics)
        self._quotas = quotas or Quotas()
        self._log_prompts = log_prompts
        self._prompt_loras = prompt_loras
        self._images = Reader(images or Limits.of(get_settings()))
        self._flights = SingleFlight(self._answer, metrics)

    @property
    def is_ready(self) -> bool:
        return self.runners.is_ready and not self.work.leaving

    async def statuses(self) -> AsyncGenerator[Status, None]:
        """The runners' status as one, now and after each change, until the gateway closes."""
        async with aclosing(self.runners.statuses()) as statuses:
            async for status in statuses:
                yield replace(status, state=State.DRAINING) if self.work.leaving else status

    async def drain(self, grace: float, notice: float = 0.0) -> None:
        """Tells balancers, after `notice` seconds refuses new requests, and finishes the admitted within `grace`."""
        self.work.leaving, self.work.draining = True, not notice
        self.runners.notify()
        await asyncio.sleep(notice)
        await self.work.drain(grace)

    async def close(self) -> None:
        """Returns when all that was drawn is kept."""
        await self._flights.close()

    def authenticate(self, credentials: Credentials, scope: Scope = Scope.GENERATE) -> Caller:
        """Who is it, and may they? Ask before anything else is done for a request, reading its body among it.

        Raises:
            Unauthenticated: no key is shown where one is asked for, or one that is worth nothing.
            PermissionDenied: the key is for other things than `scope`.
        """
        return self._authenticator.caller(credentials, scope)

    def caller_named(self, name: str) -> Caller:
        """A caller by its name, for what it has asked to be drawn later.

        Raises:
            Unauthenticated, PermissionDenied: it may ask for nothing any more.
        """
        return self._authenticator.named(name)

    @property
    def may_refuse_unread(self) -> bool:
        """Whether it is worth asking `refusal`."""
        return self.work.draining or self.runners.may_refuse_anything

    def refusal(
        self,
        caller: Caller,
        patience: float,
        shape: Request | None = None,
        *,
        claim: bool = False,
    ) -> Unavailable | None:
        """What a server that drains or is full tells a caller who waits for so long; None if it might draw.

        A picture that is known is not drawn, so ask only for requests that leave the seed open. `shape` as `shape_of`
        has it, None if that is not known; `claim` as `Refusals.find` has it.
        """
        if self.work.draining:
            return draining()
        return self.runners.refusal(patience, caller.share, shape, claim=claim)

    async def stream(self, context: RequestContext) -> AsyncGenerator[ClientEvent, None]:
        """Streams a request's events; closing the generator ends the work within one step.

        Raises:
            Text2ImageError: the request is invalid, refused or could not be finished.
        """
        context.deadline = asyncio.get_running_loop().time() + context.timeout
        with self.work.admit(lambda: context.put(draining())):
            if (
                context.params.seed is None
                and not context.background
                and self.may_refuse_unread
                and (refusal := self.refusal(context.caller, context.timeout))
            ):
                raise refusal
            # Which model, and exactly which pictures: from here on equal requests give equal pictures.
            with tracing.stage("validating"):
                context.model = self.runners.named(context.params.model)
                context.params = await self._images.read(
                    context.params, context.model, context.deadline
                )
                context.request = self.resolve(context.params, context.model)
                self._check_prompt(context.request.prompt)
            if self._finisher.looks:
                # Nobody looks at previews before they are given out.
                context.options = replace(context.options, preview_every=0)
            # In flight already? Then it is shared; else it is answered by `_answer`, in a task of its own.
            async with aclosing(self._flights.follow(identity_of(context), context)) as events:
                async for event in events:
                    if context.standing is None:
                        # Known, or drawn for another request: it cost nothing.
                        context.standing = await self._quotas.standing(context.caller)
                    yield event

    def resolve(self, params: RequestParams, model: ModelInfo) -> Request:
        """The request that a client's words ask a model for, adapters that its prompt names among them.

        Raises:
            InvalidRequest: with one violation for each bad field.
        """
        params = loras.without_tags(params) if self._prompt_loras else params
        return validation.resolve(params, model)

    async def enlarge(
        self, image: Image.Image, size: tuple[int, int], upscaler: UpscalerInfo, order: Enlarging
    ) -> Image.Image:
        """An RGB picture in another size, by an upscaler; it costs a step of that size.

        Raises:
            Text2ImageError: it is refused or could not be finished.
        """
        deadline = asyncio.get_running_loop().time() + order.timeout

        def generate(request: Request) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
            share = order.caller.share
            told = StreamOptions(progress_every=1)
            return self.runners.generate(request, told, deadline, share, patience=order.timeout)

        work = size[0] * size[1]
        with self.work.admit(lambda: None):
            async with (
                self._quotas.reserved(order.caller, work, order) as reservation,
                aclosing(enlarged(image, size, upscaler, generate)) as parts,
            ):
                async for part in parts:
                    # A runner has admitted it.
                    reservation.taken = True
                    if isinstance(part, Image.Image):
                        image = part
        return image

    def _check_prompt(self, prompt: str) -> None:
        line = self._denied.line_of(prompt) if self._denied else None
        if line is not None:
            self.metrics.blocked.labels("prompt").inc()
            logger.info("a prompt was denied by line %d of the list", line)
            raise ContentBlocked("the prompt has words that this server does not draw")

    async def draw(self, context: RequestContext) -> Drawing:
        """Draws a request to its end; being cancelled ends the work within one step.

        Raises:
            Text2ImageError: the request is invalid, refused or could not be finished.
        """
        pictures: list[Picture] = []
        completed = Completed()
        async with aclosing(self.stream(context)) as events:
            async for event in events:
                if isinstance(event, Picture):
                    pictures.append(event)
                elif isinstance(event, Completed):
                    completed = event
        pictures.sort(key=lambda picture: picture.index)
        message = self.message(pictures, completed)
        return Drawing(pictures, message, remembered=self._cache is not None)

    async def _answer(self, flight: Flight) -> None:
        """Answers all who follow a flight, and counts those whose pictures are not given out."""
        try:
            await self._recall_or_draw(flight)
        except ContentBlocked:
            self.metrics.blocked.labels("picture").inc()
            logger.info("a picture was blocked")
            raise

    async def _recall_or_draw(self, flight: Flight) -> None:
        """Answers with what is known, or else with what a runner draws, kept after that."""
        context = flight.leader
        cache = self._cache if context.params.seed is not None else None
        if cache is None:
            await self._draw(flight)
            return
        if await self._recall(cache, flight):
            self.metrics.cache.labels("hit").inc()
            return
        async with AsyncExitStack() as lock:
            # Progress comes from whoever draws, so a client who wants it does not wait for another gateway.
            if self._locks and context.options == StreamOptions():
                # What is drawn in the background may take long, and nobody else is to wait for it.
                drawing = f"{key_of(context.request, 0, context.model)} {context.request.n}"
                name = f"{drawing} {context.caller.name}{' background' * context.background}"
                waited = await lock.enter_async_context(self._locks.held(name))
                if waited and await self._recall(cache, flight):
                    self.metrics.cache.labels("shared").inc()
                    return
            self.metrics.cache.labels("miss").inc()
            drawn, completed = await self._draw(flight)
            # Each by the model that drew it: a runner that began anew may serve another than the one that was asked.
            for picture, model in drawn:
                await cache.keep(context.request, model, [picture], completed)

    async def _recall(self, cache: PictureCache, flight: Flight) -> bool:
        """Answers from the cache, if it has all pictures."""
        context = flight.leader
        with self.metrics.stage("recalling"):
            recalled = await cache.recall(context.request, context.model)
        if recalled is None:
            return False
        self._log("recalling", context.request)
        flight.emit(Queued(0.0))
        for picture in recalled.pictures:
            flight.emit(await asyncio.to_thread(self._saver.still_saved, context, picture))
        flight.emit(recalled.completed)
        return True

    async def _draw(self, flight: Flight) -> tuple[list[tuple[Picture, ModelInfo]], Completed]:
        """Answers with what a runner draws, on the leader's account; returns that, and how it ended."""
        context = flight.leader
        drawn: list[tuple[Picture, ModelInfo]] = []
        completed = Completed()
        loaded = False
        work = round(work_of(context.request) * context.model.price)
        async with self._quotas.reserved(context.caller, work, context) as reservation:
            clock = asyncio.get_running_loop().time
            asked = clock()
            deadline = flight.deadline - self._overhead.of(context.timeout)

            def generate(request: Request) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
                patient = partial(self.runners.generate, patience=context.timeout)
                draw = partial(patient, request, context.options, deadline, context.share)
                return self._line.drawn(request.model, draw) if context.background else draw()

            async with aclosing(
                hires.drawn(context.request, generate, context.model.upscalers)
            ) as events:
                async for event, model in events:
                    if not (reservation.taken or isinstance(event, Loading)):
                        # A runner has admitted it.
                        reservation.taken = True
                        asked = clock() if loaded else asked
                        self._log("drawing", context.request)
                    if isinstance(event, GeneratedImage):
                        # Encoding and the disk take milliseconds that other requests need not wait for.
                        picture = await asyncio.to_thread(
                            self._saver.finished, event, context, model
                        )
                        drawn.append((picture, model))
                        self.metrics.model_pictures.labels(model.id).inc()
                        flight.emit(picture)
                        if context.request.hires_scale is None and not context.background:
                            self._overhead.learn(clock() - asked - event.timings.total)
                    elif isinstance(event, Completed):
                        completed = event
                    else:
                        loaded = loaded or isinstance(event, Loading)
                        flight.emit(event)
        # Now that the caller's place is free, since its next request may follow at once.
        flight.emit(completed)
        return drawn, completed

    def message(self, pictures: list[Picture], completed: Completed) -> str:
        """How it went, for people."""
        return message_of(len(pictures), completed, lost=self._saver.lost(pictures))

    def _log(self, what: str, request: Request) -> None:
        # Quoted, so that a prompt of many lines stays one line of the log.
        prompts = f" of {request.prompt!r} without {request.negative_prompt!r}"
        logger.info(
            "%s %dx%d, %d steps, n %d, seed %d with %s%s",
            what,
            request.width,
            request.height,
            request.steps,
            request.n,
            request.seed,
            request.model,
            prompts if self._log_prompts else "",
        )


def message_of(count: int, completed: Completed, *, lost: bool = False) -> str:
    """What is told of `count` finished pictures; `lost` are those that could not be saved."""
    message = (
        f"{count} images generated successfully" if count > 1 else "Image generated successfully"
    )
    if lost:
        message += "; it could not be saved on the server"
    for name, end in completed.unread:
        message += f"; the {name} was too long, left out: {end}"
    return message
