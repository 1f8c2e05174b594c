"""The picture that another one begins from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True)
class Overlay:
    """What stays of a picture that is painted into, for whoever finishes what was drawn; runners know nothing of it.

    Attributes:
        rgba: 8 bit a channel, rows from the top, as transparent as what is drawn is to be seen.
        box: left, top, right and bottom of where that lies; None where it is all of it.
    """

    width: int
    height: int
    rgba: bytes = field(repr=False)
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class InitImage:
    """The picture that drawing begins from, at the size of what is drawn; equal ones have equal pixels and masks.

    Attributes:
        rgb: as `Pixels` has it.
        mask: what is drawn anew, a byte for each pixel, 255 or else 0; None where that is all.
        overlay: what is laid over what is drawn.
        digest: of all three, in hex digits.
    """

    width: int
    height: int
    digest: str
    rgb: bytes = field(repr=False, compare=False)
    mask: bytes | None = field(default=None, repr=False, compare=False)
    overlay: Overlay | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        width: int,
        height: int,
        rgb: bytes,
        mask: bytes | None = None,
        overlay: Overlay | None = None,
    ) -> Self:
        """One of these pixels.

        Raises:
            ValueError: there are more or fewer of them than the size says.
        """
        for name, found, each in (("image", rgb, 3), ("mask", mask, 1)):
            expected = width * height * each
            if found is not None and len(found) != expected:
                raise ValueError(
                    f"{name} has {len(found)} bytes, and {width}x{height} make {expected}"
                )
        digest = hashlib.sha256(rgb)
        digest.update(mask or b"")
        if overlay is not None:
            digest.update(f"{overlay.width}x{overlay.height} {overlay.box}".encode())
            digest.update(overlay.rgba)
        return cls(width, height, digest.hexdigest(), rgb, mask, overlay)
