"""Pictures that were drawn before: who asks for the same one with the same seed gets it without drawing.

An entry is one picture, since picture i of n is the picture of its own seed alone. Entries are plain bytes with a
checksum over all of them; nothing that lies there is ever executed, and what is not whole is removed and drawn anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from text2image import __version__
from text2image.core.init_image import InitImage
from text2image.core.messages import (
    Completed,
    ModelInfo,
    Picture,
    Quality,
    Request,
    Timings,
)
from text2image.core.reading import reading_of
from text2image.gateway.cache_backends import Backend

logger = logging.getLogger(__name__)

# Raise the number when the form of an entry changes: entries of another form are foreign, and are drawn anew.
_MAGIC = b"text2image picture 1\n"
_DIGEST_BYTES = 32
_LENGTH_BYTES = 4


class NotAnEntry(Exception):
    """The bytes are cut off, damaged, of another form, or another picture's."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """All pictures of a request, and how it ended."""

    pictures: list[Picture]
    completed: Completed


class PictureCache:
    """Recalls and keeps the pictures of requests whose seed was asked for."""

    def __init__(self, backend: Backend, mark: str = "") -> None:
        """
        Args:
            mark: how files are made otherwise than by default, so that those that were made otherwise are others.
        """
        self._backend = backend
        self._mark = mark

    async def recall(self, request: Request, model: ModelInfo) -> Recalled | None:
        """All pictures of a request as they were drawn before, or None if any is missing."""
        pictures = []
        completed = Completed()
        for index in range(request.n):
            key = self._key_of(request, index, model)
            entry = await self._backend.get(key)
            if entry is None:
                return None
            try:
                picture, completed = unpack(key, entry)
            except NotAnEntry as error:
                logger.warning("entry %s of the cache is removed: it %s", key, error)
                await self._backend.drop(key)
                return None
            pictures.append(replace(picture, index=index))
        return Recalled(pictures, completed)

    async def keep(
        self,
        request: Request,
        model: ModelInfo,
        pictures: Sequence[Picture],
        completed: Completed,
    ) -> None:
        """Keeps pictures of a request for as long as there is room."""
        for picture in pictures:
            key = self._key_of(request, picture.index, model)
            await self._backend.put(key, pack(key, picture, completed))

    def _key_of(self, request: Request, index: int, model: ModelInfo) -> str:
        key = key_of(request, index, model)
        return hashlib.sha256(f"{key} {self._mark}".encode()).hexdigest() if self._mark else key


def key_of(request: Request, index: int, model: ModelInfo) -> str:
    """The key of picture `index` of a request; all that a picture depends on is in it."""
    alone = replace(request, n=1, seed=request.seed_of(index))
    identity = {
        "revision": model.revision,
        "dtype": model.dtype,
        "version": __version__,
        # What it was spared, which a setting decides.
        "fast": "" if request.quality is Quality.EXACT else model.fast,
        **asdict(replace(alone, image=None, controls=())),
        "model": model.id,
    }
    if 0 < model.tiled_above < request.width * request.height:
        # What is decoded in tiles depends on how many there are.
        identity["tiled_above"] = model.tiled_above
    # Prompts as they stand, and the model's own layer, have the keys that they had before there was anything else.
    if reading := reading_of(request, model):
        identity["reading"] = reading
    if not request.loras:
        del identity["loras"]
    del identity["controls"]
    if request.controls:
        identity["controls"] = [
            {**asdict(replace(each, image=None)), "image": _digest_of(each.image)}
            for each in request.controls
        ]
    if not request.clip_skip:
        del identity["clip_skip"]
    # Without these the keys of pictures are those of before there were any.
    begun = {
        "image": request.image and request.image.digest,
        "strength": request.strength,
        "hires_scale": request.hires_scale,
        "hires_strength": request.hires_strength,
        "hires_steps": request.hires_steps,
        "hires_upscaler": request.hires_upscaler,
    }
    for name, value in begun.items():
        identity.pop(name)
        identity |= {} if value is None else {name: value}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of(image: bytes | InitImage | None) -> str:
    assert isinstance(image, InitImage)
    return image.digest


def pack(key: str, picture: Picture, completed: Completed) -> bytes:
    """The entry of a picture under its key: a mark, a checksum, the length of what is told of it, that, the PNG."""
    told = json.dumps(
        {
            "seed": picture.seed,
            "width": picture.width,
            "height": picture.height,
            "path": picture.path,
            "timings": asdict(picture.timings),
            # Entries of earlier versions have this name too.
            "left_out": completed.truncated,
            "left_out_negative": completed.truncated_negative,
        }
    ).encode()
    content = len(told).to_bytes(_LENGTH_BYTES) + told + picture.png
    return _MAGIC + _digest(key, content) + content


def unpack(key: str, entry: bytes) -> tuple[Picture, Completed]:
    """The picture that an entry holds, as the first of its request, and how that ended.

    Raises:
        NotAnEntry: it is not what `pack` made for this key; the text says what it is.
    """
    start = len(_MAGIC) + _DIGEST_BYTES
    content = entry[start:]
    if not entry.startswith(_MAGIC):
        raise NotAnEntry("has another form")
    if entry[len(_MAGIC) : start] != _digest(key, content):
        raise NotAnEntry("is damaged, or another picture's")
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES])
    told = json.loads(content[_LENGTH_BYTES:end])
    if told["left_out"] and "left_out_negative" not in told:
        raise NotAnEntry("is of an earlier version, which read less of its prompt")
    picture = Picture(
        index=0,
        seed=told["seed"],
        width=told["width"],
        height=told["height"],
        png=content[end:],
        path=told["path"],
        timings=Timings(**told["timings"]),
        cached=True,
    )
    return picture, Completed(told["left_out"], told.get("left_out_negative", ""))


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()
