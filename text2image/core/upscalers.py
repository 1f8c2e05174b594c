"""Upscalers that requests name: networks that enlarge a picture, each a model of the catalogue by a name of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.init_image import InitImage
from text2image.core.loras import HASH_DIGITS
from text2image.core.messages import ModelInfo, Request, Sampler, UpscalerInfo

# Of a network's name in the catalogue, where models are drawn with that may be called the same.
PREFIX = "upscaler:"
FAMILY = "upscaler"
# What enlarges where no network is named.
LANCZOS = "Lanczos"
SUFFIXES = (".safetensors", ".pth")
# Pixels of the largest picture that a network makes: what one message between gateway and runner holds.
MAX_PIXELS = 4096 * 4096
# Pixels that neighbouring tiles have in common.
OVERLAP = 16
# As often as A1111 has a network enlarge a picture that is still too small.
_ROUNDS = 3
# As many steps as progress is told in: what requests may have.
_MOST_STEPS = 150
_MOST_NAMED = 20
_WRITTEN = re.compile(r"(.*?)(?: \[([0-9a-f]+)\])?")

Size = tuple[int, int]


def info_of(model: ModelInfo) -> UpscalerInfo:
    """What is told of a model of the catalogue that enlarges."""
    name = model.id.removeprefix(PREFIX)
    return UpscalerInfo(name, model.revision[:HASH_DIGITS], model.upscale, model.width)


def upscalers_in(models: Iterable[ModelInfo]) -> tuple[UpscalerInfo, ...]:
    """Those of these models that enlarge."""
    return tuple(info_of(model) for model in models if model.upscale)


def is_of(model: ModelInfo, upscaler: UpscalerInfo) -> bool:
    """Whether this is the network that an upscaler stands for, of the same file."""
    return written(info_of(model)) == written(upscaler)


def written(info: UpscalerInfo) -> str:
    """An upscaler by name and hash, as a picture's parameters have it: `RealESRGAN_x4 [4fa0d38905]`."""
    return f"{info.name} [{info.hash}]"


def chosen(field: str, named: str | None, there: Sequence[UpscalerInfo]) -> str | None:
    """The upscaler that a request means, as `written` has it; None for Lanczos' filter, the default.

    Args:
        named: its name, in any case of letters, and behind it in brackets the hash that it must have.

    Raises:
        InvalidRequest: there is none of this name, or it is another one by now.
    """
    name, pinned = _split((named or "").strip())
    if not name or name.lower() in ("none", LANCZOS.lower()):
        return None
    by_name = {each.name: each for each in there}
    found = _alike(name, by_name)
    if found is None:
        names = [LANCZOS, *(each.name for each in there)]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        reason = f"is {name[:40]!r}; there are {', '.join(names[:_MOST_NAMED])}{more}"
        raise InvalidRequest(FieldViolation(field, reason))
    info = by_name[found]
    if pinned and not info.hash.startswith(pinned[:HASH_DIGITS]):
        reason = f"names {name!r} with the hash {pinned[:HASH_DIGITS]}, and here it has {info.hash}"
        raise InvalidRequest(FieldViolation(field, reason))
    return written(info)


def named_in(named: str, entries: Iterable[str]) -> str | None:
    """Which of these models of the catalogue a request means, if any; `named` as `chosen` has it."""
    there = {each.removeprefix(PREFIX): each for each in entries}
    found = _alike(_split(named.strip())[0], there)
    return None if found is None else there[found]


def _alike(name: str, there: Iterable[str]) -> str | None:
    """The name that is the same, or else the first that is but for the case of its letters."""
    alike = [each for each in there if each.lower() == name.lower()]
    return name if name in alike else next(iter(alike), None)


def named(upscaler: str | None, there: Sequence[UpscalerInfo]) -> UpscalerInfo | None:
    """The upscaler that `chosen` wrote so; None for Lanczos' filter.

    Raises:
        InvalidRequest: it is gone, or its file is another one by now.
    """
    if not upscaler:
        return None
    for each in there:
        if written(each) == upscaler:
            return each
    raise changed(upscaler)


def changed(upscaler: str) -> InvalidRequest:
    """What is said when what was chosen is there no more."""
    reason = f"is {upscaler!r}, whose file has changed or is gone; ask again"
    return InvalidRequest(FieldViolation("hires_upscaler", reason))


def sizes_of(info: UpscalerInfo, size: Size, final: Size) -> list[Size]:
    """The pictures, by width and height, that a network enlarges one after the other until one is large enough."""
    sizes: list[Size] = []
    for _ in range(_ROUNDS):
        width, height = size
        if width >= final[0] and height >= final[1]:
            break
        size = width * info.scale, height * info.scale
        if sizes and size[0] * size[1] > MAX_PIXELS:
            # The filter does the rest. Of what is too large from the start people are told.
            break
        sizes.append((width, height))
        if info.scale < 2:
            break
    return sizes


def enlarging(info: UpscalerInfo, image: InitImage) -> Request:
    """What asks a runner for a picture enlarged by an upscaler, as its model makes it; its steps are its tiles."""
    return Request(
        prompt="",
        negative_prompt="",
        width=image.width,
        height=image.height,
        steps=steps_of(info, (image.width, image.height)),
        guidance_scale=0.0,
        seed=0,
        n=1,
        sampler=Sampler.EULER,
        model=PREFIX + info.name,
        image=image,
        strength=1.0,
    )


def steps_of(info: UpscalerInfo, size: Size) -> int:
    """What the progress of enlarging a picture counts: its tiles, and if they are very many, parts of them all."""
    across, down = (len(spread(side, info.tile)) for side in size)
    return min(_MOST_STEPS, across * down)


def spread(length: int, tile: int) -> list[tuple[int, int]]:
    """Where tiles begin along one side of a picture, and how much of each lies on the one before it, in pixels.

    A side that is no longer than a tile is one; of a longer one the tiles lie evenly and share `OVERLAP` at least.
    """
    if length <= tile:
        return [(0, 0)]
    gaps = -(-(length - tile) // (tile - OVERLAP))
    begins = [round(gap * (length - tile) / gaps) for gap in range(gaps + 1)]
    return [(0, 0)] + [
        (begin, before + tile - begin) for before, begin in itertools.pairwise(begins)
    ]


def _split(text: str) -> tuple[str, str]:
    match = _WRITTEN.fullmatch(text)
    return (match[1], match[2] or "") if match else (text, "")
