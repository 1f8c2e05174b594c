"""The HTTP application: its dialects, their errors, and answers to what they do not know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from text2image import __version__
from text2image.api import (
    a1111,
    grpc_web,
    huggingface,
    jobs,
    openai,
    openai_batches,
    openai_files,
    openai_tool,
    probes,
    rest,
    schema,
)
from text2image.api.asgi import credentials_of, gateway_of
from text2image.api.browsers import BrowserGuard
from text2image.api.headers import SecurityHeaders, TraceId
from text2image.api.paths import Forgiving
from text2image.core.errors import Text2ImageError
from text2image.core.keys import Scope
from text2image.core.settings import Settings, get_settings
from text2image.jobs.files import FileStore
from text2image.observe import fleet, metrics

_ALL_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]

_operations = APIRouter()


@_operations.get(
    "/metrics",
    name="metrics",
    summary="Measurements, for Prometheus",
    tags=["operations"],
    responses={
        **schema.success("The measurements.", schema.text("text2image_requests_in_flight 1.0\n")),
        **schema.refusals(schema.ADMIN_DENIED, rest.ErrorResponse, rest.error_body),
    },
)
async def _metrics(request: Request) -> Response:
    try:
        gateway_of(request).authenticate(credentials_of(request), Scope.ADMIN)
    except Text2ImageError as error:
        return rest.error_response(error)
    runners = gateway_of(request).runners
    gauges = fleet.exposition(runners.status, runners.elected.models)
    measured = await asyncio.to_thread(metrics.exposition)
    return Response(measured + gauges, media_type=CONTENT_TYPE_LATEST)


def _routers() -> list[APIRouter]:
    """Those of the dialects that the settings want."""
    others = a1111.ROUTERS if get_settings().a1111 else ()
    return [
        rest.router,
        jobs.router,
        openai.router,
        openai_files.router,
        openai_batches.router,
        openai_tool.router,
        huggingface.router,
        *others,
        _operations,
    ]


def http_app() -> FastAPI:
    """An application whose `state` must have the gateway, jobs and webhooks before its first request."""
    # The routes of `schema` show the description, not FastAPI's own.
    app = FastAPI(title="Text2Image", version=__version__, openapi_url=None)
    routers = _routers()
    app.openapi = lambda: schema.document(app, (*routers, probes.router))  # type: ignore[method-assign] # as FastAPI wants it
    # Pages speak gRPC by its own description.
    app.state.files = _files(get_settings())
    app.state.a1111, app.state.routers = a1111.State(), [*routers, grpc_web.router]
    for router in (*app.state.routers, schema.router):
        app.include_router(router)
    # BentoML serves whatever else there is, so only what lies under our own names is ours to refuse.
    web = (f"/{name}" for name in grpc_web.SERVICES)
    ours = ("/generate", "/v1", huggingface.PREFIX, "/sdapi", *web)
    for path in (f"{prefix}/{{rest:path}}" for prefix in ours):
        app.add_api_route(path, _unknown, methods=_ALL_METHODS, include_in_schema=False)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _files(settings: Settings) -> FileStore | None:
    """What keeps uploads for batches; None where no jobs are taken."""
    if not settings.jobs:
        return None
    return FileStore(
        settings.data_root / "files",
        owner_bytes=settings.batch_files_bytes,
        all_bytes=settings.batch_all_files_bytes,
        max_age=settings.jobs_keep_seconds,
    )


def middlewares(
    settings: Settings, listening: Callable[[], str]
) -> list[tuple[type, dict[str, Any]]]:
    """What stands before the application and BentoML's own pages, outermost first, with its options.

    `listening` tells the address that HTTP is served on, once the server starts.
    """
    guard = {"settings": settings, "listening": listening, "refuse": error_response}
    return [(SecurityHeaders, {}), (TraceId, {}), (Forgiving, {}), (BrowserGuard, guard)]


def error_response(path: str, error: Text2ImageError) -> Response:
    """An error as the dialect says it that is spoken at a path."""
    if jobs.speaks_at(path):
        return rest.error_response(error)
    if path.startswith(openai.router.prefix + "/"):
        return openai.error_response(error)
    if path.startswith(huggingface.PREFIX + "/"):
        return huggingface.error_response(error)
    if a1111.speaks_at(path):
        return a1111.error_response(error)
    return rest.error_response(error)


async def _unknown(request: Request) -> Response:
    """What no other route takes: a known path with a wrong method, or an unknown path."""
    for route in (route for router in request.app.state.routers for route in router.routes):
        match, _ = route.matches(request.scope)
        if match is Match.PARTIAL and isinstance(route, Route):
            methods = set(route.methods or ())
            allowed = methods | ({"HEAD"} if "GET" in methods else set())
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
    raise HTTPException(404)


async def _http_error(request: Request, error: Exception) -> Response:
    error = cast(HTTPException, error)
    message = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.url.path} does not take {request.method}",
    }.get(error.status_code, error.detail)
    reason = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "HTTP_ERROR")
    path = request.url.path
    if path.startswith(openai.router.prefix + "/") and not jobs.speaks_at(path):
        body = {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": None,
                "code": reason.lower(),
            }
        }
        return JSONResponse(body, error.status_code, error.headers)
    if request.url.path.startswith(huggingface.PREFIX + "/"):
        failure = {"error": message, "error_type": reason}
        return JSONResponse(failure, error.status_code, error.headers)
    if a1111.speaks_at(request.url.path):
        told = a1111.ErrorResponse(error="HTTPException", detail=message, errors=message)
        return JSONResponse(told.model_dump(), error.status_code, error.headers)
    shown = rest.ErrorResponse(status_code=error.status_code, message=message, reason=reason)
    return JSONResponse(shown.model_dump(exclude_none=True), error.status_code, error.headers)
