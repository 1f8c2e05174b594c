"""Between our nouns and the messages of gRPC v1, in both directions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

from text2image.core.controls import MAX_CONTROLS
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.init_image import InitImage
from text2image.core.messages import (
    SIDE_MULTIPLE,
    ClientEvent,
    Completed,
    Control,
    ControlInfo,
    Counters,
    Embedding,
    Event,
    GeneratedImage,
    Input,
    Loading,
    LoraInfo,
    LoraWeight,
    ModelInfo,
    ModelState,
    ModelStatus,
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
from text2image.v1 import image_generation_pb2 as pb
from text2image.v1.image_generation_pb2_grpc import ImageGenerationStub

# Binary, since an owner may be called anything.
_OWNER = "text2image-owner-bin"
_WEIGHT = "text2image-weight"
Metadata = tuple[tuple[str, str | bytes], ...]

# A 4096 x 4096 picture is 48 MiB of RGB, and its mask 16 more; the receiving side's default of 4 MiB would refuse it.
MAX_PICTURE_BYTES = 68 << 20

# A request has pictures that steer it besides.
MAX_REQUEST_BYTES = MAX_PICTURE_BYTES * (1 + MAX_CONTROLS)

_STATES = {
    State.LOADING: pb.STATE_LOADING,
    State.READY: pb.STATE_READY,
    State.DRAINING: pb.STATE_DRAINING,
    State.FAILED: pb.STATE_FAILED,
}
_STATES_BACK = {number: state for state, number in _STATES.items()}

# For gateways, which draw in two passes then.
_HIRES = ("hires_scale", "hires_strength", "hires_steps", "hires_upscaler")
_OPTIONAL_FIELDS = (
    "negative_prompt",
    "width",
    "height",
    "steps",
    "guidance_scale",
    "seed",
    "n",
    "sampler",
    "schedule",
    "quality",
    "model",
    "strength",
    "clip_skip",
    *_HIRES,
)
# Of a model: names that a later version may know more of, limits by such a name, and what is a message of its own.
_NAMES = {
    "sampler",
    "samplers",
    "schedules",
    "max_steps",
    "quality",
    "embeddings",
    "prompt_syntax",
    "inputs",
    "loras",
    "controls",
}


def stub(channel: Any) -> Any:
    """The methods of v1 on a channel, blocking ones or asyncio's as the channel is."""
    return ImageGenerationStub(channel)  # type: ignore[no-untyped-call]


class MessageWithPresence(Protocol):
    """Any request message whose optional fields have our names; it may lack some."""

    DESCRIPTOR: Any

    def HasField(self, name: Any, /) -> bool: ...


def optional_fields(message: MessageWithPresence) -> dict[str, Any]:
    """The optional generation fields that a client set, by name."""
    known = message.DESCRIPTOR.fields_by_name
    return {
        name: getattr(message, name)
        for name in _OPTIONAL_FIELDS
        if name in known and message.HasField(name)
    }


def params_from(message: pb.GenerateRequest) -> RequestParams:
    """A request as a client sends it, with files."""
    return RequestParams(
        prompt=message.prompt,
        image=message.image if message.HasField("image") else None,
        mask=message.mask if message.HasField("mask") else None,
        **optional_fields(message),
        loras=tuple(_lora_from(each) for each in message.loras) or None,
        controls=tuple(_control_from(each) for each in message.controls) or None,
    )


def loras_to(loras: Iterable[LoraWeight]) -> list[pb.Lora]:
    return [pb.Lora(name=each.name, weight=each.weight, hash=each.hash) for each in loras]


def _lora_from(message: pb.Lora) -> LoraWeight:
    weight = message.weight if message.HasField("weight") else 1.0
    return LoraWeight(message.name, weight, message.hash)


def controls_to(controls: Iterable[Control]) -> list[pb.Control]:
    """Controls with files as a client sends them, or with pixels as a gateway does."""
    return [
        pb.Control(
            name=each.name,
            image=each.image.rgb if isinstance(each.image, InitImage) else each.image,
            mask=each.image.mask if isinstance(each.image, InitImage) else None,
            scale=each.scale,
            start=each.start,
            end=each.end,
            preprocess=each.preprocess,
            hash=each.hash,
        )
        for each in controls
    ]


def _control_from(message: pb.Control) -> Control:
    return Control(
        message.name,
        message.image if message.HasField("image") else None,
        message.scale if message.HasField("scale") else 1.0,
        message.start,
        message.end if message.HasField("end") else 1.0,
        message.preprocess,
        message.hash,
    )


def sent_params_from(message: pb.GenerateRequest) -> RequestParams:
    """A request as a gateway sends it to a runner, with pixels.

    Raises:
        InvalidRequest: there are more or fewer pixels than its size says.
    """
    params = params_from(message)
    if isinstance(params.image, bytes):
        image = _pixels_in("image", params, params.image, params.mask)
        params = replace(params, image=image, mask=None)
    if params.controls:
        masks = [each.mask if each.HasField("mask") else None for each in message.controls]
        controls = tuple(
            replace(each, image=_pixels_in("controls", params, each.image, mask))
            if isinstance(each.image, bytes)
            else each
            for each, mask in zip(params.controls, masks, strict=True)
        )
        params = replace(params, controls=controls)
    return params


def _pixels_in(field: str, params: RequestParams, rgb: bytes, mask: bytes | None) -> InitImage:
    try:
        return InitImage.of(params.width or 0, params.height or 0, rgb, mask)
    except ValueError as error:
        reason = f"is for a runner to be pixels: {error}"
        raise InvalidRequest(FieldViolation(field, reason)) from None


def options_from(message: pb.GenerateRequest) -> StreamOptions:
    """How much to report; negative intervals mean never, as 0 does."""
    every = message.progress_every if message.HasField("progress_every") else 1
    return StreamOptions(max(0, every), max(0, message.preview_every))


def request_to(request: Request, options: StreamOptions) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        prompt=request.prompt,
        **{
            name: getattr(request, name)
            for name in _OPTIONAL_FIELDS
            if name not in ("model", *_HIRES)
        },
        progress_every=options.progress_every,
        preview_every=options.preview_every,
        # Runners of earlier versions have one model, and know no field that names it.
        model=request.model or None,
        loras=loras_to(request.loras),
        # Those that do not know these fields refuse them.
        image=request.image.rgb if request.image else None,
        mask=request.image.mask if request.image else None,
        controls=controls_to(request.controls),
    )


def share_to(share: Share) -> Metadata:
    """Call metadata from a gateway to a runner; clients of a gateway have no say in it."""
    return ((_OWNER, share.owner.encode()), (_WEIGHT, str(share.weight)))


def share_from(metadata: Iterable[tuple[str, str | bytes]]) -> Share:
    """What `share_to` made of a share, or nobody's."""
    found = dict(metadata)
    owner, weight = found.get(_OWNER, b""), str(found.get(_WEIGHT, "1"))
    return Share(
        owner.decode(errors="replace") if isinstance(owner, bytes) else owner,
        max(1, int(weight)) if weight.isdecimal() else 1,
    )


def event_to(event: Event) -> pb.GenerateResponse:
    """An event as a runner sends it: pictures as raw RGB."""
    match event:
        case Loading(detail=detail, seconds=left):
            return pb.GenerateResponse(loading=pb.Loading(detail=detail, seconds=left))
        case Queued(predicted_seconds=seconds):
            return pb.GenerateResponse(queued=pb.Queued(predicted_seconds=seconds))
        case Progress():
            return pb.GenerateResponse(progress=progress_to(event))
        case GeneratedImage():
            return pb.GenerateResponse(image=image_to(event))
        case Completed(truncated=truncated, truncated_negative=negative):
            completed = pb.Completed(left_out=truncated, left_out_negative=negative)
            return pb.GenerateResponse(completed=completed)


def progress_to(event: Progress) -> pb.Progress:
    message = pb.Progress(index=event.index, step=event.step, steps=event.steps)
    if event.preview is not None:
        preview = event.preview
        message.preview.CopyFrom(
            pb.Pixels(width=preview.width, height=preview.height, rgb=preview.rgb)
        )
    return message


def image_to(image: GeneratedImage) -> pb.Image:
    """A finished picture as a runner sends it."""
    return pb.Image(
        index=image.index,
        seed=image.seed,
        width=image.pixels.width,
        height=image.pixels.height,
        rgb=image.pixels.rgb,
        timings=_timings_to(image.timings),
    )


def client_event_to(event: ClientEvent) -> pb.GenerateResponse:
    """An event as a gateway sends it: pictures as PNG."""
    if not isinstance(event, Picture):
        return event_to(event)
    image = pb.Image(
        index=event.index,
        seed=event.seed,
        width=event.width,
        height=event.height,
        png=event.png,
        path=event.path,
        timings=_timings_to(event.timings),
        cached=event.cached,
    )
    return pb.GenerateResponse(image=image)


def client_event_from(message: pb.GenerateResponse) -> ClientEvent | None:
    """A gateway's event, or None for a kind that this version does not know."""
    if message.WhichOneof("event") != "image":
        event = event_from(message)
        return None if isinstance(event, GeneratedImage) else event
    image = message.image
    return Picture(
        index=image.index,
        seed=image.seed,
        width=image.width,
        height=image.height,
        png=image.png,
        path=image.path,
        timings=_timings_from(image.timings),
        cached=image.cached,
    )


def _timings_to(timings: Timings) -> pb.Timings:
    return pb.Timings(
        queued=timings.queued,
        denoising=timings.denoising,
        decoding=timings.decoding,
        encoding=timings.encoding,
    )


def _timings_from(message: pb.Timings) -> Timings:
    return Timings(message.queued, message.denoising, message.decoding, message.encoding)


def event_from(message: pb.GenerateResponse) -> Event | None:
    """A runner's event, or None for a kind that this version does not know."""
    match message.WhichOneof("event"):
        case "queued":
            return Queued(message.queued.predicted_seconds)
        case "progress":
            return _progress_from(message.progress)
        case "image":
            image = message.image
            return GeneratedImage(
                index=image.index,
                seed=image.seed,
                pixels=Pixels(image.width, image.height, image.rgb),
                timings=_timings_from(image.timings),
            )
        case "completed":
            return Completed(message.completed.left_out, message.completed.left_out_negative)
        case "loading":
            return Loading(message.loading.detail, _seconds_in(message.loading))
        case _:
            return None


def _seconds_in(message: pb.Loading | pb.ModelStatus) -> float | None:
    return message.seconds if message.HasField("seconds") else None


def _progress_from(message: pb.Progress) -> Progress:
    preview = None
    if message.HasField("preview"):
        preview = Pixels(message.preview.width, message.preview.height, message.preview.rgb)
    return Progress(message.index, message.step, message.steps, preview)


def model_to(model: ModelInfo) -> pb.GetModelResponse:
    return pb.GetModelResponse(
        **{
            field.name: getattr(model, field.name)
            for field in pb.GetModelResponse.DESCRIPTOR.fields
            if field.name not in _NAMES
        },
        sampler=model.sampler.value,
        samplers=[sampler.value for sampler in model.samplers],
        schedules=[schedule.value for schedule in model.schedules],
        max_steps={sampler.value: steps for sampler, steps in model.max_steps},
        quality=model.quality.value,
        loras=[
            pb.LoraInfo(
                name=each.name,
                hash=each.hash,
                base=each.base,
                trigger_words=each.trigger_words,
                fault=each.fault,
            )
            for each in model.loras
        ],
        controls=[
            pb.ControlInfo(name=each.name, hash=each.hash, base=each.base, fault=each.fault)
            for each in model.controls
        ],
        inputs=[each.value for each in model.inputs],
        embeddings=[
            pb.Embedding(name=each.name, hash=each.hash, vectors=each.vectors)
            for each in model.embeddings
        ],
        prompt_syntax=model.prompt_syntax.value,
    )


def model_from(message: pb.GetModelResponse) -> ModelInfo:
    values = {
        field.name: getattr(message, field.name) for field in pb.GetModelResponse.DESCRIPTOR.fields
    }
    values["sampler"] = Sampler.named(message.sampler)
    values["samplers"] = tuple(Sampler.named(name) for name in message.samplers)
    values["schedules"] = tuple(Schedule.named(name) for name in message.schedules)
    values["max_steps"] = tuple(
        (Sampler.named(name), steps) for name, steps in sorted(message.max_steps.items())
    )
    # A runner of an earlier version draws exactly, and does not say so.
    values["quality"] = Quality.named(message.quality or Quality.EXACT)
    # And one of before they were told draws from a text alone.
    values["inputs"] = tuple(map(Input.named, message.inputs)) or (Input.TEXT,)
    values["aliases"] = tuple(message.aliases)
    values["embeddings"] = tuple(
        Embedding(each.name, each.hash, each.vectors) for each in message.embeddings
    )
    # One of before there was a choice reads prompts as they stand.
    values["prompt_syntax"] = PromptSyntax.named(message.prompt_syntax or PromptSyntax.PLAIN)
    values["price"] = message.price or 1.0
    # One of before this was told draws multiples of 8.
    values["side_multiple"] = message.side_multiple or SIDE_MULTIPLE
    values["loras"] = tuple(
        LoraInfo(each.name, each.hash, each.base, tuple(each.trigger_words), each.fault)
        for each in message.loras
    )
    values["controls"] = tuple(
        ControlInfo(each.name, each.hash, each.base, each.fault) for each in message.controls
    )
    return ModelInfo(**values)


def models_to(models: Iterable[ModelInfo]) -> pb.ListModelsResponse:
    return pb.ListModelsResponse(models=[model_to(model) for model in models])


def models_from(message: pb.ListModelsResponse) -> list[ModelInfo]:
    return [model_from(model) for model in message.models]


def status_to(status: Status) -> pb.WatchStatusResponse:
    return pb.WatchStatusResponse(
        state=_STATES[status.state],
        detail=status.detail,
        backlog_seconds=status.backlog_seconds,
        active=status.active,
        pace=status.pace,
        models=[
            pb.ModelStatus(
                name=model.name,
                revision=model.revision,
                state=model.state.value,
                detail=model.detail,
                seconds=model.seconds,
                offers=model.offers,
                adapters=model.adapters,
                waiting_adapters=model.waiting_adapters,
            )
            for model in status.models
        ],
        waiting=status.waiting,
        utilization=status.utilization,
        counters=pb.Counters(
            **{
                field.name: getattr(status.counters, field.name)
                for field in pb.Counters.DESCRIPTOR.fields
            }
        ),
    )


def status_from(message: pb.WatchStatusResponse) -> Status:
    counters = {
        field.name: getattr(message.counters, field.name) for field in pb.Counters.DESCRIPTOR.fields
    }
    return Status(
        state=_STATES_BACK.get(message.state, State.FAILED),
        detail=message.detail,
        backlog_seconds=message.backlog_seconds,
        active=message.active,
        counters=Counters(**counters),
        pace=message.pace,
        models=tuple(
            ModelStatus(
                name=model.name,
                revision=model.revision,
                state=ModelState.named(model.state),
                detail=model.detail,
                seconds=_seconds_in(model),
                offers=model.offers,
                adapters=tuple(model.adapters),
                waiting_adapters=tuple(model.waiting_adapters),
            )
            for model in message.models
        ),
        waiting=message.waiting,
        utilization=message.utilization,
    )
