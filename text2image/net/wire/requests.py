"""What is asked for, with the share that a gateway tells a runner of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

from text2image.core.errors import (
    FieldViolation,
    InvalidRequest,
)
from text2image.core.init_image import (
    InitImage,
)
from text2image.core.messages import (
    Control,
    LoraWeight,
    Request,
    RequestParams,
    Share,
    StreamOptions,
)
from text2image.v1 import image_generation_pb2 as pb

# Binary, since an owner may be called anything.
_OWNER = "text2image-owner-bin"
_WEIGHT = "text2image-weight"
# No field, which runners of earlier versions would refuse; they may as well draw this at once.
_BACKGROUND = "text2image-background"
Metadata = tuple[tuple[str, str | bytes], ...]

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


def params_to(params: RequestParams) -> pb.GenerateRequest:
    """A request as a client sent it, with what this contract has of it; files that were read already are left out."""
    return pb.GenerateRequest(
        prompt=params.prompt,
        **{name: getattr(params, name) for name in _OPTIONAL_FIELDS},
        loras=loras_to(params.loras or ()),
        image=params.image if isinstance(params.image, bytes) else None,
        mask=params.mask,
        controls=controls_to(params.controls or ()),
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
    background: Metadata = ((_BACKGROUND, "1"),) if share.background else ()
    return ((_OWNER, share.owner.encode()), (_WEIGHT, str(share.weight)), *background)


def share_from(metadata: Iterable[tuple[str, str | bytes]]) -> Share:
    """What `share_to` made of a share, or nobody's."""
    found = dict(metadata)
    owner, weight = found.get(_OWNER, b""), str(found.get(_WEIGHT, "1"))
    return Share(
        owner.decode(errors="replace") if isinstance(owner, bytes) else owner,
        max(1, int(weight)) if weight.isdecimal() else 1,
        found.get(_BACKGROUND) == "1",
    )
