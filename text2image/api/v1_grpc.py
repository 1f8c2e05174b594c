"""gRPC v1, `text2image.v1.ImageGeneration`: events as they happen, errors as statuses with google.rpc details."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from urllib.parse import unquote

import grpc

from text2image.api import load
from text2image.core.settings import Settings
from text2image.gateway.auth import Credentials, key_in
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Gateway
from text2image.net import wire
from text2image.net.rpc import Context, Handler, Malformed, abort, checked, headers_in
from text2image.observe import tracing
from text2image.v1 import image_generation_pb2 as pb

TRANSPORT, WEB_TRANSPORT = "grpc_v1", "grpc_web"
SERVICE = pb.DESCRIPTOR.services_by_name["ImageGeneration"]


class ImageGeneration:
    """The servicer. Unlike a runner it sends PNG, and aggregates its runners' status."""

    def __init__(self, gateway: Gateway, settings: Settings, *, over_http: bool = False) -> None:
        """`over_http` tells whether calls come as requests of HTTP, where each has its trace before it gets here."""
        self._transport = WEB_TRANSPORT if over_http else TRANSPORT
        self._gateway = gateway
        self._settings = settings

    @property
    def methods(self) -> dict[str, Handler]:
        return {
            "Generate": self.generate,
            "GetModel": self.get_model,
            "ListModels": self.list_models,
            "WatchStatus": self.watch_status,
            "Cancel": self.cancel,
        }

    async def generate(
        self, request: pb.GenerateRequest | Malformed, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        if self._transport is TRANSPORT:
            await trace(context)
        gateway = self._gateway
        try:
            with gateway.metrics.request(self._transport):
                asked = self._asked(request, context)
                # With an error as well, but not for strangers.
                load.add_trailers(context, gateway)
                with gateway.in_flight.named(asked, checked(request).request_id):
                    async with aclosing(gateway.stream(asked)) as events:
                        async for event in events:
                            yield wire.client_event_to(event)
            load.add_trailers(context, gateway)
        except Exception as error:
            await abort(context, error)

    async def get_model(
        self, request: pb.GetModelRequest | Malformed, context: Context
    ) -> pb.GetModelResponse:
        try:
            self._gateway.authenticate(credentials_of(context))
            return wire.model_to(self._gateway.runners.named(checked(request).model))
        except Exception as error:
            await abort(context, error)

    async def list_models(
        self, request: pb.ListModelsRequest | Malformed, context: Context
    ) -> pb.ListModelsResponse:
        try:
            self._gateway.authenticate(credentials_of(context))
            checked(request)
            return wire.models_to(self._gateway.runners.models)
        except Exception as error:
            await abort(context, error)

    async def watch_status(
        self, request: pb.WatchStatusRequest | Malformed, context: Context
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        try:
            self._gateway.authenticate(credentials_of(context))
            checked(request)
            async with aclosing(self._gateway.statuses()) as statuses:
                async for status in statuses:
                    yield wire.status_to(status)
        except Exception as error:
            await abort(context, error)

    async def cancel(
        self, request: pb.CancelRequest | Malformed, context: Context
    ) -> pb.CancelResponse:
        try:
            caller = self._gateway.authenticate(credentials_of(context))
            found = self._gateway.in_flight.cancel(caller, checked(request).request_id)
            return pb.CancelResponse(found=found)
        except Exception as error:
            await abort(context, error)

    def _asked(self, request: pb.GenerateRequest | Malformed, context: Context) -> RequestContext:
        caller = self._gateway.authenticate(credentials_of(context))
        message = checked(request)
        params = wire.params_from(message)
        # The gateway lets go of files once it has read them, and the call holds its message until it ends.
        message.ClearField("image")
        message.ClearField("mask")
        return RequestContext(
            caller=caller,
            params=params,
            title=message.prompt,
            timeout=timeout_of(context, self._settings),
            options=wire.options_from(message),
            background=message.background,
        )


async def trace(context: Context) -> None:
    """Takes up the trace that the client names, or begins one, and tells its id in the initial metadata."""
    trace_id = tracing.begin(headers_in(context.invocation_metadata() or ()))
    # Who has gone already needs no id.
    with suppress(grpc.aio.BaseError):
        await context.send_initial_metadata(((tracing.TRACE_HEADER.lower(), trace_id),))


def credentials_of(context: Context) -> Credentials:
    """Where the client calls from, and the API key it shows as `authorization: Bearer` or as `x-api-key`."""
    shown = [(name, str(value)) for name, value in context.invocation_metadata() or ()]
    return Credentials(
        address=_address_of(context.peer()),
        forwarded_for=",".join(value for name, value in shown if name == "x-forwarded-for"),
        # The first of each name counts, as it does in HTTP.
        api_key=key_in(dict(reversed(shown))),
    )


def _address_of(peer: str) -> str:
    """The host of a peer as grpc writes it: `ipv4:127.0.0.1:5`, `ipv6:%5B::1%5D:5` or `unix:`."""
    family, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]") if family.startswith("ip") else ""
    return host or family


def timeout_of(context: Context, settings: Settings) -> float:
    """Seconds that the client gives us, up to its deadline, or the setting; never more than any request may take."""
    remaining = context.time_remaining()
    seconds = settings.request_timeout if remaining is None else max(0.0, float(remaining))
    return min(seconds, settings.longest_timeout)
