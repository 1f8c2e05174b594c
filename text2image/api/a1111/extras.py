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
from text2image.core.messages import UpscalerInfo
from text2image.core.settings import get_settings
from text2image.core.upscalers import chosen, named, written
from text2image.core.validation import MAX_HIRES_SCALE
from text2image.gateway import metadata
from text2image.gateway.context import Enlarging
from text2image.gateway.init_images import Limits
from text2image.gateway.upscaling import Target, enlarged

router = APIRouter(prefix=PREFIX)

_IMAGE: dict[str, Any] = {"contentEncoding": "base64"}
# Letters of a text, and of its last line, beyond which what they say is not taken apart.
_MAX_INFO, _MAX_LINE = 1 << 16, 1 << 12
# Of one request to enlarge several.
_MAX_PICTURES = 64
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


class Extras(BaseModel):
    """What A1111's requests for one picture and for several have in common: how they are enlarged."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

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


class ExtraRequest(Extras):
    """A1111's ExtrasSingleImageRequest."""

    image: str = Field(description="A PNG, JPEG or WebP file as base64.", json_schema_extra=_IMAGE)


class FileData(BaseModel):
    """A1111's FileData: a picture of several."""

    data: str = Field(description="A PNG, JPEG or WebP file as base64.", json_schema_extra=_IMAGE)
    name: str = Field("", description="Ignored.")


class ExtraBatchRequest(Extras):
    """A1111's ExtrasBatchImagesRequest."""

    image_list: list[FileData] = Field(alias="imageList", min_length=1, max_length=_MAX_PICTURES)


class Extra(BaseModel):
    """A1111's ExtrasSingleImageResponse."""

    html_info: str
    image: str = Field(description="A PNG file as base64.")


class ExtraBatch(BaseModel):
    """A1111's ExtrasBatchImagesResponse."""

    html_info: str
    images: list[str] = Field(description="PNG files as base64, in the order of the request's.")


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
    """Enlarges a picture by Lanczos' filter, or by an upscaler, which counts as a step of its new size does."""

    async def work() -> Response:
        enlarge = _Enlarger(request)
        body = await read_json(request, ExtraRequest, pictures=True)
        (png,) = await enlarge.all(body, {"image": body.image})
        return PictureResponse({"html_info": "", "image": png})

    return await answer(request, TRANSPORT, work, answers.error_response)


@router.post(
    "/extra-batch-images",
    summary="Enlarge several pictures, in the dialect of A1111",
    tags=["A1111"],
    response_model=ExtraBatch,
    responses={
        **schema.success(
            "The pictures.", schema.json({"html_info": "", "images": [schema.PNG_EXAMPLE]})
        ),
        **schema.refusals(schema.DRAWING, answers.ErrorResponse, answers.error_body),
    },
    openapi_extra={
        "parameters": [schema.TIMEOUT_PARAMETER],
        "requestBody": schema.body_of(
            ExtraBatchRequest,
            {
                "imageList": [{"data": schema.PNG_EXAMPLE, "name": "fox.png"}],
                "upscaler_1": "Lanczos",
            },
        ),
    },
)
async def extra_batch_images(request: Request) -> Response:
    """Enlarges pictures one after the other, as `extra-single-image` does one; if one cannot be, none is answered."""

    async def work() -> Response:
        enlarge = _Enlarger(request)
        body = await read_json(request, ExtraBatchRequest, pictures=True)
        named = {f"imageList.{index}.data": each.data for index, each in enumerate(body.image_list)}
        return PictureResponse({"html_info": "", "images": await enlarge.all(body, named)})

    return await answer(request, TRANSPORT, work, answers.error_response)


class _Enlarger:
    """Enlarges the pictures of one request, for its caller and within its time."""

    def __init__(self, request: Request) -> None:
        """
        Raises:
            Text2ImageError: its caller may not, or names no time.
        """
        self._request = request
        self._gateway = gateway_of(request)
        self._order = Enlarging(caller_of(request), timeout_of(request))

    async def all(self, body: Extras, images: dict[str, str]) -> list[bytes]:
        """PNG files of pictures, which are base64 by the names of their fields.

        Raises:
            Text2ImageError: they are refused or could not be finished.
        """
        body.check()
        upscaler = self._chosen(body.upscaler_1)
        try:
            async with asyncio.timeout(self._order.timeout):
                return [
                    await unless_gone(self._request, self._one(body, field, image, upscaler))
                    for field, image in images.items()
                ]
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the image was enlarged") from None

    def _chosen(self, name: str) -> UpscalerInfo | None:
        there = self._gateway.runners.upscalers
        return named(chosen("upscaler_1", name, there), there)

    async def _one(
        self, body: Extras, field: str, image: str, upscaler: UpscalerInfo | None
    ) -> bytes:
        try:
            return await self._enlarged(body, image, upscaler)
        except InvalidRequest as error:
            raise error.renamed({"image": field}) from None

    async def _enlarged(self, body: Extras, image: str, upscaler: UpscalerInfo | None) -> bytes:
        file = await asyncio.to_thread(decoded, "image", image) or b""
        limits = Limits.of(get_settings())
        if upscaler is None:
            return await enlarged(file, body.target, limits)

        async def network(image: Image.Image, size: tuple[int, int]) -> Image.Image:
            return await self._gateway.enlarge(image, size, upscaler, self._order)

        return await enlarged(file, body.target, limits, network, written(upscaler))
