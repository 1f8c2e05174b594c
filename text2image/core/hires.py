"""A picture that is drawn small, enlarged, and drawn on from there: what A1111 calls the hires fix.

Small pictures are composed as the model has learned it, and large ones have the details.
"""

from __future__ import annotations

from dataclasses import replace

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.init_image import InitImage
from text2image.core.messages import Request


def passes(request: Request, enlarged: InitImage | None = None) -> tuple[Request, Request | None]:
    """The request that is drawn first, and the one that draws on from one of its pictures, if there is to be any.

    Args:
        enlarged: what the second begins from; without it, it has no pixels.
    """
    first = replace(
        request, hires_scale=None, hires_strength=None, hires_steps=None, hires_upscaler=None
    )
    if request.hires_scale is None:
        return first, None
    width, height = request.final_size
    if enlarged is None:
        enlarged = InitImage(width, height, digest="", rgb=b"")
    second = replace(
        first,
        width=width,
        height=height,
        steps=request.hires_steps or request.steps,
        image=enlarged,
        strength=request.hires_strength,
    )
    return first, second


def require_single(request: Request) -> Request:
    """The request, if one drawing is all of it.

    Raises:
        InvalidRequest: it is to be enlarged.
    """
    if request.hires_scale is not None:
        raise InvalidRequest(
            FieldViolation("hires_scale", "is for gateways, which enlarge pictures")
        )
    return request
