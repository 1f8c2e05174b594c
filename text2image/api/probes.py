"""The description of the probes. BentoML answers them by itself: these routes are shown, and never called."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from text2image.api import rest, schema

router = APIRouter()
_SHOWN: dict[str, Any] = {
    "tags": ["operations"],
    "responses": {
        **schema.success("It is.", schema.text("\n")),
        **schema.refusals(schema.HOST_DENIED, rest.ErrorResponse, rest.error_body),
    },
    # Probes need no key.
    "openapi_extra": {"security": [{}]},
}
_NOT_READY: schema.Responses = {
    503: {
        "description": "It is loading, draining or has no runner.",
        "content": schema.text("Service is not ready"),
        "headers": {},
    }
}


@router.get("/livez", name="livez", summary="Whether the server is alive", **_SHOWN)
@router.get("/healthz", name="healthz", summary="The same as /livez", **_SHOWN)
async def _alive() -> None:
    """A server that is not should be started anew."""


@router.get(
    "/readyz",
    name="readyz",
    summary="Whether the server can draw pictures",
    **{**_SHOWN, "responses": {**_SHOWN["responses"], **_NOT_READY}},
)
async def _ready() -> None:
    """While it cannot, requests should go elsewhere."""
