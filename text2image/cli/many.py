"""Who draws the requests of a batch: a server, over one connection, or an engine in this process.

Both wait as long as it takes where there is no room just now; all else that is wrong with a request is its own.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from text2image.cli.batch_arguments import BatchOptions
from text2image.cli.drawing import (
    CannotDraw,
    engine_here,
    events_here,
    fields_of,
    is_of_server,
    model_on,
    whereabouts,
)
from text2image.cli.screen import Screen
from text2image.client import AsyncClient, Client
from text2image.core.errors import QuotaExceeded, Text2ImageError, Unauthenticated, Unavailable
from text2image.core.messages import Picture, RequestParams
from text2image.core.settings import Settings

if TYPE_CHECKING:
    from text2image.engine.engine import Engine

# Seconds that a server may be away, while it is restarted for instance, before the batch gives up.
ABSENCE_SECONDS = 60.0
# Rows that are stepped at once in this process: more take longer to be measured than most batches gain.
_MOST_ROWS = 16


class Artist(Protocol):
    """Draws one request; many at once may be under way."""

    async def draw(self, params: RequestParams) -> list[Picture]:
        """The pictures of a request, when all are finished.

        Raises:
            Text2ImageError: this request cannot be drawn.
            CannotDraw: none can any more.
        """
        ...


@asynccontextmanager
async def artist_of(
    options: BatchOptions, settings: Settings, screen: Screen
) -> AsyncIterator[Artist]:
    """The server if there is one, else this process.

    Raises:
        CannotDraw: the server that was named does not answer, or the model cannot be loaded.
        OSError, ValueError: the certificate or the key is of no use.
    """
    address = whereabouts(options.server, settings, screen, local=options.local)
    if address is None:
        async with _artist_here(options, settings, screen) as artist:
            yield artist
        return
    with Client(address, api_key=options.api_key) as client:
        patience = options.timeout or settings.request_timeout
        await asyncio.to_thread(model_on, client, address, screen, patience)
    screen.say(f"drawing on the server at {address}")
    async with AsyncClient(address, api_key=options.api_key) as connected:
        yield _OnServer(connected, options.timeout)


class _OnServer:
    def __init__(self, client: AsyncClient, timeout: float | None) -> None:
        self._client = client
        self._timeout = timeout
        self._answered = time.monotonic()

    async def draw(self, params: RequestParams) -> list[Picture]:
        fields = fields_of(params)
        while True:
            try:
                pictures = await self._client.generate(**fields, timeout=self._timeout)
            except Unauthenticated as error:
                raise CannotDraw(
                    f"{error.message}; this command takes it from T2I_API_KEY"
                ) from None
            except (Unavailable, QuotaExceeded) as error:
                await self._wait(error)
            else:
                self._answered = time.monotonic()
                return pictures

    async def _wait(self, error: Text2ImageError) -> None:
        """As long as the server says; one that says nothing is waited for a while."""
        if is_of_server(error):
            self._answered = time.monotonic()
        elif time.monotonic() - self._answered > ABSENCE_SECONDS:
            raise CannotDraw(
                f"the server went away ({error.message}); the same command goes on from here"
            ) from None
        await asyncio.sleep(error.retry_after or 1.0)


@asynccontextmanager
async def _artist_here(
    options: BatchOptions, settings: Settings, screen: Screen
) -> AsyncGenerator[Artist, None]:
    from text2image.engine.lazy import source_of

    named = {str(row.fields["model"]) for row in options.rows if "model" in row.fields}
    if not settings.models:
        if len(named) > 1:
            listed = ", ".join(sorted(named)[:4])
            raise CannotDraw(
                f"{listed} are named; T2I_MODELS says where a process finds several models"
            )
        if named:
            settings = settings.model_copy(update={"model": named.pop()})
    most = max(row.fields.get("n", 1) for row in options.rows)
    rows = settings.max_batch_rows or min(_MOST_ROWS, 2 * most * options.concurrency)
    async with engine_here(settings, screen, rows, source_of(settings)) as engine:
        screen.say(f"drawing with {engine.model.id} on {engine.model.device}")
        yield _Here(engine, settings, options.timeout)


class _Here:
    def __init__(self, engine: Engine, settings: Settings, timeout: float | None) -> None:
        self._engine = engine
        self._settings = settings
        self._limit = math.inf if timeout is None else timeout

    async def draw(self, params: RequestParams) -> list[Picture]:
        while True:
            try:
                return await self._drawn(params)
            except Unavailable as error:
                # Another model is being looked at.
                await asyncio.sleep(error.retry_after or 1.0)

    async def _drawn(self, params: RequestParams) -> list[Picture]:
        engine = self._engine
        # Without a catalogue the engine has the model that was named, by a name of its own.
        model = engine.model_named(params.model) if self._settings.models else engine.model
        events = events_here(engine, model, params, self._settings, self._limit)
        async with aclosing(events):
            pictures = [event async for event in events if isinstance(event, Picture)]
        return sorted(pictures, key=lambda picture: picture.index)
