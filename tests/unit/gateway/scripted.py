"""A runner whose every answer is written by the test, on a real socket, so that connections really break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc

from tests.samples import MODEL
from text2image.core.messages import (
    Completed,
    Event,
    GeneratedImage,
    ModelInfo,
    Pixels,
    Progress,
    Queued,
    State,
    Status,
    Timings,
)
from text2image.net import rpc, wire
from text2image.v1 import image_generation_pb2 as pb

BREAK = "break"
HANG = "hang"
Step = Event | Exception | grpc.StatusCode | str
READY = Status(state=State.READY)


def image(index: int) -> GeneratedImage:
    return GeneratedImage(index, 7 + index, Pixels(1, 1, b"abc"), Timings(0, 0, 0))


# How a request for two pictures goes when nothing goes wrong.
STORY: tuple[Event, ...] = (
    Queued(1.0),
    Progress(0, 1, 1),
    image(0),
    image(1),
    Completed(""),
)


class ScriptedRunner:
    """Plays the next script for each request, and the last one for all further requests."""

    def __init__(
        self,
        socket: Path,
        *scripts: Sequence[Step],
        status: Status = READY,
        model: ModelInfo = MODEL,
        others: Sequence[ModelInfo] = (),
    ) -> None:
        """`others` are its models beside the default one, if its status tells of any."""
        self.socket = socket
        self.model = model
        self.others = others
        self.requests: list[pb.GenerateRequest] = []
        self.cancelled = asyncio.Event()
        self._scripts = list(scripts or [STORY])
        self._status = status
        self._changed = asyncio.Event()
        self._hung = asyncio.Event()

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._server = grpc.aio.server()
        methods: dict[str, rpc.Handler] = {
            "Generate": self.generate,
            "GetModel": self.get_model,
            "ListModels": self.list_models,
            "WatchStatus": self.watch_status,
        }
        service = pb.DESCRIPTOR.services_by_name["ImageGeneration"]
        self._server.add_generic_rpc_handlers((rpc.generic_handler(service, methods, 1 << 20),))
        self._listen(self._server)
        await self._server.start()

    def _listen(self, server: grpc.aio.Server) -> None:
        server.add_insecure_port(self.address)

    async def die(self) -> None:
        """Breaks every connection at once."""
        await self._server.stop(0)

    async def restart(self) -> None:
        await self.die()
        await self.start()

    def play(self, *scripts: Sequence[Step]) -> None:
        """What further requests get, in place of all scripts so far."""
        self._scripts = list(scripts)

    def show(self, status: Status) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()

    async def hung(self) -> None:
        """Returns when a script has come to its HANG."""
        await self._hung.wait()

    async def generate(
        self, request: pb.GenerateRequest, context: rpc.Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        try:
            for step in script:
                if isinstance(step, Exception):
                    await rpc.abort(context, step)
                elif isinstance(step, grpc.StatusCode):
                    await context.abort(step, "said grpc")
                elif step == BREAK:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                elif step == HANG:
                    self._hung.set()
                    await asyncio.Event().wait()
                else:
                    yield wire.event_to(step)  # type: ignore[arg-type]
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def get_model(self, _: object, context: rpc.Context) -> pb.GetModelResponse:
        return wire.model_to(self.model)

    async def list_models(self, _: object, context: rpc.Context) -> pb.ListModelsResponse:
        return wire.models_to([self.model, *self.others])

    async def watch_status(
        self, _: object, context: rpc.Context
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        while True:
            changed = self._changed
            yield wire.status_to(self._status)
            await changed.wait()
