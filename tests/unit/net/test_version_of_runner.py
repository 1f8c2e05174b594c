"""In the middle of an upgrade a runner works for gateways of other versions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import grpc
import pytest

from tests.samples import MODEL
from tests.unit.net.versions import (
    NEWER,
    SERVICE,
    VERSIONS,
    Version,
    filled,
)
from text2image.core import errors
from text2image.core.messages import (
    Completed,
    Event,
    GeneratedImage,
    ModelInfo,
    Pixels,
    Progress,
    Queued,
    Request,
    State,
    Status,
    Timings,
)
from text2image.core.settings import Settings
from text2image.engine.engine import Engine
from text2image.net import rpc_errors
from text2image.runner.service import RunnerService
from text2image.v1 import image_generation_pb2 as pb


class FakeEngine:
    """Draws a picture of one pixel."""

    models: ClassVar = [MODEL]

    def model_named(self, name: str | None) -> ModelInfo:
        return MODEL

    async def generate(self, request: Request, *_: Any, **__: Any) -> AsyncGenerator[Event, None]:
        yield Queued(1.0)
        yield Progress(0, 1, 1, Pixels(1, 1, b"abc"))
        yield GeneratedImage(0, request.seed, Pixels(1, 1, b"abc"), Timings(0, 0, 0, 0))
        yield Completed("")

    async def watch(self) -> AsyncIterator[Status]:
        yield Status(state=State.READY)
        yield Status(state=State.DRAINING)


@asynccontextmanager
async def runner_for(version: Version, folder: Path) -> AsyncIterator[SimpleNamespace]:
    """How a gateway of another version calls today's runner."""
    server = grpc.aio.server()
    service = RunnerService(cast("Engine", FakeEngine()), Settings())
    server.add_generic_rpc_handlers((service.handler(),))
    server.add_insecure_port(f"unix:{folder}/0")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{folder}/0") as channel:
        calls = {}
        for name, method in SERVICE.methods_by_name.items():
            if not version.has(method.output_type.name):
                continue
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            calls[name] = make(
                f"/{SERVICE.full_name}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=getattr(version, method.output_type.name).FromString,
            )
        yield SimpleNamespace(**calls)
    await server.stop(0)


@VERSIONS
async def test_a_runner_draws_for_a_gateway_of_another_version(
    tmp_path: Path, version: Version
) -> None:
    """It asks in its own way what it asks first: how the runner is, and what it serves."""
    async with runner_for(version, tmp_path) as runner:
        statuses = runner.WatchStatus(filled(version, pb.WatchStatusRequest()))
        assert [status.state async for status in statuses] == [pb.STATE_READY, pb.STATE_DRAINING]
        model = await runner.GetModel(filled(version, pb.GetModelRequest()))
        assert model.id == MODEL.id
        request = version.GenerateRequest(prompt="a fox", seed=7, n=1)
        events = [each.WhichOneof("event") async for each in runner.Generate(request)]
        assert events == ["queued", "progress", "image", "completed"]


async def test_what_a_runner_is_too_old_for_is_a_case_for_another_and_no_clients_fault(
    tmp_path: Path,
) -> None:
    async with runner_for(NEWER, tmp_path) as runner:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await runner.Generate(NEWER.GenerateRequest(prompt="a fox", more=7)).read()
    error = rpc_errors.error_from(refused.value)
    assert isinstance(error, errors.Unavailable)
    assert error.retry_after
    assert "older version" in error.message
