"""gRPC v1 on top of an engine: what a gateway says to a runner."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

import grpc

from text2image.core.errors import Text2ImageError, Unavailable
from text2image.core.hires import require_single
from text2image.core.messages import Event, GeneratedImage, Queued
from text2image.core.settings import Settings
from text2image.core.validation import resolve
from text2image.engine.engine import Engine
from text2image.net import rpc, wire
from text2image.observe import tracing
from text2image.v1 import image_generation_pb2 as pb

logger = logging.getLogger(__name__)

# What a client is told to wait for a runner of its gateway's version, in seconds.
OLDER_RETRY_AFTER = 10.0


class RunnerService:
    """The methods of `text2image.v1.ImageGeneration`, pictures as raw RGB."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        methods: dict[str, rpc.Handler] = {
            "Generate": self.generate,
            "GetModel": self.get_model,
            "ListModels": self.list_models,
            "WatchStatus": self.watch_status,
        }
        service = pb.DESCRIPTOR.services_by_name["ImageGeneration"]
        return rpc.generic_handler(service, methods, wire.MAX_REQUEST_BYTES, unknown=_of_later)

    async def generate(
        self, message: pb.GenerateRequest | rpc.Malformed, context: rpc.Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Streams a request's events. The call's deadline and cancellation are the request's."""
        metadata = context.invocation_metadata() or ()
        tracing.begin(rpc.headers_in(metadata))
        try:
            with tracing.request("Generate"):
                parsed = rpc.checked(message)
                params = wire.sent_params_from(parsed)
                model = self._engine.model_named(params.model)
                request = require_single(resolve(params, model))
                remaining = context.time_remaining()
                time_limit = self._settings.request_timeout if remaining is None else remaining
                options = wire.options_from(parsed)
                if self._settings.checks:
                    # Nobody looks at previews before they are given out.
                    options = replace(options, preview_every=0)
                events = self._engine.generate(
                    request,
                    options,
                    time_limit=time_limit,
                    share=wire.share_from(metadata),
                )
                async with aclosing(_traced(events)) as traced:
                    async for event in traced:
                        yield wire.event_to(event)
        except Exception as error:
            await rpc.abort(context, error)

    async def get_model(
        self, message: pb.GetModelRequest | rpc.Malformed, context: rpc.Context
    ) -> pb.GetModelResponse:
        """A model, by default the default one; UNAVAILABLE until that is loaded."""
        try:
            return wire.model_to(self._engine.model_named(rpc.checked(message).model))
        except Exception as error:
            await rpc.abort(context, error)

    async def list_models(
        self, message: pb.ListModelsRequest | rpc.Malformed, context: rpc.Context
    ) -> pb.ListModelsResponse:
        """All models, the default one first; UNAVAILABLE until that is loaded."""
        try:
            rpc.checked(message)
            return wire.models_to(self._engine.models)
        except Exception as error:
            await rpc.abort(context, error)

    async def watch_status(
        self, message: pb.WatchStatusRequest | rpc.Malformed, context: rpc.Context
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        """Streams the engine's status now and after each change."""
        try:
            rpc.checked(message)
            async for status in self._engine.watch():
                yield wire.status_to(status)
        except Exception as error:
            await rpc.abort(context, error)


def _of_later(message: str, numbers: Sequence[int]) -> Text2ImageError | None:
    """What becomes of fields that a gateway of a later version sends, as in the middle of an upgrade.

    A request that needs them would be drawn otherwise than it was asked for. Its client did nothing wrong, and a runner
    of the gateway's version may be there already, or soon.
    """
    if message != pb.GenerateRequest.DESCRIPTOR.name:
        return None
    return Unavailable(
        f"this runner is of an older version than its gateway, and lacks what was asked for (fields {numbers})",
        reason=Unavailable.NO_RUNNER,
        retry_after=OLDER_RETRY_AFTER,
    )


async def _traced(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The events of a request, whose pictures' stages are spans of its trace."""
    admitted_ns = 0
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Queued):
                admitted_ns = time.time_ns()
            elif isinstance(event, GeneratedImage):
                tracing.drawn(event.index, admitted_ns, event.timings)
            yield event
