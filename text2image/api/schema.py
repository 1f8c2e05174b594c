"""The description of the HTTP API in OpenAPI's form, and the page that shows it.

Routes describe themselves; here is what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from json import dumps
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from text2image.core.errors import (
    Cancelled,
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidRequest,
    ModelNotFound,
    PayloadTooLarge,
    PermissionDenied,
    QuotaExceeded,
    RequestTimeout,
    Text2ImageError,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from text2image.core.settings import get_settings

Responses = dict[int | str, dict[str, Any]]


def _header(description: str, example: str, **limits: Any) -> dict[str, Any]:
    schema = {"type": "string", **limits}
    return {"description": description, "schema": schema, "example": example}


_UNKNOWN_KEY = Unauthenticated("this API key is unknown or was revoked")
DENIED = (
    _UNKNOWN_KEY,
    PermissionDenied("this needs a key with the scope generate; that of grafana has admin"),
)
ADMIN_DENIED = (
    _UNKNOWN_KEY,
    PermissionDenied("this needs a key with the scope admin; that of website has generate"),
)
HOST_DENIED = (
    PermissionDenied(
        "this server does not answer to the host 'example.org'; if it should, name it in T2I_ALLOWED_HOSTS"
    ),
)
_UNAVAILABLE = Unavailable(
    "the server is full; a request like this one would wait for 140 s",
    reason=Unavailable.FULL,
    retry_after=20,
)
NOT_FOUND = ModelNotFound("'dall-e-3' is not served here; 'embedded' is")
# What may keep a client from reading, and what may come of a request for pictures.
READING: tuple[Text2ImageError, ...] = (*DENIED, _UNAVAILABLE)
DRAWING: tuple[Text2ImageError, ...] = (
    InvalidRequest(FieldViolation("steps", "is 0; it must be between 1 and 150")),
    *DENIED,
    RequestTimeout("the body did not arrive within 30 s"),
    PayloadTooLarge("the body is larger than 1048576 bytes"),
    UnsupportedMediaType(
        "send JSON with the header Content-Type: application/json, not 'text/plain'"
    ),
    QuotaExceeded("this minute's 600 megapixel-steps are spent", retry_after=34),
    Cancelled("the client left before the answer"),
    Internal("3f2a9c1b7d60"),
    _UNAVAILABLE,
    DeadlineExceeded("the pictures would take 12 s, and 10 s are left"),
)
TIMEOUT_PARAMETER = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds that the request may take.",
    # The most depends on the settings.
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "example": 60,
}
# A file of one pixel.
PNG_EXAMPLE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYPgPAAEDAQAIicLsAAAAAElFTkSuQmCC"
)


_RETRY_AFTER = {"Retry-After": _header("Seconds.", "34", pattern=r"^[0-9]+$")}
_CHALLENGE = {"WWW-Authenticate": _header("How to show a key.", "Bearer")}
# Where the caller has limits, and where there is a cache.
DRAWN_HEADERS = {
    "RateLimit": _header(
        "What is left of a limit, and the seconds until more.", '"minute";r=480;t=12'
    ),
    "RateLimit-Policy": _header("The limit.", '"minute";q=600;w=60;qu="megapixel-steps"'),
    "X-Cache": _header("Whether the pictures were known.", "miss", enum=["hit", "miss"]),
}


def refusals(
    errors: Iterable[Text2ImageError],
    model: type[BaseModel],
    body: Callable[[Text2ImageError], dict[str, Any]],
) -> Responses:
    """The responses to errors in a dialect: what their bodies are, and how one of each looks."""
    return {
        error.http_status: {
            "model": model,
            "description": (type(error).__doc__ or "").partition("\n")[0],
            "content": {"application/json": {"example": body(error)}},
            "headers": _headers(error),
        }
        for error in errors
    }


def _headers(error: Text2ImageError) -> dict[str, Any]:
    if isinstance(error, Unauthenticated):
        return _CHALLENGE
    return _RETRY_AFTER if error.retry_after else {}


def success(
    description: str, content: dict[str, Any], headers: dict[str, Any] | None = None
) -> Responses:
    """The response 200."""
    return {200: {"description": description, "content": content, "headers": headers or {}}}


def json(example: dict[str, Any]) -> dict[str, Any]:
    """JSON; its schema is that of the route's `response_model`."""
    return {"application/json": {"example": example}}


def text(example: str) -> dict[str, Any]:
    """Plain text."""
    return {"text/plain": {"schema": {"type": "string"}, "example": example}}


def events(kinds: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """Server-sent events whose data is JSON with the schema `kinds`.

    The schema is that of one event, not of the stream, as readers of this version of OpenAPI understand it.
    """
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": kinds}
    fields = {"event": {"type": "string"}, "data": data}
    return {
        "text/event-stream": {
            "schema": {"type": "object", "required": [*fields], "properties": fields},
            "example": {"event": example["type"], "data": dumps(example)},
        }
    }


def body_of(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """The description of a JSON body that the route reads by itself."""
    content = {"schema": _inlined(model.model_json_schema()), "example": example}
    return {"required": True, "content": {"application/json": content}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with the parts that it refers to in their places: in a document they would be looked for elsewhere."""
    parts = schema.pop("$defs", {})

    def place(value: Any) -> Any:
        if isinstance(value, dict):
            named = str(value.get("$ref", "")).rpartition("/")[2]
            return (
                place(parts[named]) if named in parts else {k: place(v) for k, v in value.items()}
            )
        return [place(each) for each in value] if isinstance(value, list) else value

    placed: dict[str, Any] = place(schema)
    return placed


def form_of(
    model: type[BaseModel], example: dict[str, Any], required: Iterable[str]
) -> dict[str, Any]:
    """The same of a form, of which these fields are required."""
    form = {**_inlined(model.model_json_schema()), "required": [*required]}
    # A list of objects is nothing that a form could hold; adapters stand in its prompt.
    for name in ("loras", "controls"):
        form["properties"].pop(name, None)
    for name, field in form["properties"].items():
        form["properties"][name] = _in_form(field)
    content = {"schema": form, "example": example}
    return {"required": True, "content": {"multipart/form-data": content}}


def _in_form(field: dict[str, Any]) -> dict[str, Any]:
    """A field as a form has it, where nothing is null: what is not there is left out."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    described = {name: value for name, value in field.items() if name not in ("anyOf", "default")}
    described |= kinds[0] if kinds else {}
    if "enum" in described:
        described["enum"] = [each for each in described["enum"] if each is not None]
    return described


def document(app: FastAPI, routers: Iterable[APIRouter]) -> dict[str, Any]:
    """The description of an application that has the routes of these."""
    if app.openapi_schema:
        return app.openapi_schema
    routes = [
        route
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
    ]
    described = get_openapi(
        title=app.title,
        version=app.version,
        description="Pictures from text. Errors name what is wrong, and 429 and 503 when to come back.",
        routes=routes,
        servers=[{"url": "/"}],
    )
    for route in routes:
        for method in route.methods or ():
            operation = described["paths"][route.path_format][method.lower()]
            # What generated clients call it.
            operation["operationId"] = route.name
            for status, response in operation["responses"].items():
                _complete(response["content"], route.responses[int(status)]["content"])
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == TIMEOUT_PARAMETER["name"]:
                    parameter["schema"]["maximum"] = get_settings().longest_timeout
    described["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "password": {"type": "http", "scheme": "basic"},
    }
    # Keys are asked for where the server has any.
    described["security"] = [{}, {"bearer": []}, {"key": []}, {"password": []}]
    app.openapi_schema = described
    return described


def _complete(shown: dict[str, Any], meant: dict[str, Any]) -> None:
    """Undoes what FastAPI does to a response: it takes nulls out of examples, and puts schemas under other types."""
    schemas = [media["schema"] for media in shown.values() if "schema" in media]
    shown.clear()
    for kind, media in meant.items():
        shown[kind] = {"schema": schemas[0], **media}


router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
@router.get("/docs.json")
async def _document(request: Request) -> Response:
    return JSONResponse(request.app.openapi())


@router.get("/")
async def _page() -> Response:
    return HTMLResponse(_PAGE)


@router.get("/docs")
async def _docs() -> Response:
    return RedirectResponse("/")


@router.get("/docs.js")
async def _script() -> Response:
    return Response(_SCRIPT, media_type="text/javascript")


# Swagger's files come with BentoML. Nothing is loaded from elsewhere, and no script stands in the page itself.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Text2Image</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="static_content/swagger-ui.css">
</head>
<body>
  <div id="api"></div>
  <script src="static_content/swagger-ui-bundle.js"></script>
  <script src="docs.js"></script>
</body>
</html>
"""
_SCRIPT = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#api", deepLinking: true});\n'
