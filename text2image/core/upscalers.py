"""Upscalers that requests name: networks that enlarge a picture, each a model of the catalogue by a name of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.init_image import InitImage
from text2image.core.loras import HASH_DIGITS
from text2image.core.messages import ModelInfo, Request, Sampler

# Of a network's name in the catalogue, where models are drawn with that may be called the same.
PREFIX = "upscaler:"
FAMILY = "upscaler"
# What enlarges where no network is named.
LANCZOS = "Lanczos"
SUFFIXES = (".safetensors", ".pth")
# Pixels of the largest picture that a network makes: what one message between gateway and runner holds.
MAX_PIXELS = 4096 * 4096
_MOST_NAMED = 20
_WRITTEN = re.compile(r"(.*?)(?: \[([0-9a-f]+)\])?")


def model_of(upscaler: str) -> str:
    """What the network of an upscaler, as `chosen` writes it, is called in the catalogue."""
    return PREFIX + _split(upscaler)[0]


def name_of(model: ModelInfo) -> str:
    """What requests call it."""
    return model.id.removeprefix(PREFIX)


def hash_of(model: ModelInfo) -> str:
    return model.revision[:HASH_DIGITS]


def is_of(model: ModelInfo, upscaler: str) -> bool:
    """Whether this is the network that an upscaler, as `chosen` writes it, stands for."""
    return written(model) == upscaler


def written(model: ModelInfo) -> str:
    """An upscaler by name and hash, as a picture's parameters have it: `RealESRGAN_x4 [4fa0d38905]`."""
    return f"{name_of(model)} [{hash_of(model)}]"


def chosen(field: str, named: str | None, there: Sequence[ModelInfo]) -> str:
    """The upscaler that a request means, as `written` has it; empty for Lanczos' filter, the default.

    Args:
        named: its name, in any case of letters, and behind it in brackets the hash that it must have.

    Raises:
        InvalidRequest: there is none of this name, or it is another one by now.
    """
    name, pinned = _split((named or "").strip())
    if not name or name.lower() in ("none", LANCZOS.lower()):
        return ""
    found = [each for each in there if name_of(each) == name]
    found = found or [each for each in there if name_of(each).lower() == name.lower()]
    if not found:
        names = [LANCZOS, *(name_of(each) for each in there)]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        reason = f"is {name[:40]!r}; there are {', '.join(names[:_MOST_NAMED])}{more}"
        raise InvalidRequest(FieldViolation(field, reason))
    if pinned and not hash_of(found[0]).startswith(pinned[:HASH_DIGITS]):
        reason = f"names {name!r} with the hash {pinned[:HASH_DIGITS]}, and here it has {hash_of(found[0])}"
        raise InvalidRequest(FieldViolation(field, reason))
    return written(found[0])


def enlarging(upscaler: str, image: InitImage) -> Request:
    """What asks a runner for a picture enlarged by an upscaler, as `chosen` writes it, as its model makes it."""
    return Request(
        prompt="",
        negative_prompt="",
        width=image.width,
        height=image.height,
        steps=1,
        guidance_scale=0.0,
        seed=0,
        n=1,
        sampler=Sampler.EULER,
        model=model_of(upscaler),
        image=image,
        strength=1.0,
    )


def _split(text: str) -> tuple[str, str]:
    match = _WRITTEN.fullmatch(text)
    return (match[1], match[2] or "") if match else (text, "")
