"""The way of a request through the gateway: validate, draw on a runner, encode, store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from text2image import validation
from text2image.gateway import metadata
from text2image.gateway.auth import Authenticator, Credentials
from text2image.gateway.runners import Runners
from text2image.gateway.store import NotSaved, Store
from text2image.lifecycle import Work
from text2image.messages import (
    ClientEvent,
    Completed,
    Draft,
    GeneratedImage,
    GenerationRequest,
    ModelInfo,
    Picture,
    State,
    Status,
    StreamOptions,
)
from text2image.telemetry import GatewayMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one client asks for, whatever its transport.

    `title` is what the files are named after; `timeout` is in seconds from now.
    """

    draft: Draft
    title: str
    timeout: float
    credentials: Credentials = field(default_factory=Credentials)
    options: StreamOptions = field(default_factory=StreamOptions)


@dataclass(frozen=True, slots=True)
class Drawing:
    """All pictures of an order, in the order of their index; `message` tells people how it went."""

    pictures: list[Picture]
    message: str


class Gateway:
    """What every transport calls.

    `store` is None where pictures are not to be saved; prompts are written to the log only with `log_prompts`.
    """

    def __init__(
        self,
        runners: Runners,
        store: Store | None,
        metrics: GatewayMetrics,
        work: Work,
        *,
        authenticator: Authenticator | None = None,
        log_prompts: bool = False,
    ) -> None:
        self.runners = runners
        self.metrics = metrics
        self.work = work
        self._store = store
        self._authenticator = authenticator or Authenticator()
        self._log_prompts = log_prompts

    @property
    def is_ready(self) -> bool:
        return self.runners.is_ready and not self.work.draining

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
        caller = self._authenticator.caller(order.credentials)
        with self.work.admit() as ticket:
            model = self.runners.model
            request = validation.resolve(order.draft, model)
            self._log(request)
            events = self.runners.generate(request, order.options, deadline, ticket, caller.share)
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, GeneratedImage):
                        # Encoding and the disk take milliseconds that other requests need not wait for.
                        yield await asyncio.to_thread(
                            self._finish, event, request, model, order.title
                        )
                    else:
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
        return Drawing(pictures, self.message(pictures, left_out))

    def _finish(
        self, image: GeneratedImage, request: GenerationRequest, model: ModelInfo, title: str
    ) -> Picture:
        png = metadata.encode(image.pixels, metadata.describe(request, image.seed, model))
        return Picture(
            index=image.index,
            seed=image.seed,
            width=image.pixels.width,
            height=image.pixels.height,
            png=png,
            path=self._save(png, title),
            timings=image.timings,
        )

    def _save(self, png: bytes, title: str) -> str:
        """Where the picture was saved, or nothing: a full disk is no reason to withhold it."""
        if self._store is None:
            self.metrics.pictures.labels("no").inc()
            return ""
        try:
            path = self._store.save(png, title)
        except NotSaved:
            self.metrics.pictures.labels("failed").inc()
            return ""
        self.metrics.pictures.labels("yes").inc()
        return path

    def message(self, pictures: list[Picture], left_out: str) -> str:
        """How it went, for people; `left_out` as in `Completed`."""
        lost = self._store is not None and not all(picture.path for picture in pictures)
        return message_of(len(pictures), left_out, lost=lost)

    def _log(self, request: GenerationRequest) -> None:
        # Quoted, so that a prompt of many lines stays one line of the log.
        prompts = f" of {request.prompt!r} without {request.negative_prompt!r}"
        logger.info(
            "drawing %dx%d, %d steps, n %d, seed %d%s",
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
