"""The forms that a picture's file may have."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_QUALITY = 100


class FileFormat(StrEnum):
    """A kind of file, by the name that clients give it."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def suffix(self) -> str:
        return ".jpg" if self is FileFormat.JPEG else f".{self}"

    @property
    def media_type(self) -> str:
        return f"image/{self}"


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a picture is written; `quality`, 0 to 100, says how much of it JPEG and WebP keep."""

    format: FileFormat = FileFormat.PNG
    quality: int = MAX_QUALITY


# Lossless, and what every picture is kept as.
PNG = Encoding()
