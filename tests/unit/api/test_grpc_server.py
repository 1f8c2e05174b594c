"""The public gRPC port notices clients that go without a word, and lets them ping it for the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from tests.e2e.harness import free_port
from tests.jobs import no_jobs
from tests.unit.gateway.scripted import READY
from text2image.api import grpc_server
from text2image.api.grpc_server import GrpcServer
from text2image.core.messages import Status
from text2image.core.settings import Settings
from text2image.gateway.generate import Gateway
from text2image.net import wire
from text2image.v1 import image_generation_pb2 as pb

PING_MS = 100
# The head of an HTTP/2 PING frame with the ACK flag (RFC 9113, section 6.7).
ANSWERED_PING = b"\x00\x00\x08\x06\x01"


class Watched:
    """The part of a gateway that a client needs who watches its status."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    def authenticate(self, credentials: object) -> None:
        pass

    async def statuses(self) -> AsyncIterator[Status]:
        try:
            yield READY
            await asyncio.Event().wait()
        finally:
            self.left.set()


class Talkative(Watched):
    """One that has more to tell than a client that does not listen can take."""

    async def statuses(self) -> AsyncIterator[Status]:
        try:
            while True:
                yield replace(READY, detail="all is well " * 1000)
        finally:
            self.left.set()


class Cable:
    """A connection to `port` that can be cut so that neither end hears of it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._intact = asyncio.Event()
        self._intact.set()
        self._relays: set[asyncio.Task[None]] = set()
        self.answered_pings = 0
        self.connections = 0

    async def __aenter__(self) -> Cable:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        for relay in self._relays:
            relay.cancel()
        self._server.close()

    def cut(self) -> None:
        self._intact.clear()

    async def _connect(self, here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, forth = await asyncio.open_connection("127.0.0.1", self._port)
        for source, sink in ((here, forth), (there, back)):
            self._relays.add(asyncio.create_task(self._relay(source, sink)))

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            await self._intact.wait()
            self.answered_pings += data.count(ANSWERED_PING)
            sink.write(data)


@contextlib.asynccontextmanager
async def serving(gateway: Watched, folder: Path, **limits: Any) -> AsyncIterator[int]:
    port = free_port()
    settings = Settings(grpc_port=port, runtime_dir=folder, **limits)
    server = GrpcServer(cast("Gateway", gateway), settings, no_jobs())
    await server.start()
    try:
        yield port
    finally:
        await server.stop()


async def test_a_client_that_went_without_a_word_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "PING_INTERVAL_MS", PING_MS)
    monkeypatch.setattr(grpc_server, "PING_TIMEOUT_MS", PING_MS)
    gateway = Watched()
    async with (
        serving(gateway, tmp_path) as port,
        Cable(port) as cable,
        grpc.aio.insecure_channel(cable.address) as channel,
    ):
        call = wire.stub(channel).WatchStatus(pb.WatchStatusRequest())
        await call.read()
        cable.cut()
        await asyncio.wait_for(gateway.left.wait(), 30)


async def test_a_stream_that_nobody_reads_ends(tmp_path: Path) -> None:
    gateway = Talkative()
    async with (
        serving(gateway, tmp_path, send_timeout=0.2) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call = wire.stub(channel).WatchStatus(pb.WatchStatusRequest())
        await call.read()
        await asyncio.wait_for(gateway.left.wait(), 30)
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() is grpc.StatusCode.CANCELLED


# grpc's own client pings at most so often, in seconds.
LEAST_PING = 1.0
# A server that minds has cut a client off by then.
PINGS = 8


@pytest.mark.parametrize(
    ("every", "calls"), [(2.0, True), (10.0, False)], ids=["during a call", "idle"]
)
async def test_a_client_that_pings_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, calls: bool
) -> None:
    """`every` is in seconds: what grpc-go, grpc-java and sidecars do at most, and what some are set to.

    All goes as much quicker as it can.
    """
    least = round(grpc_server.CLIENT_PING_MS * LEAST_PING / every)
    monkeypatch.setattr(grpc_server, "CLIENT_PING_MS", least)
    options = [
        ("grpc.keepalive_time_ms", round(LEAST_PING * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    gateway = Watched()
    async with (
        serving(gateway, tmp_path) as port,
        Cable(port) as cable,
        grpc.aio.insecure_channel(cable.address, options) as channel,
    ):
        call = wire.stub(channel).WatchStatus(pb.WatchStatusRequest())
        await call.read()
        if not calls:
            call.cancel()
            await gateway.left.wait()
        while cable.answered_pings < PINGS:
            assert channel.get_state() is grpc.ChannelConnectivity.READY
            assert not calls or not call.done(), await call.details()
            await asyncio.sleep(PING_MS / 1000)
        assert cable.connections == 1
