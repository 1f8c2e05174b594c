"""The Python client: pictures from a server over gRPC, with progress, cancellation and errors as exceptions.

    with Client("localhost:50051") as client:
        client.generate("a red fox", steps=20, seed=1)[0].save("fox.png")

A picture is PNG: `PIL.Image.open(io.BytesIO(picture.png))` opens it. None of the server's larger dependencies are
needed.

What a program leaves out is taken from the environment: T2I_API_KEY holds the key, T2I_TLS_CA a file with the
certificates that may vouch for the server, or `system`, and T2I_TLS_CLIENT_CERT and T2I_TLS_CLIENT_KEY the files of
the client's own certificate.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any, Self, cast

import grpc

from text2image.core.errors import (
    Cancelled,
    ContentBlocked,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    JobNotFound,
    ModelNotFound,
    PermissionDenied,
    QuotaExceeded,
    Text2ImageError,
    Unauthenticated,
    Unavailable,
)
from text2image.core.messages import (
    ClientEvent,
    Completed,
    Control,
    ControlInfo,
    Loading,
    LoraInfo,
    LoraWeight,
    ModelInfo,
    ModelState,
    ModelStatus,
    Picture,
    Progress,
    Queued,
    State,
    Status,
)
from text2image.jobs.client import AsyncJobsClient, JobsClient
from text2image.net import proxies, wire
from text2image.net.calls import error_of, request_of, unreachable
from text2image.net.credentials import Authorities, Certificate, key_metadata, tls_credentials
from text2image.v1 import image_generation_pb2 as pb

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClientEvent",
    "Completed",
    "ContentBlocked",
    "Control",
    "ControlInfo",
    "DeadlineExceeded",
    "Internal",
    "InvalidRequest",
    "JobNotFound",
    "Loading",
    "LoraInfo",
    "LoraWeight",
    "ModelInfo",
    "ModelNotFound",
    "ModelState",
    "ModelStatus",
    "PermissionDenied",
    "Picture",
    "Progress",
    "Queued",
    "QuotaExceeded",
    "State",
    "Status",
    "Text2ImageError",
    "Unauthenticated",
    "Unavailable",
]

_OPTIONS = [("grpc.max_receive_message_length", wire.MAX_PICTURE_BYTES)]


class Client:
    """A blocking client. Safe to use from several threads; one connection is enough for all of them.

    Every call takes the optional fields of a request by name: negative_prompt, width, height (pixels), steps,
    guidance_scale, seed, n, sampler, schedule, quality, model, clip_skip; loras, a list of `LoraWeight`, or of words as
    in "ink:0.8"; to begin from a picture image, strength and mask, where image and mask are PNG, JPEG or WebP files,
    as bytes or by their paths; to enlarge what is drawn and draw on from there hires_scale, hires_strength,
    hires_steps, hires_upscaler; controls, a list of `Control` whose image is bytes or a path, or of words as in
    "canny=edges.png:0.8"; background=True, to be drawn when nobody else waits; request_id, by which `cancel` knows the
    request. `timeout` is in seconds; None leaves it to the server.
    Failures are raised as `Text2ImageError`, a server that cannot be reached among them. `jobs` has what is drawn in
    the background.

    Args:
        address: host and port of gRPC, or `unix:` and the path of a socket.
        api_key: shown with every call; an empty one shows none.
        ca: who may vouch for the server, which turns TLS on: certificates in PEM, as a file or as bytes, or True
            for the authorities that everybody knows. False leaves the connection plain, even where the
            environment names some.
        certificate: files with the certificate chain and the key, in PEM, that this client shows to a server that
            asks for them.

    Raises:
        OSError: a file cannot be read.
        ValueError: the key is no key, or a certificate is none or is named without `ca`.
    """

    def __init__(
        self,
        address: str = "localhost:50051",
        *,
        api_key: str | None = None,
        ca: Authorities | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self._metadata = key_metadata(api_key)
        credentials = tls_credentials(ca, certificate)
        options = [*_OPTIONS, *proxies.channel_options(address)]
        self._address = address
        self._channel = (
            grpc.secure_channel(address, credentials, options=options)
            if credentials
            else grpc.insecure_channel(address, options=options)
        )
        self._stub = wire.stub(self._channel)
        self.jobs = JobsClient(self._channel, self._metadata, address)

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
        """Draws, and yields what happens: Loading while the model has yet to be loaded, Queued, Progress, a Picture for
        each that is finished, Completed.

        Closing the generator cancels the work.
        """
        request = request_of(prompt, progress_every, preview_every, fields)
        call = self._stub.Generate(request, timeout=timeout, metadata=self._metadata)
        try:
            for message in call:
                event = wire.client_event_from(message)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            raise error_of(error, self._address) from error
        finally:
            call.cancel()

    def cancel(self, request_id: str, *, timeout: float | None = 10.0) -> bool:
        """Ends a request of this caller's own as `Cancelled`, whoever waits for it; whether there was one."""
        request = pb.CancelRequest(request_id=request_id)
        try:
            answer = self._stub.Cancel(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_of(error, self._address) from error
        return bool(answer.found)

    def model(self, name: str | None = None, *, timeout: float | None = 10.0) -> ModelInfo:
        """A model of the server, by default the default one: limits, and defaults of every optional field."""
        request = pb.GetModelRequest(model=name)
        try:
            return wire.model_from(
                self._stub.GetModel(request, timeout=timeout, metadata=self._metadata)
            )
        except grpc.RpcError as error:
            raise error_of(error, self._address) from error

    def models(self, *, timeout: float | None = 10.0) -> list[ModelInfo]:
        """All models of the server, the default one first; a server of an earlier version has one."""
        request = pb.ListModelsRequest()
        try:
            return wire.models_from(
                self._stub.ListModels(request, timeout=timeout, metadata=self._metadata)
            )
        except grpc.RpcError as error:
            if cast(grpc.Call, error).code() is grpc.StatusCode.UNIMPLEMENTED:
                return [self.model(timeout=timeout)]
            raise error_of(error, self._address) from error

    def watch(self, *, timeout: float | None = None) -> Generator[Status, None, None]:
        """The server's status now and each time it changes; closing the generator ends the call."""
        call = self._stub.WatchStatus(
            pb.WatchStatusRequest(), timeout=timeout, metadata=self._metadata, wait_for_ready=True
        )
        try:
            for message in call:
                yield wire.status_from(message)
        except grpc.RpcError as error:
            raise error_of(error, self._address) from error
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
        raise unreachable("the server ended the call")


class AsyncClient:
    """The same for asyncio; make it in the event loop that uses it. Cancelling a call cancels its work."""

    def __init__(
        self,
        address: str = "localhost:50051",
        *,
        api_key: str | None = None,
        ca: Authorities | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self._metadata = key_metadata(api_key)
        credentials = tls_credentials(ca, certificate)
        options = [*_OPTIONS, *proxies.channel_options(address)]
        self._address = address
        self._channel = (
            grpc.aio.secure_channel(address, credentials, options=options)
            if credentials
            else grpc.aio.insecure_channel(address, options=options)
        )
        self._stub = wire.stub(self._channel)
        self.jobs = AsyncJobsClient(self._channel, self._metadata, address)

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
        request = request_of(prompt, progress_every, preview_every, fields)
        call = self._stub.Generate(request, timeout=timeout, metadata=self._metadata)
        try:
            async for message in call:
                event = wire.client_event_from(message)
                if event is not None:
                    yield event
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self._address) from error
        finally:
            call.cancel()


def _pictures(events: list[ClientEvent]) -> list[Picture]:
    pictures = [event for event in events if isinstance(event, Picture)]
    return sorted(pictures, key=lambda picture: picture.index)


def _first(statuses: Iterator[Status]) -> Status:
    for status in statuses:
        return status
    raise unreachable("the server ended the call")
