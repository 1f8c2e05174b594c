"""Paths and methods as clients write them, brought to the one form that the routes have."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# OpenAI's routes for clients whose base URL lacks the version, and ours for those whose base URL has it.
_WITHOUT_VERSION = re.compile(r"/(images|models|files|batches|responses)(/|$)")
_WITH_VERSION = re.compile(
    r"/v1(?P<own>/(generate|metrics|livez|readyz|healthz|docs|docs\.json|openapi\.json))"
)


class Forgiving:
    """ASGI middleware. Takes a path with a slash behind it, with the version or without, and HEAD wherever GET is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": canonical(scope["path"])}
            if scope["method"] == "HEAD":
                scope["method"] = "GET"
                send = _without_body(send)
        await self._app(scope, receive, send)


def canonical(path: str) -> str:
    """The path that the routes know."""
    # No pattern of a route takes a line break, so whatever holds one would be answered by BentoML.
    path = path.replace("\n", "%0A").rstrip("/") or "/"
    if _WITHOUT_VERSION.match(path):
        return f"/v1{path}"
    own = _WITH_VERSION.fullmatch(path)
    return own["own"] if own else path


def _without_body(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sending
