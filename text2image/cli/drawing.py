"""The two ways to draw: on a server over gRPC, or with the engine in this process. Both tell the same events."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import grpc

from text2image.cli.arguments import Options
from text2image.cli.screen import Screen
from text2image.client import Client
from text2image.core.errors import Text2ImageError, Unavailable
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
)
from text2image.core.settings import Settings
from text2image.core.validation import resolve
from text2image.gateway import hires, metadata
from text2image.gateway.init_images import Limits, read
from text2image.net import rpc_errors

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
    named = options.server or settings.server
    address = named or settings.server_address
    absence = "" if options.local else _absence(address)
    if named and absence:
        raise CannotDraw(
            f"no server listens at {address} ({absence}); `make serve` starts one, and --local "
            "draws without"
        )
    if options.local or absence:
        screen.say(
            f"no server at {address}: this process draws" if absence else "this process draws"
        )
        asyncio.run(_draw_here(options, settings, screen, tell))
    else:
        _draw_on_server(address, options, settings, screen, tell)


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
        try:
            patience = options.timeout or settings.request_timeout
            model = _model_of(client, screen, patience, options.params.model)
        except Text2ImageError as error:
            if _is_of_server(error):
                raise
            raise CannotDraw(
                f"{address} does not answer as a server of ours does ({error.message}); if it "
                "serves TLS, T2I_TLS_CA must name who vouches for it"
            ) from error
        screen.say(f"drawing with {model.id} on the server at {address}")
        fields = {name: getattr(options.params, name) for name in RequestParams.__slots__}
        # The command's masks are white where they mark.
        del fields["mask_by_alpha"]
        given = {name: value for name, value in fields.items() if value is not None}
        for event in client.stream(timeout=options.timeout, **given):
            tell(event)


def _is_of_server(error: Text2ImageError) -> bool:
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
    from text2image.engine.adapters.requests import Budgets
    from text2image.engine.engine import Engine
    from text2image.engine.lazy import loader

    if options.params.model:
        settings = settings.model_copy(update={"model": options.params.model})
    # One request is all there will be: it is admitted, and no larger batches need to be measured.
    engine = Engine(
        loader(settings),
        budgets=Budgets(settings.adapter_memory, settings.controlnet_memory),
        max_batch_rows=settings.max_batch_rows or 2 * (options.params.n or 1),
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
        model = engine.model
        screen.say(f"drawing with {model.id} on {model.device}")
        params = without_tags(options.params) if settings.prompt_loras else options.params
        request = resolve(read(params, model, Limits.of(settings)), model)
        limit = math.inf if options.timeout is None else options.timeout
        ends = time.monotonic() + limit

        async def generate(
            request: Request,
        ) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
            each = StreamOptions(progress_every=1)
            left = max(0.0, ends - time.monotonic())
            async with aclosing(engine.generate(request, each, time_limit=left)) as events:
                async for event in events:
                    yield event, model

        async with aclosing(hires.drawn(request, generate)) as events:
            async for event, _ in events:
                if isinstance(event, GeneratedImage):
                    tell(_encoded(event, request, model))
                else:
                    tell(event)
    finally:
        await engine.stop()


def _encoded(image: GeneratedImage, request: Request, model: ModelInfo) -> Picture:
    """The picture as a gateway would make it."""
    return Picture(
        index=image.index,
        seed=image.seed,
        width=image.pixels.width,
        height=image.pixels.height,
        png=metadata.encode(image.pixels, metadata.describe(request, image.seed, model)),
        path="",
        timings=image.timings,
    )
