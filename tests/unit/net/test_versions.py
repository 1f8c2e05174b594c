"""In the middle of an upgrade gateways, runners and clients of different versions work together.

Versions are made from today's proto: an older one that lacks what was added last, and a newer one that has more of
everything. They speak to today's code over real connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClassesForFiles
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from tests.init_images import control_picture, init_image
from tests.samples import MODEL
from text2image.client import AsyncClient, Client
from text2image.core import errors
from text2image.core.messages import (
    Completed,
    Control,
    ControlInfo,
    Event,
    GeneratedImage,
    Input,
    LoraInfo,
    LoraWeight,
    ModelInfo,
    Picture,
    Pixels,
    Progress,
    PromptSyntax,
    Quality,
    Queued,
    Request,
    RequestParams,
    Sampler,
    Schedule,
    Share,
    State,
    Status,
    StreamOptions,
    Timings,
)
from text2image.core.settings import Settings
from text2image.core.validation import resolve
from text2image.engine.engine import Engine
from text2image.gateway import metadata
from text2image.gateway.runners import Runners
from text2image.net import rpc_errors, wire
from text2image.observe.metrics import GatewayMetrics
from text2image.runner.service import RunnerService
from text2image.v1 import image_generation_pb2 as pb

FILE, PACKAGE = pb.DESCRIPTOR.name, pb.DESCRIPTOR.package
SERVICE = pb.DESCRIPTOR.services_by_name["ImageGeneration"]
# A number that no field has.
LATER = 500
LATER_SAMPLER = "res multistep"
LATER_SCHEDULE = "cosine"
LATER_QUALITY = "sketch"
LATER_STATE = 9
EDGES = ControlInfo("edges", "0123456789", "Stable Diffusion 1.x")
INK = LoraInfo("ink", "0123456789", "Stable Diffusion 1.x", ("ink wash",))


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


@VERSIONS
async def test_a_gateway_draws_with_a_runner_of_another_version(
    tmp_path: Path, version: Version
) -> None:
    async with Peer(version, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        request, events = await draw(runners, seed=7)
        assert [type(event) for event in events] == [Queued, Progress, GeneratedImage, Completed]
        assert peer.requests[0].prompt == request.prompt
        assert peer.requests[0].sampler == request.sampler
        # One that has no catalogue knows no field that names a model.
        assert "model" not in {field.name for field, _ in peer.requests[0].ListFields()}
        assert [model.id for model in runners.models] == [MODEL.id]
        with pytest.raises(errors.ModelNotFound, match=f"'other' is not served here; '{MODEL.id}'"):
            runners.named("other")
        assert runners.status.active == 3
        assert runners.status.counters.admitted == 5


async def test_a_gateway_draws_with_samplers_that_it_does_not_know(tmp_path: Path) -> None:
    later = Sampler.named(LATER_SAMPLER)
    model = replace(MODEL, sampler=later, samplers=(Sampler.EULER, later))
    async with (
        Peer(NEWER, tmp_path / "0", model=model).serving() as peer,
        gateway_of(peer) as runners,
    ):
        assert [sampler.value for sampler in runners.model.samplers] == ["euler", LATER_SAMPLER]
        await draw(runners)
        request, _ = await draw(runners, sampler=LATER_SAMPLER)
        await draw(runners, sampler="euler")
        assert [asked.sampler for asked in peer.requests] == [LATER_SAMPLER] * 2 + ["euler"]
        described = metadata.describe(request, request.seed, runners.model)
        assert metadata.parse(described).sampler == LATER_SAMPLER
        # As the gateway tells its own clients.
        assert wire.model_to(runners.model).sampler == LATER_SAMPLER


async def test_a_gateway_draws_with_a_schedule_that_it_does_not_know(tmp_path: Path) -> None:
    model = replace(MODEL, schedules=(*MODEL.schedules, Schedule.named(LATER_SCHEDULE)))
    async with (
        Peer(NEWER, tmp_path / "0", model=model).serving() as peer,
        gateway_of(peer) as runners,
    ):
        request, _ = await draw(runners, sampler="euler", schedule=LATER_SCHEDULE)
        assert peer.requests[0].schedule == LATER_SCHEDULE
        described = metadata.describe(request, request.seed, runners.model)
        assert metadata.parse(described).schedule == LATER_SCHEDULE
        assert list(wire.model_to(runners.model).schedules) == [*Schedule, LATER_SCHEDULE]


async def test_an_older_runner_is_asked_for_no_schedule(tmp_path: Path) -> None:
    """It would draw without it, and say nothing."""
    async with Peer(OLDER, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        assert runners.model.schedules == ()
        with pytest.raises(errors.InvalidRequest, match="'karras'; with euler it must be left out"):
            await draw(runners, sampler="euler", schedule="karras")


async def test_an_older_runner_is_asked_for_no_adapter(tmp_path: Path) -> None:
    """It would draw without it, and say nothing."""
    model = replace(MODEL, loras=(INK,))
    async with (
        Peer(OLDER, tmp_path / "0", model=model).serving() as old,
        gateway_of(old) as runners,
    ):
        with pytest.raises(errors.InvalidRequest, match="embedded has no adapters"):
            await draw(runners, loras=(LoraWeight("ink", 0.5),))
    async with (
        Peer(OLDER, tmp_path / "1", model=model).serving() as old,
        Peer(NEWER, tmp_path / "2", model=model).serving() as new,
        gateway_of(old, new) as runners,
    ):
        assert runners.model.loras == ()
        await draw(runners)
    async with (
        Peer(NEWER, tmp_path / "3", model=model).serving() as new,
        gateway_of(new) as runners,
    ):
        await draw(runners, loras=(LoraWeight("ink", 0.5),))
        assert wire.params_from(new.requests[0]).loras == (LoraWeight("ink", 0.5, INK.hash),)


async def test_an_older_runner_is_asked_for_no_control(tmp_path: Path) -> None:
    """It would draw without it, and say nothing."""
    model = replace(MODEL, controls=(EDGES,))
    shown = control_picture((MODEL.width, MODEL.height))
    async with (
        Peer(OLDER, tmp_path / "0", model=model).serving() as old,
        gateway_of(old) as runners,
    ):
        with pytest.raises(errors.InvalidRequest, match="embedded has no ControlNets"):
            await draw(runners, controls=(Control("edges", shown),))
    async with (
        Peer(OLDER, tmp_path / "1", model=model).serving() as old,
        Peer(NEWER, tmp_path / "2", model=model).serving() as new,
        gateway_of(old, new) as runners,
    ):
        assert runners.model.controls == ()
        await draw(runners)
    async with (
        Peer(NEWER, tmp_path / "3", model=model).serving() as new,
        gateway_of(new) as runners,
    ):
        await draw(runners, controls=(Control("edges", shown, 0.5),))
        assert wire.sent_params_from(new.requests[0]).controls == (
            Control("edges", shown, 0.5, hash=EDGES.hash),
        )


async def test_an_older_runner_is_asked_for_no_layer_and_reads_prompts_as_they_stand(
    tmp_path: Path,
) -> None:
    """It would draw with its own, and weigh nothing."""
    async with Peer(OLDER, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        assert runners.model.prompt_syntax is PromptSyntax.PLAIN
        with pytest.raises(errors.InvalidRequest, match="clip_skip: is 2; embedded takes none"):
            await draw(runners, clip_skip=2)


async def test_runners_that_read_prompts_otherwise_share_no_work(tmp_path: Path) -> None:
    web_ui = replace(MODEL, prompt_syntax=PromptSyntax.A1111)
    async with (
        Peer(OLDER, tmp_path / "0").serving() as old,
        Peer(NEWER, tmp_path / "1", model=web_ui).serving() as one,
        Peer(NEWER, tmp_path / "2", model=web_ui).serving() as other,
        gateway_of(old, one, other) as runners,
    ):
        assert runners.model.prompt_syntax is PromptSyntax.A1111
        for _ in range(20):
            await draw(runners)
        assert not old.requests
        assert one.requests or other.requests


async def test_only_layers_that_all_runners_have_are_asked_for(tmp_path: Path) -> None:
    deep = replace(MODEL, max_clip_skip=12, clip_skip=2)
    async with (
        Peer(OLDER, tmp_path / "0").serving() as old,
        Peer(NEWER, tmp_path / "1", model=deep).serving() as new,
        gateway_of(old, new) as runners,
    ):
        assert (runners.model.clip_skip, runners.model.max_clip_skip) == (0, 0)


async def test_an_older_runner_is_asked_for_nothing_that_begins_from_a_picture(
    tmp_path: Path,
) -> None:
    """It would draw from the text alone."""
    async with Peer(OLDER, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        assert runners.model.inputs == (Input.TEXT,)
        with pytest.raises(errors.InvalidRequest, match=r"image: .* draws from a text alone"):
            await draw(runners, image=init_image())
        assert not peer.requests


async def test_a_runner_that_knows_nothing_of_fast_pictures_is_asked_for_the_exact_one(
    tmp_path: Path,
) -> None:
    """It would draw it all the same, and it would be kept as another picture."""
    async with Peer(OLDER, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        assert (runners.model.quality, runners.model.fast) == (Quality.EXACT, "")
        request, _ = await draw(runners, quality="fast")
        assert request.quality is Quality.EXACT
        assert "Quality" not in metadata.describe(request, request.seed, runners.model)


async def test_a_gateway_leaves_open_a_quality_that_only_its_runner_knows(tmp_path: Path) -> None:
    model = replace(MODEL, quality=Quality.named(LATER_QUALITY))
    async with (
        Peer(NEWER, tmp_path / "0", model=model).serving() as peer,
        gateway_of(peer) as runners,
    ):
        request, _ = await draw(runners)
        await draw(runners, quality="fast")
        assert [asked.quality for asked in peer.requests] == [LATER_QUALITY, "fast"]
        described = metadata.describe(request, request.seed, runners.model)
        assert metadata.parse(described).quality == LATER_QUALITY
        assert wire.model_to(runners.model).quality == LATER_QUALITY


async def test_runners_that_leave_out_different_things_all_draw_exactly(tmp_path: Path) -> None:
    async with (
        Peer(NEWER, tmp_path / "0").serving() as one,
        Peer(NEWER, tmp_path / "1", model=replace(MODEL, fast="much more")).serving() as other,
        gateway_of(one, other) as runners,
    ):
        assert runners.model.fast == ""
        for _ in range(20):
            await draw(runners, quality="fast")
        assert {asked.quality for peer in (one, other) for asked in peer.requests} == {"exact"}
        assert one.requests
        assert other.requests


async def test_the_least_of_the_runners_limits_counts(tmp_path: Path) -> None:
    few, many = ((Sampler.LCM, 8),), ((Sampler.LCM, 50), (Sampler.TCD, 50))
    async with (
        Peer(NEWER, tmp_path / "0", model=replace(MODEL, max_steps=few)).serving() as one,
        Peer(NEWER, tmp_path / "1", model=replace(MODEL, max_steps=many)).serving() as other,
        gateway_of(one, other) as runners,
    ):
        assert runners.model.max_steps == (*few, (Sampler.TCD, 50))


async def test_a_name_that_is_known_is_the_sampler_itself() -> None:
    for sampler in Sampler:
        assert Sampler.named(sampler.value) is sampler
    later = Sampler.named(LATER_SAMPLER)
    assert later == Sampler.named(LATER_SAMPLER)
    assert len({later, Sampler.named(LATER_SAMPLER), *Sampler}) == len(Sampler) + 1
    assert later not in list(Sampler)


async def test_old_and_new_runners_draw_side_by_side_with_what_both_know(tmp_path: Path) -> None:
    more = replace(MODEL, samplers=(*MODEL.samplers, Sampler.named(LATER_SAMPLER)))
    async with (
        Peer(OLDER, tmp_path / "0").serving() as old,
        Peer(NEWER, tmp_path / "1", model=more).serving() as new,
        gateway_of(old, new) as runners,
    ):
        assert runners.model.samplers == MODEL.samplers
        assert runners.model.schedules == ()
        for _ in range(20):
            await draw(runners)
        assert old.requests
        assert new.requests


async def test_a_state_of_a_later_version_is_waited_out(tmp_path: Path) -> None:
    peer = Peer(NEWER, tmp_path / "0")
    peer.states = [LATER_STATE, pb.STATE_READY]
    async with peer.serving(), gateway_of(peer) as runners:
        assert runners.is_ready
    peer.states = [LATER_STATE]
    async with peer.serving(), AsyncClient(peer.address) as client:
        async for message in client._stub.WatchStatus(pb.WatchStatusRequest()):
            assert wire.status_from(message).state is not State.READY
            break


def later_status(code: str, reason: str, *details: Any) -> grpc.Status:
    """A refusal for a reason that only later versions give, with details of kinds that only they know."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=rpc_errors.ERROR_DOMAIN)
    info.metadata.update({"lasts": "a while", "more": "7"})
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message="so it is")
    for detail in (info, *details):
        status.details.add().Pack(detail)
    unknown = any_pb2.Any(type_url="type.googleapis.com/google.rpc.Later", value=b"\xff\xff")
    status.details.add().CopyFrom(unknown)
    return rpc_status.to_status(status)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", errors.InvalidRequest),
        ("NOT_FOUND", errors.ModelNotFound),
        ("FAILED_PRECONDITION", errors.InvalidRequest),
        ("UNAUTHENTICATED", errors.Unauthenticated),
        ("PERMISSION_DENIED", errors.PermissionDenied),
        ("RESOURCE_EXHAUSTED", errors.QuotaExceeded),
        ("DEADLINE_EXCEEDED", errors.DeadlineExceeded),
        ("CANCELLED", errors.Cancelled),
        ("INTERNAL", errors.Internal),
        ("UNAVAILABLE", errors.Unavailable),
        ("ABORTED", errors.Unavailable),
    ],
)
async def test_an_error_of_a_later_version_is_what_its_code_says(
    tmp_path: Path, code: str, kind: type[errors.Text2ImageError]
) -> None:
    peer = Peer(NEWER, tmp_path / "0")
    peer.failure = later_status(code, "SOMETHING_NEW")
    async with peer.serving(), gateway_of(peer) as runners, AsyncClient(peer.address) as client:
        for ask in (partial(draw, runners), partial(client.generate, "a fox")):
            with pytest.raises(kind) as raised:
                await cast("Callable[[], Awaitable[object]]", ask)()
            assert type(raised.value) is kind
            assert raised.value.reason == "SOMETHING_NEW"
            assert kind is errors.Internal or "so it is" in raised.value.message


async def test_details_that_contradict_the_status_are_taken_for_a_strangers(
    tmp_path: Path,
) -> None:
    peer = Peer(NEWER, tmp_path / "0")
    peer.failure = later_status("NOT_FOUND", "X")._replace(code=grpc.StatusCode.INTERNAL)
    async with peer.serving(), AsyncClient(peer.address) as client:
        with pytest.raises(errors.Text2ImageError):
            await client.generate("a fox")


@VERSIONS
async def test_a_client_draws_at_a_gateway_of_another_version(
    tmp_path: Path, version: Version
) -> None:
    later = Sampler.named(LATER_SAMPLER)
    peer = Peer(version, tmp_path / "0", model=replace(MODEL, sampler=later, samplers=(later,)))
    peer.image = pb.Image(index=0, seed=7, width=1, height=1, png=b"PNG", path="there")
    async with peer.serving(), AsyncClient(peer.address) as client:
        events = [event async for event in client.stream("a fox", seed=7)]
        assert [type(event) for event in events] == [Queued, Progress, Picture, Completed]
        model = wire.model_from(await client._stub.GetModel(pb.GetModelRequest()))
        assert [model.sampler.value, *model.samplers] == [LATER_SAMPLER] * 2


@pytest.mark.parametrize("version", [OLDER], ids=["older"])
async def test_a_client_of_a_server_without_a_catalogue_knows_its_one_model(
    tmp_path: Path, version: Version
) -> None:
    def models() -> list[ModelInfo]:
        with Client(peer.address) as client:
            return client.models()

    async with Peer(version, tmp_path / "0").serving() as peer:
        assert [model.id for model in await asyncio.to_thread(models)] == [MODEL.id]


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
