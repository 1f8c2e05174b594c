"""How A1111 is told of a mask's edge, and of what around it is drawn; its defaults are those here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from text2image.core.errors import FieldViolation

if TYPE_CHECKING:
    from text2image.api.a1111.messages import Asked, ImageToImage

DEFAULT_BLUR = 4
# In pixels, as A1111's page bounds them.
_MOST_BLUR, _MOST_PADDING = 64, 256
BLUR = {"minimum": 0, "maximum": _MOST_BLUR}
PADDING = {"minimum": 0, "maximum": _MOST_PADDING}
_MOST = {
    **dict.fromkeys(("mask_blur", "mask_blur_x", "mask_blur_y"), _MOST_BLUR),
    "inpaint_full_res_padding": _MOST_PADDING,
}


def violations(body: Asked) -> Iterator[FieldViolation]:
    """Numbers that are out of bounds."""
    for name, most in _MOST.items():
        value = getattr(body, name, None)
        if value is not None and not 0 <= value <= most:
            yield FieldViolation(name, f"is {value}; it must be between 0 and {most}")


def blur(body: ImageToImage) -> tuple[int, int]:
    """Of the mask's edge, across and down; one number for both goes before two."""
    if body.mask_blur is not None:
        return body.mask_blur, body.mask_blur
    across, down = (
        DEFAULT_BLUR if each is None else each for each in (body.mask_blur_x, body.mask_blur_y)
    )
    return across, down


def padding(body: ImageToImage) -> int | None:
    """Around what is masked; None where all of the picture is drawn."""
    return None if body.inpaint_full_res is False else body.inpaint_full_res_padding or 0


def told(body: ImageToImage) -> dict[str, Any]:
    """What A1111 tells of it in `extra_generation_params`."""
    found: dict[str, Any] = {}
    if max(blur(body)) > 0:
        found["Mask blur"] = blur(body)[0]
    if body.inpainting_mask_invert:
        found["Mask mode"] = "Inpaint not masked"
    around = padding(body)
    if around is not None:
        found |= {"Inpaint area": "Only masked", "Masked area padding": around}
    return found
