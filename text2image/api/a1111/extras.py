"""What A1111 does with pictures that are there: reads what they tell, and enlarges them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from text2image.api import schema
from text2image.api.a1111 import answers
from text2image.api.a1111.routes import PREFIX, TRANSPORT, told
from text2image.api.asgi import answer, caller_of, gateway_of, read_json, timeout_of, unless_gone
from text2image.api.forms import decoded
from text2image.api.pictures import PictureResponse
from text2image.core.errors import (
    DeadlineExceeded,
    FieldViolation,
    InvalidRequest,
    PayloadTooLarge,
)
from text2image.core.settings import get_settings
from text2image.core.validation import MAX_HIRES_SCALE
from text2image.core.upscalers import LANCZOS, chosen
from text2image.gateway import metadata
from text2image.gateway.context import Enlarging
from text2image.gateway.init_images import Limits
from text2image.gateway.upscaling import Target, enlarged

router = APIRouter(prefix=PREFIX)

_IMAGE: dict[str, Any] = {"contentEncoding": "base64"}
# Letters of a text, and of its last line, beyond which what they say is not taken apart.
_MAX_INFO, _MAX_LINE = 1 << 16, 1 << 12
_SIDE: dict[str, Any] = {"minimum": 1, "maximum": 8192}


class PngInfoRequest(BaseModel):
    """A picture that may tell how it was drawn."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="A PNG, JPEG or WebP file as base64.", json_schema_extra=_IMAGE)


class PngInfo(BaseModel):
    """What it tells, which is nothing if `info` is empty."""

    info: str
    items: dict[str, str] = Field(description="Other texts in the file.")
    parameters: dict[str, str] = Field(description="What `info` says, one by one.")


class ExtraRequest(BaseModel):
    """A1111's ExtrasSingleImageRequest."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    image: str = Field(description="A PNG, JPEG or WebP file as base64.", json_schema_extra=_IMAGE)
    resize_mode: int = Field(
        0,
        description="0 enlarges by `upscaling_resize`, 1 to the size that is named.",
        json_schema_extra={"enum": [0, 1]},
    )
    upscaling_resize: float = Field(
        2,
        description="By how much, of a side.",
        json_schema_extra={"exclusiveMinimum": 0, "maximum": 2 * MAX_HIRES_SCALE},
    )
    upscaling_resize_w: int = Field(512, json_schema_extra=_SIDE)
    upscaling_resize_h: int = Field(512, json_schema_extra=_SIDE)
    upscaling_crop: bool = Field(True, description="Cut off what is beyond that size.")
    upscaler_1: str = Field(
        "None",
        description="`Lanczos`, the name of an upscaler, or `None`, which leaves the size as it is.",
    )
    upscaler_2: str = Field("None", json_schema_extra={"enum": ["None"]})
    extras_upscaler_2_visibility: float = Field(0, json_schema_extra={"enum": [0]})
    gfpgan_visibility: float = Field(0, json_schema_extra={"enum": [0]})
    codeformer_visibility: float = Field(0, json_schema_extra={"enum": [0]})
    codeformer_weight: float = Field(0, description="Ignored.")
    show_extras_results: bool = Field(True, description="Ignored.")
    upscale_first: bool = Field(False, description="Ignored.")

    def check(self) -> None:
        """Does nothing if all of it is done here.

        Raises:
            InvalidRequest: names each field that is not.
        """
        violations = []
        for name, described in type(self).model_fields.items():
            limits, value = described.json_schema_extra, getattr(self, name)
            if isinstance(limits, dict) and (reason := _refusal(value, limits)):
                violations.append(FieldViolation(name, reason))
        if violations:
            raise InvalidRequest(*violations)

    def target(self, width: int, height: int) -> Target:
        """What a picture of this size is scaled to."""
        if self.upscaler_1 == "None":
            return Target((width, height))
        if self.resize_mode == 0:
            scale = self.upscaling_resize
            return Target((max(1, round(width * scale)), max(1, round(height * scale))))
        cut = self.upscaling_resize_w, self.upscaling_resize_h
        scale = max(cut[0] / width, cut[1] / height)
        size = max(cut[0], round(width * scale)), max(cut[1], round(height * scale))
        return Target(size, cut if self.upscaling_crop else None)


class Extra(BaseModel):
    """A1111's ExtrasSingleImageResponse."""

    html_info: str
    image: str = Field(description="A PNG file as base64.")


def _refusal(value: Any, limits: dict[str, Any]) -> str:
    if "enum" in limits and value not in limits["enum"]:
        done = " or ".join(map(repr, limits["enum"]))
        return f"is {repr(value)[:40]}, which is not done here; it must be {done}"
    low, above = limits.get("minimum"), limits.get("exclusiveMinimum")
    high = limits.get("maximum")
    if high is None:
        return ""
    if value > high or (low is not None and value < low) or (above is not None and value <= above):
        least = f"at least {low}" if above is None else f"above {above}"
        return f"is {value:g}; it must be {least}, and at most {high:g}"
    return ""


@router.post(
    "/png-info",
    summary="What a picture tells of itself, in the dialect of A1111",
    tags=["A1111"],
    response_model=PngInfo,
    responses={
        **schema.success(
            "What it tells.",
            schema.json({"info": "a red fox\nSteps: 20", "items": {}, "parameters": {}}),
        ),
        **schema.refusals(schema.DRAWING, answers.ErrorResponse, answers.error_body),
    },
    openapi_extra={"requestBody": schema.body_of(PngInfoRequest, {"image": schema.PNG_EXAMPLE})},
)
async def png_info(request: Request) -> Response:
    """Reads the parameters in a file, whoever wrote them."""

    async def work() -> Any:
        caller_of(request)
        body = await read_json(request, PngInfoRequest, pictures=True)
        return (await asyncio.to_thread(_info_of, body.image)).model_dump()

    return await told(work)


def _info_of(image: str) -> PngInfo:
    file = decoded("image", image.strip()) or b""
    most = get_settings().max_image_bytes
    if len(file) > most:
        raise PayloadTooLarge(f"image has {len(file)} bytes; at most {most} are read")
    try:
        info, items = metadata.read(file), metadata.texts(file)
    except ValueError as error:
        raise InvalidRequest(FieldViolation("image", str(error))) from None
    short = len(info) <= _MAX_INFO and len(info) - info.rfind("\n") <= _MAX_LINE
    return PngInfo(info=info, items=items, parameters=metadata.fields(info) if short else {})


@router.post(
    "/extra-single-image",
    summary="Enlarge a picture, in the dialect of A1111",
    tags=["A1111"],
    response_model=Extra,
    responses={
        **schema.success(
            "The picture.", schema.json({"html_info": "", "image": schema.PNG_EXAMPLE})
        ),
        **schema.refusals(schema.DRAWING, answers.ErrorResponse, answers.error_body),
    },
    openapi_extra={
        "parameters": [schema.TIMEOUT_PARAMETER],
        "requestBody": schema.body_of(
            ExtraRequest, {"image": schema.PNG_EXAMPLE, "upscaler_1": "Lanczos"}
        ),
    },
)
async def extra_single_image(request: Request) -> Response:
    """Enlarges a picture by Lanczos' filter, or by an upscaler, whose work counts as a step of its size does."""

    async def work() -> Response:
        caller = caller_of(request)
        timeout = timeout_of(request)
        body = await read_json(request, ExtraRequest, pictures=True)
        body.check()
        file = await asyncio.to_thread(decoded, "image", body.image)
        limits, gateway = Limits.of(get_settings()), gateway_of(request)
        upscaler = chosen("upscaler_1", body.upscaler_1, gateway.runners.upscalers)
        order = Enlarging(caller, timeout)

        async def network(image: Image.Image, size: tuple[int, int]) -> Image.Image:
            return await gateway.enlarge(image, size, upscaler, order)

        made = enlarged(
            file or b"", body.target, limits, network if upscaler else None, upscaler or LANCZOS
        )
        try:
            async with asyncio.timeout(timeout):
                png = await unless_gone(request, made)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the image was enlarged") from None
        return PictureResponse({"html_info": "", "image": png})

    return await answer(request, TRANSPORT, work, answers.error_response)
