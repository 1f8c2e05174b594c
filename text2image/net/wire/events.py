"""What happens on the way, as runners and as gateways tell it."""

from __future__ import annotations

from text2image.core.messages import (
    ClientEvent,
    Completed,
    Event,
    GeneratedImage,
    Loading,
    Picture,
    Pixels,
    Progress,
    Queued,
    Timings,
)
from text2image.net.wire.presence import seconds_in
from text2image.v1 import image_generation_pb2 as pb


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
            return Loading(message.loading.detail, seconds_in(message.loading))
        case _:
            return None


def _progress_from(message: pb.Progress) -> Progress:
    preview = None
    if message.HasField("preview"):
        preview = Pixels(message.preview.width, message.preview.height, message.preview.rgb)
    return Progress(message.index, message.step, message.steps, preview)
