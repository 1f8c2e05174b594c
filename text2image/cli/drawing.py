"""The two ways to draw: on a server over gRPC, or with the engine in this process. Both tell the same events."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc

from text2image.cli.arguments import Options
from text2image.cli.screen import Screen
from text2image.client import Client
from text2image.core.catalogue import upscaler_entries
from text2image.core.errors import (
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    Text2ImageError,
    Unavailable,
)
from text2image.core.extras import require_extra
from text2image.core.loras import without_tags
from text2image.core.messages import (
    ClientEvent,
    Event,
    GeneratedImage,
    ModelInfo,
    Picture,
    Request,
    RequestParams,
    State,
    StreamOptions,
    UpscalerInfo,
)
from text2image.core.settings import Settings, get_settings
from text2image.core.upscalers import PREFIX, info_of, named_in
from text2image.core.validation import resolve
from text2image.gateway import hires, metadata
from text2image.gateway.init_images import Limits, read
from text2image.net import rpc_errors

if TYPE_CHECKING:
    from text2image.engine.engine import Engine
    from text2image.engine.manager import Source

# Seconds that a server may take to accept a connection before it counts as not there.
CONNECT_SECONDS = 2.0

Tell = Callable[[ClientEvent], None]


class CannotDraw(Exception):
    """There is nobody to draw; the text says why and what to do."""


def draw(options: Options, settings: Settings, screen: Screen, tell: Tell) -> None:
    """Draws on the server if there is one, else in this process, and tells of every event.

    Raises:
        CannotDraw: the server that was named does not answer, or the model cannot be loaded.
        Text2ImageError: the request was refused or could not be finished.
        OSError, ValueError: the certificate or the key is of no use.
    """
    address = whereabouts(options.server, settings, screen, local=options.local)
    if address is None:
        asyncio.run(_draw_here(options, settings, screen, tell))
    else:
        _draw_on_server(address, options, settings, screen, tell)


def whereabouts(
    server: str | None, settings: Settings, screen: Screen, *, local: bool
) -> str | None:
    """Where a server listens; None where this process draws, which is told.

    Raises:
        CannotDraw: it was named, and nobody listens there.
    """
    named = server or settings.server
    address = named or settings.server_address
    absence = "" if local else _absence(address)
    if named and absence:
        raise CannotDraw(
            f"no server listens at {address} ({absence}); `make serve` starts one, and --local "
            "draws without"
        )
    if not local and not absence:
        return address
    screen.say(f"no server at {address}: this process draws" if absence else "this process draws")
    return None


def server_at(server: str | None, settings: Settings) -> str:
    """Where the server listens that is named, or the one of the settings.

    Raises:
        CannotDraw: nobody does.
    """
    address = server or settings.server or settings.server_address
    if absence := _absence(address):
        raise CannotDraw(f"no server listens at {address} ({absence}); `make serve` starts one")
    return address


def _absence(address: str) -> str:
    """Why nobody can be listening at an address; nothing where somebody may be."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        # A unix socket, or another name that only grpc resolves.
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    except OverflowError as error:
        return str(error)
    return ""


def _draw_on_server(
    address: str, options: Options, settings: Settings, screen: Screen, tell: Tell
) -> None:
    with Client(address, api_key=options.api_key) as client:
        patience = options.timeout or settings.request_timeout
        model = model_on(client, address, screen, patience, options.params.model)
        screen.say(f"drawing with {model.id} on the server at {address}")
        for event in client.stream(timeout=options.timeout, **fields_of(options.params)):
            tell(event)


def fields_of(params: RequestParams) -> dict[str, Any]:
    """What a client takes of a request, prompt included."""
    fields = {name: getattr(params, name) for name in RequestParams.__slots__}
    # The command's masks are white where they mark.
    del fields["mask_by_alpha"]
    return {name: value for name, value in fields.items() if value is not None}


def model_on(
    client: Client, address: str, screen: Screen, patience: float, name: str | None = None
) -> ModelInfo:
    """What a server draws with, after waiting until it draws at all.

    Raises:
        CannotDraw: it never will, or is no server of ours.
        Text2ImageError: it does not say.
    """
    try:
        return _model_of(client, screen, patience, name)
    except Text2ImageError as error:
        if is_of_server(error):
            raise
        raise CannotDraw(
            f"{address} does not answer as a server of ours does ({error.message}); if it "
            "serves TLS, T2I_TLS_CA must name who vouches for it"
        ) from error


def is_of_server(error: Text2ImageError) -> bool:
    """Whether an error was written by a server, and not by grpc in this process."""
    cause = error.__cause__
    return not isinstance(cause, grpc.RpcError) or rpc_errors.error_from(cause) is not None


def _model_of(client: Client, screen: Screen, patience: float, name: str | None) -> ModelInfo:
    """What the server draws with, after waiting until it draws at all."""
    try:
        return client.model(name)
    except Unavailable as refusal:
        if refusal.reason != Unavailable.LOADING:
            raise
    screen.say("the server is still loading its model")
    for status in client.watch(timeout=patience):
        if status.state is State.READY:
            return client.model(name)
        if status.state is not State.LOADING:
            raise CannotDraw(f"the server is {status.state.value}: {status.detail}")
        screen.note(status.detail)
    raise CannotDraw("the server went away while it was loading")


async def _draw_here(options: Options, settings: Settings, screen: Screen, tell: Tell) -> None:
    """Loads the model and draws; what is still loading when this is cancelled ends with the process."""
    if options.params.model:
        settings = settings.model_copy(update={"model": options.params.model})
    # No larger batches need to be measured.
    from text2image.engine.lazy import source_of

    rows = settings.max_batch_rows or 2 * (options.params.n or 1)
    source = None
    if options.params.hires_upscaler and settings.upscalers:
        require_extra("upscale", "T2I_UPSCALERS")
        source = source_of(settings)
    async with engine_here(settings, screen, rows, source) as engine:
        model = engine.model
        screen.say(f"drawing with {model.id} on {model.device}")
        limit = math.inf if options.timeout is None else options.timeout
        drawn = events_here(engine, model, options.params, settings, limit)
        async with aclosing(drawn) as events:
            async for event in events:
                tell(event)


@asynccontextmanager
async def engine_here(
    settings: Settings, screen: Screen, rows: int, source: Source | None = None
) -> AsyncGenerator[Engine, None]:
    """An engine in this process, with its default model loaded, that steps so many rows at once.

    Raises:
        CannotDraw: the model cannot be loaded.
    """
    from text2image.engine.adapters.requests import Budgets
    from text2image.engine.engine import Engine
    from text2image.engine.lazy import loader

    engine = Engine(
        loader(settings),
        source=source,
        model_memory=settings.model_memory,
        budgets=Budgets(settings.adapter_memory, settings.controlnet_memory),
        max_batch_rows=rows,
        # Whoever asked is the only one who waits.
        max_backlog_seconds=math.inf,
    )
    engine.start()
    async for status in engine.watch(min_interval=0.0):
        if status.state is State.READY:
            break
        if status.state is not State.LOADING:
            raise CannotDraw(status.detail)
        screen.note(status.detail)
    try:
        yield engine
    finally:
        await engine.stop()


async def events_here(
    engine: Engine, model: ModelInfo, params: RequestParams, settings: Settings, limit: float
) -> AsyncGenerator[ClientEvent, None]:
    """What happens while an engine in this process draws, in at most `limit` seconds.

    Raises:
        Text2ImageError: the request is invalid or could not be finished.
    """
    params = without_tags(params) if settings.prompt_loras else params
    if params.hires_upscaler:
        upscalers = await upscalers_here(engine, params.hires_upscaler, settings)
        model = replace(model, upscalers=upscalers)
    request = resolve(read(params, model, Limits.of(settings)), model)
    ends = time.monotonic() + limit

    async def generate(request: Request) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
        each = StreamOptions(progress_every=1)
        left = max(0.0, ends - time.monotonic())
        async with aclosing(engine.generate(request, each, time_limit=left)) as events:
            async for event in events:
                enlarges = request.model.startswith(PREFIX)
                yield event, engine.model_named(request.model) if enlarges else model

    async with aclosing(hires.drawn(request, generate, model.upscalers)) as events:
        async for event, _ in events:
            if isinstance(event, GeneratedImage):
                yield _encoded(event, request, model)
            else:
                yield event


async def upscalers_here(
    engine: Engine, named: str, settings: Settings
) -> tuple[UpscalerInfo, ...]:
    """The upscaler of this name, as a process without a server knows it; nothing if there is none.

    Raises:
        InvalidRequest: its file is none that enlarges.
    """
    from text2image.engine.lazy import ModelSource

    entries = upscaler_entries(settings)
    name = named_in(named, entries)
    if name is None:
        return ()
    try:
        found = await asyncio.to_thread(ModelSource(settings, 0).inspect, entries[name])
    except (OSError, ValueError) as error:
        raise InvalidRequest(FieldViolation("hires_upscaler", f"is none: {error}")) from None
    async for _ in engine.watch(min_interval=0.0):
        # The engine looks for itself which there are.
        with contextlib.suppress(ModelNotFound, Unavailable):
            engine.model_named(name)
            break
    return (info_of(found.info),)


def _encoded(image: GeneratedImage, request: Request, model: ModelInfo) -> Picture:
    """The picture as a gateway would make it."""
    return Picture(
        index=image.index,
        seed=image.seed,
        width=image.pixels.width,
        height=image.pixels.height,
        png=metadata.png_of(image, request, model, get_settings().metadata),
        path="",
        timings=image.timings,
    )
