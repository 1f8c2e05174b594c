"""The Python client: pictures from a server over gRPC, with progress, cancellation and errors as exceptions.

    with Client("localhost:50051") as client:
        client.generate("a red fox", steps=20, seed=1)[0].save("fox.png")

A picture is PNG: `PIL.Image.open(io.BytesIO(picture.png))` opens it. None of the server's larger dependencies are
needed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any, Self, cast

import grpc

from text2image import wire
from text2image.errors import Cancelled, DeadlineExceeded, Text2ImageError, Unavailable
from text2image.messages import ClientEvent, ModelInfo, Picture, State, Status
from text2image.v1 import image_generation_pb2 as pb

_OPTIONS = [("grpc.max_receive_message_length", wire.MAX_PICTURE_BYTES)]
# What a client waits before it tries a server again that did not answer at all, in seconds.
_UNREACHABLE_RETRY_AFTER = 2.0
# What grpc itself may say on the client's side, without a word from the server.
_LOCAL: dict[str, type[Text2ImageError]] = {
    kind.grpc_code: kind for kind in (Cancelled, DeadlineExceeded)
}


class Client:
    """A blocking client. Safe to use from several threads; one connection is enough for all of them.

    Every call takes the optional fields of a request by name: negative_prompt, width, height (pixels), steps,
    guidance_scale, seed, n, sampler. `timeout` is in seconds; None leaves it to the server. Failures are raised as
    `Text2ImageError`, a server that cannot be reached among them.
    """

    def __init__(self, address: str = "localhost:50051") -> None:
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = wire.stub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def generate(
        self, prompt: str, *, timeout: float | None = None, **fields: Any
    ) -> list[Picture]:
        """Draws, and returns all pictures when they are finished."""
        events = self.stream(prompt, timeout=timeout, progress_every=0, **fields)
        return _pictures(list(events))

    def stream(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        progress_every: int = 1,
        preview_every: int = 0,
        **fields: Any,
    ) -> Generator[ClientEvent, None, None]:
        """Draws, and yields what happens: Queued, Progress, a Picture for each that is finished, Completed.

        Closing the generator cancels the work.
        """
        request = _request(prompt, progress_every, preview_every, fields)
        call = self._stub.Generate(request, timeout=timeout)
        try:
            for message in call:
                event = wire.client_event_from(message)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            raise _ours(error) from error
        finally:
            call.cancel()

    def model(self, *, timeout: float | None = 10.0) -> ModelInfo:
        """What the server serves: limits, and defaults of every optional field."""
        try:
            return wire.model_from(self._stub.GetModel(pb.GetModelRequest(), timeout=timeout))
        except grpc.RpcError as error:
            raise _ours(error) from error

    def watch(self, *, timeout: float | None = None) -> Generator[Status, None, None]:
        """The server's status now and each time it changes; closing the generator ends the call."""
        call = self._stub.WatchStatus(pb.WatchStatusRequest(), timeout=timeout, wait_for_ready=True)
        try:
            for message in call:
                yield wire.status_from(message)
        except grpc.RpcError as error:
            raise _ours(error) from error
        finally:
            call.cancel()

    def status(self, *, timeout: float | None = 10.0) -> Status:
        """The server's status now."""
        return _first(self.watch(timeout=timeout))

    def wait_until_ready(self, timeout: float) -> None:
        """Returns when the server takes requests; raises if it does not within `timeout` seconds."""
        for status in self.watch(timeout=timeout):
            if status.state is State.READY:
                return
        raise _unreachable("the server ended the call")


class AsyncClient:
    """The same for asyncio; make it in the event loop that uses it. Cancelling a call cancels its work."""

    def __init__(self, address: str = "localhost:50051") -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = wire.stub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def generate(
        self,
        prompt: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the server keeps it too
        **fields: Any,
    ) -> list[Picture]:
        """Draws, and returns all pictures when they are finished."""
        events = self.stream(prompt, timeout=timeout, progress_every=0, **fields)
        return _pictures([event async for event in events])

    async def stream(
        self,
        prompt: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the server keeps it too
        progress_every: int = 1,
        preview_every: int = 0,
        **fields: Any,
    ) -> AsyncGenerator[ClientEvent, None]:
        """Draws, and yields what happens; closing the generator cancels the work."""
        request = _request(prompt, progress_every, preview_every, fields)
        call = self._stub.Generate(request, timeout=timeout)
        try:
            async for message in call:
                event = wire.client_event_from(message)
                if event is not None:
                    yield event
        except grpc.aio.AioRpcError as error:
            raise _ours(error) from error
        finally:
            call.cancel()


def _request(
    prompt: str, progress_every: int, preview_every: int, fields: dict[str, Any]
) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        prompt=prompt, progress_every=progress_every, preview_every=preview_every, **fields
    )


def _pictures(events: list[ClientEvent]) -> list[Picture]:
    pictures = [event for event in events if isinstance(event, Picture)]
    return sorted(pictures, key=lambda picture: picture.index)


def _first(statuses: Iterator[Status]) -> Status:
    for status in statuses:
        return status
    raise _unreachable("the server ended the call")


def _ours(error: grpc.RpcError) -> Text2ImageError:
    """The server's own error; where it sent none, the connection failed."""
    ours = wire.error_from_rpc(error)
    if ours is not None:
        return ours
    call = cast(grpc.Call, error)
    kind = _LOCAL.get(call.code().name)
    message = f"{call.code().name}: {call.details()}"
    return kind(message) if kind else _unreachable(message)


def _unreachable(message: str) -> Unavailable:
    return Unavailable(message, reason=Unavailable.NO_RUNNER, retry_after=_UNREACHABLE_RETRY_AFTER)
