"""The way of a request through the gateway: validate, recall or draw on a runner, encode, store, keep."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial

from text2image.core import validation
from text2image.core.keys import Scope
from text2image.core.lifecycle import Ticket, Work
from text2image.core.limits import work_of
from text2image.core.messages import (
    ClientEvent,
    Completed,
    GeneratedImage,
    ModelInfo,
    Picture,
    Queued,
    Request,
    RequestParams,
    State,
    Status,
    StreamOptions,
)
from text2image.gateway import metadata
from text2image.gateway.auth import Authenticator, Caller, Credentials
from text2image.gateway.cache import PictureCache, Recalled, key_of
from text2image.gateway.flights import Flights
from text2image.gateway.leases import Leases
from text2image.gateway.quota import Quotas, Receipt
from text2image.gateway.runners import Runners
from text2image.gateway.store import NotSaved, Storage
from text2image.observe import tracing
from text2image.observe.metrics import GatewayMetrics

logger = logging.getLogger(__name__)

# Digits of a picture's key that tell its file from others of the same prompt.
MARK_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one client asks for, whatever its transport.

    `title` is what the files are named after; `timeout` is in seconds from now; the receipt is filled in by the
    gateway.
    """

    caller: Caller
    draft: RequestParams
    title: str
    timeout: float
    options: StreamOptions = field(default_factory=StreamOptions)
    receipt: Receipt = field(default_factory=Receipt)


@dataclass(frozen=True, slots=True)
class Drawing:
    """All pictures of an order, in the order of their index; `message` tells people how it went.

    `remembered` tells whether the gateway keeps pictures to answer with.
    """

    pictures: list[Picture]
    message: str
    remembered: bool

    @property
    def cached(self) -> bool:
        """Whether all pictures were drawn for earlier orders."""
        return all(picture.cached for picture in self.pictures)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be drawn, with which model, and whose work it counts as; the receipt is that of who asked first."""

    request: Request
    model: ModelInfo
    options: StreamOptions
    caller: Caller
    receipt: Receipt
    title: str


class Gateway:
    """What every transport calls.

    `store` is None where pictures are not to be saved, `cache` where none are kept; prompts are written to the log only
    with `log_prompts`.
    """

    def __init__(
        self,
        runners: Runners,
        store: Storage | None,
        metrics: GatewayMetrics,
        work: Work,
        *,
        cache: PictureCache | None = None,
        leases: Leases | None = None,
        authenticator: Authenticator | None = None,
        quotas: Quotas | None = None,
        log_prompts: bool = False,
    ) -> None:
        self.runners = runners
        self.metrics = metrics
        self.work = work
        self._store = store
        self._cache = cache
        self._leases = leases
        self._flights = Flights(metrics)
        self._authenticator = authenticator or Authenticator(metrics)
        self._quotas = quotas or Quotas()
        self._log_prompts = log_prompts

    @property
    def is_ready(self) -> bool:
        return self.runners.is_ready and not self.work.draining

    def authenticate(self, credentials: Credentials, scope: Scope = Scope.GENERATE) -> Caller:
        """Whom a request counts as. Ask before anything else is done for it.

        Raises:
            Unauthenticated: no key is shown where one is asked for, or one that is worth nothing.
            PermissionDenied: the key is for other things than `scope`.
        """
        return self._authenticator.caller(credentials, scope)

    async def statuses(self) -> AsyncGenerator[Status, None]:
        """The runners' status as one, now and after each change, until the gateway closes."""
        async with aclosing(self.runners.statuses()) as statuses:
            async for status in statuses:
                yield replace(status, state=State.DRAINING) if self.work.draining else status

    async def drain(self, grace: float) -> None:
        """Refuses new orders and finishes the admitted within `grace` seconds."""
        self.work.draining = True
        self.runners.notify()
        await self.work.drain(grace)

    async def stream(self, order: Order) -> AsyncGenerator[ClientEvent, None]:
        """Streams an order's events; closing the generator ends the work within one step.

        Raises:
            Text2ImageError: the order is invalid, refused or could not be finished.
        """
        deadline = asyncio.get_running_loop().time() + order.timeout
        with self.work.admit() as ticket:
            with tracing.stage("validating"):
                model = self.runners.model
                request = validation.resolve(order.draft, model)
            job = _Job(request, model, order.options, order.caller, order.receipt, order.title)
            if order.draft.seed is None:
                # The seed was picked just now, so nobody else can have asked for this picture, or ever will.
                events = self._draw(job, deadline, ticket)
            else:
                # One caller's limits and shares are no other's, so one drawing is never that of two callers.
                key = (model, request, order.options, order.caller)
                events = self._flights.join(
                    key, partial(self._recall_or_draw, job), deadline, ticket
                )
            async with aclosing(events):
                async for event in events:
                    if order.receipt.standing is None:
                        # Recalled, or drawn for another order: it cost nothing.
                        order.receipt.standing = await self._quotas.standing(order.caller)
                    yield event

    async def draw(self, order: Order) -> Drawing:
        """Draws an order to its end; being cancelled ends the work within one step.

        Raises:
            Text2ImageError: the order is invalid, refused or could not be finished.
        """
        pictures: list[Picture] = []
        left_out = ""
        async with aclosing(self.stream(order)) as events:
            async for event in events:
                if isinstance(event, Picture):
                    pictures.append(event)
                elif isinstance(event, Completed):
                    left_out = event.left_out
        pictures.sort(key=lambda picture: picture.index)
        message = self.message(pictures, left_out)
        return Drawing(pictures, message, remembered=self._cache is not None)

    async def _recall_or_draw(
        self, job: _Job, deadline: float, ticket: Ticket
    ) -> AsyncGenerator[ClientEvent, None]:
        """A job's events from the cache if it has all pictures, else as they are drawn, to be recalled next time."""
        if self._cache is None:
            events = self._draw(job, deadline, ticket)
        elif recalled := await self._recall(self._cache, job):
            self.metrics.cache.labels("hit").inc()
            events = self._replay(job, recalled)
        else:
            events = self._draw_in_turn(job, deadline, ticket, self._cache)
        async with aclosing(events):
            async for event in events:
                yield event

    async def _recall(self, cache: PictureCache, job: _Job) -> Recalled | None:
        with self.metrics.stage("recalling"):
            return await cache.recall(job.request, job.model)

    async def _draw_in_turn(
        self, job: _Job, deadline: float, ticket: Ticket, cache: PictureCache
    ) -> AsyncGenerator[ClientEvent, None]:
        """A job's events as it is drawn, or once another gateway that draws the same has finished."""
        async with AsyncExitStack() as lease:
            recalled = None
            # Progress comes from whoever draws, so a client who wants it does not wait for another gateway.
            if self._leases and job.options == StreamOptions():
                picture = key_of(job.request, 0, job.model)
                name = f"{picture} {job.request.n} {job.caller.name}"
                if await lease.enter_async_context(self._leases.held(name)):
                    recalled = await self._recall(cache, job)
            self.metrics.cache.labels("shared" if recalled else "miss").inc()
            if recalled:
                # Whoever waits next finds the same.
                await lease.aclose()
            events = (
                self._replay(job, recalled)
                if recalled
                else self._draw(job, deadline, ticket, cache)
            )
            async with aclosing(events):
                async for event in events:
                    yield event

    async def _replay(self, job: _Job, recalled: Recalled) -> AsyncGenerator[ClientEvent, None]:
        self._log("recalling", job.request)
        yield Queued(0.0)
        for picture in recalled.pictures:
            yield await asyncio.to_thread(self._still_saved, job, picture)
        yield Completed(recalled.left_out)

    def _still_saved(self, job: _Job, picture: Picture) -> Picture:
        """The picture where it was saved, or saved again if this gateway has no such file.

        A hit costs its caller nothing, so however many there are, and whatever their titles, they make one file.
        """
        store = self._store
        if store is None:
            return replace(picture, path="")
        title = job.request.prompt
        mark = key_of(job.request, picture.index, job.model)[:MARK_DIGITS]
        for path in (picture.path, store.path_of(title, mark)):
            if store.holds(path, picture.png):
                return replace(picture, path=path)
        path = self._save(lambda store: store.save_once(picture.png, title, mark))
        return replace(picture, path=path)

    async def _draw(
        self, job: _Job, deadline: float, ticket: Ticket, cache: PictureCache | None = None
    ) -> AsyncGenerator[ClientEvent, None]:
        """A job's events as a runner draws it, its pictures encoded, saved, and kept in the cache."""
        drawn: list[tuple[Picture, ModelInfo]] = []
        work = work_of(job.request)
        async with self._quotas.reserved(job.caller, work, job.receipt) as reservation:
            share = job.caller.share
            events = self.runners.generate(job.request, job.options, deadline, ticket, share)
            async with aclosing(events):
                async for event, model in events:
                    if not reservation.taken:
                        # The first event of any: a runner has admitted it.
                        reservation.taken = True
                        self._log("drawing", job.request)
                    if isinstance(event, GeneratedImage):
                        # Encoding and the disk take milliseconds that other requests need not wait for.
                        picture = await asyncio.to_thread(self._finish, event, job, model)
                        drawn.append((picture, model))
                        yield picture
                        continue
                    if isinstance(event, Completed) and cache:
                        # A runner that began anew may serve another model than the one that was asked for.
                        for picture, drawn_with in drawn:
                            await cache.keep(job.request, drawn_with, [picture], event.left_out)
                    yield event

    def _finish(self, image: GeneratedImage, job: _Job, model: ModelInfo) -> Picture:
        parameters = metadata.describe(job.request, image.seed, model)
        with self.metrics.stage("png"):
            png = metadata.encode(image.pixels, parameters)
        return Picture(
            index=image.index,
            seed=image.seed,
            width=image.pixels.width,
            height=image.pixels.height,
            png=png,
            path=self._save(lambda store: store.save(png, job.title)),
            timings=image.timings,
        )

    def _save(self, save: Callable[[Storage], str]) -> str:
        """Where the picture was saved, or nothing: a full disk is no reason to withhold it."""
        if self._store is None:
            self.metrics.pictures.labels("no").inc()
            return ""
        try:
            with self.metrics.stage("storing"):
                path = save(self._store)
        except NotSaved:
            self.metrics.pictures.labels("failed").inc()
            return ""
        self.metrics.pictures.labels("yes").inc()
        return path

    def message(self, pictures: list[Picture], left_out: str) -> str:
        """How it went, for people; `left_out` as in `Completed`."""
        lost = self._store is not None and not all(picture.path for picture in pictures)
        return message_of(len(pictures), left_out, lost=lost)

    def _log(self, what: str, request: Request) -> None:
        # Quoted, so that a prompt of many lines stays one line of the log.
        prompts = f" of {request.prompt!r} without {request.negative_prompt!r}"
        logger.info(
            "%s %dx%d, %d steps, n %d, seed %d%s",
            what,
            request.width,
            request.height,
            request.steps,
            request.n,
            request.seed,
            prompts if self._log_prompts else "",
        )


def message_of(count: int, left_out: str, *, lost: bool = False) -> str:
    """What is told of `count` finished pictures; `lost` are those that could not be saved."""
    message = (
        f"{count} images generated successfully" if count > 1 else "Image generated successfully"
    )
    if lost:
        message += "; it could not be saved on the server"
    if left_out:
        message += f"; the prompt was too long, left out: {left_out}"
    return message
