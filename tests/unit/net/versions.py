"""Gateways, runners and clients of other versions, made from today's proto.

An older one lacks what was added last, and a newer one has more of everything. They speak to today's code over real
connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClassesForFiles
from prometheus_client import CollectorRegistry

from tests.samples import MODEL
from text2image.core.messages import (
    Completed,
    Event,
    GeneratedImage,
    ModelInfo,
    Pixels,
    Progress,
    Queued,
    Request,
    RequestParams,
    Share,
    State,
    Status,
    StreamOptions,
    Timings,
)
from text2image.core.validation import resolve
from text2image.gateway.runners import Runners
from text2image.net import wire
from text2image.observe.metrics import GatewayMetrics
from text2image.v1 import image_generation_pb2 as pb

FILE, PACKAGE = pb.DESCRIPTOR.name, pb.DESCRIPTOR.package
SERVICE = pb.DESCRIPTOR.services_by_name["ImageGeneration"]
# A number that no field has.
LATER = 500
LATER_SAMPLER = "res multistep"
LATER_SCHEDULE = "cosine"
LATER_QUALITY = "sketch"
LATER_STATE = 9


class Version:
    """The messages of another version, by name."""

    def __init__(self, change: Callable[[FileDescriptorProto], None]) -> None:
        file = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
        change(file)
        pool = DescriptorPool()
        pool.AddSerializedFile(file.SerializeToString())
        self._classes = GetMessageClassesForFiles([FILE], pool)

    def __getattr__(self, name: str) -> Any:
        return self._classes[f"{PACKAGE}.{name}"]

    def has(self, name: str) -> bool:
        return f"{PACKAGE}.{name}" in self._classes


def message_in(file: FileDescriptorProto, name: str) -> DescriptorProto:
    return next(message for message in file.message_type if message.name == name)


def lacking_what_came_last(file: FileDescriptorProto) -> None:
    lacks = {
        "GenerateRequest": [
            "preview_every",
            "schedule",
            "quality",
            "model",
            "loras",
            "image",
            "strength",
            "mask",
            "controls",
            "clip_skip",
            "hires_scale",
            "hires_strength",
            "hires_steps",
            "hires_upscaler",
            "request_id",
        ],
        "GenerateResponse": ["loading"],
        "GetModelRequest": ["model"],
        "Completed": ["left_out_negative"],
        "Progress": ["preview"],
        "Image": ["cached"],
        "Timings": ["encoding"],
        "Counters": ["dropped", "out_of_memory"],
        "WatchStatusResponse": ["pace", "models", "waiting", "utilization"],
        "GetModelResponse": [
            "schedules",
            "max_steps",
            "quality",
            "fast",
            "aliases",
            "licence",
            "price",
            "quantization",
            "tiled_above",
            "loras",
            "controls",
            "inputs",
            "embeddings",
            "clip_skip",
            "max_clip_skip",
            "prompt_syntax",
            "upscale",
            "upscalers",
        ],
    }
    for name, fields in lacks.items():
        message = message_in(file, name)
        kept = [field for field in message.field if field.name not in fields]
        del message.field[:]
        message.field.extend(kept)
    # An optional field is a oneof of its own.
    asked = message_in(file, "GenerateRequest")
    optional = [field for field in asked.field if field.proto3_optional]
    del asked.oneof_decl[len(optional) :]
    del message_in(file, "GetModelRequest").oneof_decl[:]
    del message_in(file, "GetModelResponse").nested_type[:]
    # It had one model.
    later = {
        "CancelRequest",
        "CancelResponse",
        "Control",
        "ControlInfo",
        "Embedding",
        "Loading",
        "Lora",
        "LoraInfo",
        "ModelStatus",
        "ListModelsRequest",
        "ListModelsResponse",
        "UpscalerInfo",
    }
    for each in [each for each in file.message_type if each.name in later]:
        file.message_type.remove(each)
    for method in [
        each for each in file.service[0].method if each.name in ("ListModels", "Cancel")
    ]:
        file.service[0].method.remove(method)
    # It had no drain.
    kept_values = [each for each in file.enum_type[0].value if each.name != "STATE_DRAINING"]
    del file.enum_type[0].value[:]
    file.enum_type[0].value.extend(kept_values)


def having_more(file: FileDescriptorProto) -> None:
    def add(name: str, field: str, kind: str = "", **more: int) -> None:
        message_in(file, name).field.add(
            name=field,
            number=LATER,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
            type=FieldDescriptorProto.TYPE_MESSAGE if kind else FieldDescriptorProto.TYPE_INT64,
            type_name=kind or None,
            **more,
        )

    file.message_type.add(name="Paused")
    add("GenerateResponse", "paused", f".{PACKAGE}.Paused", oneof_index=0)
    for name in ("GenerateRequest", "GetModelRequest", "WatchStatusRequest"):
        add(name, "more")
    for name in ("Queued", "Progress", "Image", "Pixels", "Timings", "Completed"):
        add(name, "more")
    for name in ("GetModelResponse", "WatchStatusResponse", "Counters"):
        add(name, "more")
    file.enum_type[0].value.add(name="STATE_REHEARSING", number=LATER_STATE)


OLDER, NEWER = Version(lacking_what_came_last), Version(having_more)
VERSIONS = pytest.mark.parametrize("version", [OLDER, NEWER], ids=["older", "newer"])


def filled(version: Version, message: Any) -> Any:
    """A message of another version with what it has in common with one of today, and something in all it has more."""
    converted = getattr(version, message.DESCRIPTOR.name).FromString(message.SerializeToString())
    # It would hand on what it does not know.
    converted.DiscardUnknownFields()
    fill(converted)
    return converted


def fill(message: Any) -> None:
    if "more" in message.DESCRIPTOR.fields_by_name:
        message.more = 7
    for field, value in message.ListFields():
        if field.message_type and not field.is_repeated:
            fill(value)


class Peer:
    """A runner or a gateway of another version."""

    def __init__(self, version: Version, socket: Path, *, model: ModelInfo = MODEL) -> None:
        self.version = version
        self.address = f"unix:{socket}"
        self.requests: list[Any] = []
        self.states = [pb.STATE_LOADING, pb.STATE_READY]
        self.model = model
        self.failure: grpc.Status | None = None
        self.image = wire.image_to(GeneratedImage(0, 7, Pixels(1, 1, b"abc"), Timings(1, 2, 3, 4)))

    async def generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        if self.failure:
            await context.abort_with_status(self.failure)
        events = (
            wire.event_to(Queued(1.5)),
            wire.event_to(Progress(0, 1, 2, Pixels(1, 1, b"abc"))),
            pb.GenerateResponse(image=self.image),
            wire.event_to(Completed("")),
        )
        for event in events:
            if "paused" in self.version.GenerateResponse.DESCRIPTOR.fields_by_name:
                yield self.version.GenerateResponse(paused=self.version.Paused())
            yield filled(self.version, event)

    async def get_model(self, request: Any, context: Any) -> Any:
        return filled(self.version, wire.model_to(self.model))

    async def watch_status(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for state in self.states:
            message = wire.status_to(Status(state=State.READY, backlog_seconds=2.5, active=3))
            message.counters.admitted = 5
            converted = filled(self.version, message)
            converted.state = state
            yield converted
        await asyncio.Event().wait()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Peer]:
        handlers = {}
        for name, handler, make in (
            ("Generate", self.generate, grpc.unary_stream_rpc_method_handler),
            ("GetModel", self.get_model, grpc.unary_unary_rpc_method_handler),
            ("WatchStatus", self.watch_status, grpc.unary_stream_rpc_method_handler),
        ):
            method = SERVICE.methods_by_name[name]
            handlers[name] = make(
                handler,
                request_deserializer=getattr(self.version, method.input_type.name).FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
        )
        server.add_insecure_port(self.address)
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)


@asynccontextmanager
async def gateway_of(*peers: Peer) -> AsyncIterator[Runners]:
    """Today's way to runners, once all of them are known."""
    metrics = GatewayMetrics(CollectorRegistry())
    runners = Runners([peer.address for peer in peers], 0, metrics)
    runners.start()
    try:
        async with asyncio.timeout(30):
            async for _ in runners.statuses():
                if len([link for link in runners._links if link.is_ready]) == len(peers):
                    break
        yield runners
    finally:
        await runners.close()


async def draw(runners: Runners, **params: Any) -> tuple[Request, list[Event]]:
    request = resolve(RequestParams(prompt="a fox", **params), runners.model)
    deadline = asyncio.get_running_loop().time() + 30
    stream = runners.generate(request, StreamOptions(1, 1), deadline, Share())
    async with aclosing(stream) as events:
        return request, [event async for event, _ in events]
