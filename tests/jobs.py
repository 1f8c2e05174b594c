"""A server of jobs alone: the real database, worker and gRPC, with small pictures in place of a model's."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from PIL import Image

from tests.e2e.harness import free_port
from tests.samples import MODEL
from tests.unit.jobs.drawers import TestDrawer, drawn
from text2image.api.grpc_server import GrpcServer
from text2image.core.errors import FieldViolation, InvalidRequest, Unauthenticated
from text2image.core.messages import Share
from text2image.core.settings import Settings
from text2image.gateway.auth import Caller, Credentials
from text2image.gateway.generate import Gateway
from text2image.jobs.claims import Claim
from text2image.jobs.jobs import Jobs
from text2image.jobs.worker import Drawn

PROMPT_THAT_FAILS = "fails"
_SIDE = 64


class Door:
    """The part of a gateway that says who is calling, by the key that is shown, and what is served."""

    runners = SimpleNamespace(models=(MODEL,))

    def authenticate(self, credentials: Credentials) -> Caller:
        if not credentials.api_key:
            raise Unauthenticated("show a key")
        return Caller(f"key:{credentials.api_key}", Share())


def colour_of(seed: int) -> tuple[int, int, int]:
    """Of the picture that is drawn from a seed."""
    return (seed * 37 % 256, seed * 61 % 256, 120)


def no_jobs() -> Jobs:
    """Those of a server that takes none."""
    nowhere = Path("/nowhere")
    return Jobs(None, nowhere, TestDrawer(), max_items=1, keep_seconds=1.0, keep_bytes=1)


@dataclass
class JobServer:
    """Draws while its gate is open."""

    address: str
    jobs: Jobs
    gate: threading.Event


@asynccontextmanager
async def job_server(folder: Path, *, open_gate: bool = True) -> AsyncIterator[JobServer]:
    gate = threading.Event()
    if open_gate:
        gate.set()

    async def draw(item: Claim) -> Drawn:
        while not gate.is_set():
            await asyncio.sleep(0.01)
        if item.params.prompt == PROMPT_THAT_FAILS:
            raise InvalidRequest(FieldViolation("prompt", "is to fail"))
        content = io.BytesIO()
        picture = Image.new("RGB", (_SIDE, _SIDE), colour_of(item.params.seed or 0))
        picture.save(content, "PNG")
        return drawn(item, content.getvalue())

    jobs = Jobs(
        folder / "jobs.sqlite",
        folder,
        TestDrawer(draw),
        max_items=20_000,
        keep_seconds=3600.0,
        keep_bytes=1 << 30,
    )
    port = free_port()
    settings = Settings(grpc_port=port, runtime_dir=folder)
    server = GrpcServer(cast("Gateway", Door()), settings, jobs)
    await jobs.start()
    await server.start()
    try:
        yield JobServer(f"localhost:{port}", jobs, gate)
    finally:
        gate.set()
        await jobs.drain()
        await server.stop()
        await jobs.close()


@contextmanager
def job_server_beside(folder: Path, *, open_gate: bool = True) -> Iterator[JobServer]:
    """The same in a thread of its own, for clients that block."""
    started: list[JobServer] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with job_server(folder, open_gate=open_gate) as server:
            started.append(server)
            ready.set()
            await asyncio.to_thread(over.wait)

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        (server,) = started
        yield server
    finally:
        over.set()
        thread.join()
