"""A1111's settings, as far as this server has any: they are read, and the model may be chosen for the caller alone.

Everything else is said by each request in `override_settings`. A choice is kept in this process, so that it is refused
where several share the work: a request that another of them gets would be drawn with another model without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from text2image.api import schema
from text2image.api.a1111 import answers
from text2image.api.a1111.lists import model_of, shown
from text2image.api.a1111.overrides import FORMAT, LAYER, MODEL, Named, model_titled, title_of
from text2image.api.a1111.routes import PREFIX, reading, state_of, told
from text2image.api.asgi import caller_of, gateway_of, read_json
from text2image.core.errors import FieldViolation, InvalidRequest, ModelNotFound
from text2image.core.messages import ModelInfo
from text2image.core.settings import get_settings

router = APIRouter(prefix=PREFIX)

_REFRESHED = ("checkpoints", "loras", "vae", "embeddings")


class Options(BaseModel):
    """Settings by their names in A1111, of which one may be set; the others are taken as they are, and no other way."""

    model_config = ConfigDict(extra="allow")

    sd_model_checkpoint: str | None = Field(None, description="Title or name of a model.")


class _Choice(Options):
    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})


def _shown(model: ModelInfo) -> dict[str, Any]:
    return {
        MODEL: title_of(model),
        "sd_checkpoint_hash": model.revision,
        "sd_vae": "Automatic",
        LAYER: model.clip_skip or 1,
        FORMAT: "png",
        "jpeg_quality": 80,
        "live_previews_enable": True,
        "show_progress_every_n_steps": 10,
        "eta_noise_seed_delta": 0,
        "img2img_color_correction": False,
        "return_grid": False,
        "upscaler_for_img2img": "Lanczos",
    }


_EXAMPLE = {MODEL: "embedded [dcfec67f3c]", LAYER: 1}


@router.get(
    "/options",
    name="a1111_options",
    summary="Settings, in the dialect of A1111",
    tags=["A1111"],
    response_model=Options,
    responses=reading("The settings.", _EXAMPLE),
)
async def get_options(request: Request) -> Response:
    """Tells the settings that clients look at, the model that is drawn with among them."""

    return await shown(request, lambda: _shown(model_of(request)))


@router.post(
    "/options",
    name="set_a1111_options",
    summary="Choose a model, in the dialect of A1111",
    tags=["A1111"],
    response_model=None,
    responses={
        200: {
            "description": "It is chosen.",
            "content": {"application/json": {"schema": {"type": "null"}, "example": None}},
        },
        **schema.refusals(schema.DRAWING, answers.ErrorResponse, answers.error_body),
    },
    openapi_extra={"requestBody": schema.body_of(_Choice, {MODEL: "embedded"})},
)
async def set_options(request: Request) -> Response:
    """Has requests of this caller that name no model be drawn with `sd_model_checkpoint`; no other setting changes."""

    async def work() -> None:
        owner = caller_of(request).name
        asked = (await read_json(request, Options)).model_dump()
        chosen = _chosen(asked, gateway_of(request).runners.named, model_of(request))
        if chosen:
            state_of(request).choices.choose(owner, chosen.id)

    return await told(work)


def _chosen(asked: dict[str, Any], named: Named, current: ModelInfo) -> ModelInfo | None:
    """The model that settings name, if they name one.

    Raises:
        InvalidRequest: there is none, it cannot be kept, or they say anything else.
    """
    violations = list(_violations(asked, _shown(current)))
    title, chosen = asked[MODEL], None
    try:
        chosen = model_titled(title, named) if title else None
    except ModelNotFound as error:
        violations.append(FieldViolation(MODEL, f"is unknown: {error.message}"))
    if chosen and chosen.id != current.id and _is_one_of_several():
        reason = "is kept by one process of several; name it in override_settings of each request"
        violations.append(FieldViolation(MODEL, reason))
    if violations:
        raise InvalidRequest(*violations)
    return chosen


def _violations(asked: dict[str, Any], current: dict[str, Any]) -> Iterator[FieldViolation]:
    for name, value in asked.items():
        known = name in current and value == current[name]
        if name != MODEL and value is not None and not known:
            reason = "cannot be set here; what a request may name goes into its override_settings"
            yield FieldViolation(name[:80], reason)


def _is_one_of_several() -> bool:
    settings = get_settings()
    return settings.gateway_workers > 1 or bool(settings.redis_url or settings.cache_redis_url)


async def _refresh(request: Request) -> Response:
    """Does nothing: the server finds what is new by itself."""
    return await shown(request, lambda: None)


for _what in _REFRESHED:
    router.add_api_route(
        f"/refresh-{_what}",
        _refresh,
        methods=["POST"],
        name=f"a1111_refresh_{_what}",
        summary=f"Look for new {_what}, which the server does by itself",
        tags=["A1111"],
        response_model=None,
        responses={
            200: {
                "description": "Nothing is done.",
                "content": {"application/json": {"schema": {"type": "null"}, "example": None}},
            },
            **schema.refusals(schema.READING, answers.ErrorResponse, answers.error_body),
        },
    )
