"""What happens on the way of a request, and the pictures it ends in."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture: 8 bit RGB, rows from the top, no padding; `len(rgb) == width * height * 3`."""

    width: int
    height: int
    rgb: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a picture's time went, in seconds; `encoding` is that of its prompt."""

    queued: float
    denoising: float
    decoding: float
    encoding: float = 0.0

    @property
    def total(self) -> float:
        """Seconds from its admission to its pixels, less those that it waited for its decoding."""
        return self.queued + self.encoding + self.denoising + self.decoding


@dataclass(frozen=True, slots=True)
class Loading:
    """The request waits for its model; `seconds` is the predicted time until that is loaded, None if unknown."""

    detail: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Queued:
    """The request is admitted and will end in pictures, an error or its cancellation."""

    predicted_seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Picture `index` has done `step` of `steps` steps."""

    index: int
    step: int
    steps: int
    preview: Pixels | None = None


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """Picture `index` is finished."""

    index: int
    seed: int
    pixels: Pixels
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A finished picture as a client gets it: PNG with its parameters inside.

    `path` is where the gateway saved it, empty if it did not; `seed` draws it again, alone. `cached` tells that it was
    drawn for an earlier request. `file` is the picture in the form that its client asked for, the PNG if that was none.
    """

    index: int
    seed: int
    width: int
    height: int
    png: bytes = field(repr=False)
    path: str
    timings: Timings
    cached: bool = False
    converted: bytes = field(default=b"", repr=False)

    @property
    def file(self) -> bytes:
        return self.converted or self.png

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the PNG file as it is, its parameters included."""
        Path(path).write_bytes(self.png)


@dataclass(frozen=True, slots=True)
class Completed:
    """All pictures are out. `truncated` is the end of the prompt that the text encoder did not read.

    `truncated_negative` is that of the negative prompt.
    """

    truncated: str = ""
    truncated_negative: str = ""

    @property
    def unread(self) -> list[tuple[str, str]]:
        """The ends of prompts that were not read, each with what people call that prompt."""
        ends = (("prompt", self.truncated), ("negative prompt", self.truncated_negative))
        return [(name, end) for name, end in ends if end]


# What an engine and its runner report, and what a gateway makes of it for its clients.
Event = Loading | Queued | Progress | GeneratedImage | Completed
ClientEvent = Loading | Queued | Progress | Picture | Completed
