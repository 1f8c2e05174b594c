"""Between our nouns and the messages of gRPC v1, and between our errors and gRPC statuses, in both directions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from text2image.core import errors
from text2image.core.messages import (
    ClientEvent,
    Completed,
    Counters,
    Event,
    GeneratedImage,
    ModelInfo,
    Picture,
    Pixels,
    Progress,
    Queued,
    Request,
    RequestParams,
    Sampler,
    Share,
    State,
    Status,
    StreamOptions,
    Timings,
)
from text2image.v1 import image_generation_pb2 as pb
from text2image.v1.image_generation_pb2_grpc import ImageGenerationStub

ERROR_DOMAIN = "text2image"
# In an ErrorInfo's metadata, seconds: what a runner says of a refusal to its gateways.
_LASTS = "lasts"
_ANYTHING = "anything"
# Binary, since an owner may be called anything.
_OWNER = "text2image-owner-bin"
_WEIGHT = "text2image-weight"
Metadata = tuple[tuple[str, str | bytes], ...]

# A 2048 x 2048 picture is 12 MiB of RGB; the receiving side's default of 4 MiB would refuse it.
MAX_PICTURE_BYTES = 64 << 20

_STATES = {
    State.LOADING: pb.STATE_LOADING,
    State.READY: pb.STATE_READY,
    State.DRAINING: pb.STATE_DRAINING,
    State.FAILED: pb.STATE_FAILED,
}
_STATES_BACK = {number: state for state, number in _STATES.items()}

# All errors but `Unavailable`, which is known by its reasons; of those with one code the first is the plainest.
_KINDS: tuple[type[errors.Text2ImageError], ...] = (
    errors.InvalidRequest,
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.ModelNotFound,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
    errors.QuotaExceeded,
    errors.Cancelled,
    errors.DeadlineExceeded,
    errors.RequestTimeout,
    errors.Internal,
)
# What blames the request, by whatever code, blames it for a client that knows no more than that too.
_BLAMING = ("ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED")
_KINDS_BY_CODE: dict[int, type[errors.Text2ImageError]] = {
    **{code_pb2.Code.Value(name): errors.InvalidRequest for name in _BLAMING},
    **{code_pb2.Code.Value(kind.grpc_code): kind for kind in reversed(_KINDS)},
}

_OPTIONAL_FIELDS = (
    "negative_prompt",
    "width",
    "height",
    "steps",
    "guidance_scale",
    "seed",
    "n",
    "sampler",
)


def stub(channel: Any) -> Any:
    """The methods of v1 on a channel, blocking ones or asyncio's as the channel is."""
    return ImageGenerationStub(channel)  # type: ignore[no-untyped-call]


class MessageWithPresence(Protocol):
    """Any request message whose optional fields have our names."""

    def HasField(self, name: Any, /) -> bool: ...


def optional_fields(message: MessageWithPresence) -> dict[str, Any]:
    """The optional generation fields that a client set, by name."""
    return {name: getattr(message, name) for name in _OPTIONAL_FIELDS if message.HasField(name)}


def params_from(message: pb.GenerateRequest) -> RequestParams:
    return RequestParams(prompt=message.prompt, **optional_fields(message))


def options_from(message: pb.GenerateRequest) -> StreamOptions:
    """How much to report; negative intervals mean never, as 0 does."""
    every = message.progress_every if message.HasField("progress_every") else 1
    return StreamOptions(max(0, every), max(0, message.preview_every))


def request_to(request: Request, options: StreamOptions) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        prompt=request.prompt,
        **{name: getattr(request, name) for name in _OPTIONAL_FIELDS},
        progress_every=options.progress_every,
        preview_every=options.preview_every,
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
        case Queued(predicted_seconds=seconds):
            return pb.GenerateResponse(queued=pb.Queued(predicted_seconds=seconds))
        case Progress():
            return pb.GenerateResponse(progress=progress_to(event))
        case GeneratedImage():
            return pb.GenerateResponse(image=image_to(event))
        case Completed(truncated=truncated):
            return pb.GenerateResponse(completed=pb.Completed(left_out=truncated))


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
            return Completed(message.completed.left_out)
        case _:
            return None


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
            if field.name != "samplers"
        },
        samplers=[sampler.value for sampler in model.samplers],
    )


def model_from(message: pb.GetModelResponse) -> ModelInfo:
    values = {
        field.name: getattr(message, field.name) for field in pb.GetModelResponse.DESCRIPTOR.fields
    }
    values["sampler"] = Sampler.named(message.sampler)
    values["samplers"] = tuple(Sampler.named(name) for name in message.samplers)
    return ModelInfo(**values)


def status_to(status: Status) -> pb.WatchStatusResponse:
    return pb.WatchStatusResponse(
        state=_STATES[status.state],
        detail=status.detail,
        backlog_seconds=status.backlog_seconds,
        active=status.active,
        pace=status.pace,
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
    )


def rpc_status_of(error: errors.Text2ImageError) -> grpc.Status:
    """The gRPC status of an error, its google.rpc details in the trailer `grpc-status-details-bin`."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    if isinstance(error, errors.Unavailable) and error.lasts:
        info.metadata[_LASTS] = f"{error.lasts:.3f}"
        if error.anything:
            info.metadata[_ANYTHING] = "true"
    details: list[Message] = [info]
    if isinstance(error, errors.InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    violation(field=v.field, description=v.reason) for v in error.violations
                ]
            )
        )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.QuotaExceeded):
        violation_ = error_details_pb2.QuotaFailure.Violation(
            subject=error.subject, description=error.message
        )
        details.append(error_details_pb2.QuotaFailure(violations=[violation_]))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.grpc_code), message=error.message)
    for detail in details:
        status.details.add().Pack(detail)
    return rpc_status.to_status(status)


def error_from_rpc(call: grpc.RpcError | grpc.aio.AioRpcError) -> errors.Text2ImageError | None:
    """The error that a peer of ours sent, or None where the connection or a stranger failed the call."""
    try:
        status = rpc_status.from_call(cast(grpc.Call, call))
        details = _unpack(status.details) if status else {}
    except (ValueError, DecodeError):
        # The status and its details contradict each other, or are no such messages.
        return None
    info = details.get("ErrorInfo")
    if status is None or info is None or info.domain != ERROR_DOMAIN:
        return None
    retry = details.get("RetryInfo")
    retry_after = retry.retry_delay.ToMilliseconds() / 1000 if retry else None
    error = _rebuild(_kind_of(info.reason, status.code), status.message, retry_after, details)
    if error.reason != info.reason:
        error.reason = info.reason
    return error


def _unpack(packed: Sequence[Any]) -> dict[str, Any]:
    known = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.RetryInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.QuotaFailure,
    )
    found: dict[str, Any] = {}
    for kind in known:
        for detail in packed:
            if detail.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = message = kind()
                detail.Unpack(message)
    return found


def _kind_of(reason: str, code: int) -> type[errors.Text2ImageError]:
    """What an error is by its reason, or by its code if only later versions give that reason."""
    for kind in _KINDS:
        if kind.reason == reason:
            return kind
    return _KINDS_BY_CODE.get(code, errors.Unavailable)


def _rebuild(
    kind: type[errors.Text2ImageError],
    message: str,
    retry_after: float | None,
    details: Mapping[str, Any],
) -> errors.Text2ImageError:
    metadata = details["ErrorInfo"].metadata
    if kind is errors.InvalidRequest:
        found = details["BadRequest"].field_violations if "BadRequest" in details else ()
        violations = [errors.FieldViolation(v.field, v.description) for v in found]
        return errors.InvalidRequest(*violations or [errors.FieldViolation("request", message)])
    if kind is errors.QuotaExceeded:
        failure = details.get("QuotaFailure")
        subject = failure.violations[0].subject if failure and failure.violations else ""
        return errors.QuotaExceeded(message, retry_after=retry_after or 1.0, subject=subject)
    if kind is errors.Internal:
        return errors.Internal(message.split("quote id ")[-1].split(" ")[0])
    if kind is errors.Unavailable:
        return errors.Unavailable(
            message,
            reason=details["ErrorInfo"].reason,
            retry_after=retry_after or 1.0,
            lasts=_seconds_in(metadata.get(_LASTS, "")),
            anything=_ANYTHING in metadata,
        )
    return kind(message)


def _seconds_in(text: str) -> float:
    """What a later version may write otherwise counts as nothing."""
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
