"""Refuses what a full server can only refuse, in front of all other layers and before anything begins.

Beyond capacity most of a server's requests are refused, and each takes time from the cores that draw. So this asks only
who calls and how long they wait; where that does not decide it, what they ask for is parsed, and compared with what was
refused a moment ago. It lets through whatever might be answered all the same: a request that names a seed, since its
picture may be known; one whose body has not arrived in one piece; one of a browser's page, whose answer needs more
headers than are made here; one with an error in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import pydantic
from starlette.datastructures import Headers, State
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from text2image.api import openai, rest
from text2image.api.asgi import after, caller_of, require_json, timeout_of
from text2image.api.headers import SecurityHeaders, TraceId
from text2image.api.openai_messages import ImagesRequest, Named
from text2image.core import validation
from text2image.core.errors import Text2ImageError
from text2image.core.messages import RequestParams
from text2image.gateway.generate import Gateway

_SEED = b'"seed"'
# Seconds within which a body that comes in one piece is there.
PROMPTLY = 1.0


class Dialect(NamedTuple):
    """How a path speaks: its name, its words for an error, and what a body asks for."""

    transport: str
    told: Callable[[Text2ImageError], Response]
    parse: Callable[[bytes, Named], RequestParams]


_DIALECTS = {
    "/generate": Dialect(
        rest.TRANSPORT,
        rest.error_response,
        lambda body, _: rest.GenerateRequest.model_validate_json(body).params(),
    ),
    "/v1/images/generations": Dialect(
        openai.TRANSPORT,
        openai.error_response,
        lambda body, named: ImagesRequest.model_validate_json(body).params(named),
    ),
}


class RefuseUnread:
    """ASGI middleware, to be the outermost; `state.gateway` is set once the gateway is there."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._may_refuse(scope):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(PROMPTLY):
                first = await receive()
        except TimeoutError:
            # How long a body may take is said elsewhere.
            await self._app(scope, receive, send)
            return
        dialect = _DIALECTS[scope["path"]]
        refusal = None if _must_be_read(first) else self._refusal(scope, dialect, first["body"])
        if refusal is None:
            await self._app(scope, after(first, receive), send)
            return
        gateway: Gateway = self._state.gateway
        gateway.metrics.refused_unread(dialect.transport, refusal)
        await SecurityHeaders(TraceId(dialect.told(refusal)))(scope, receive, send)

    def _may_refuse(self, scope: Scope) -> bool:
        gateway: Gateway | None = getattr(self._state, "gateway", None)
        if gateway is None or scope["type"] != "http" or scope["path"] not in _DIALECTS:
            return False
        headers = Headers(scope=scope)
        return (
            scope["method"] == "POST"
            and gateway.may_refuse_unread
            and "Origin" not in headers
            # Whoever asks before sending is told to send when the body is waited for.
            and "Expect" not in headers
        )

    def _refusal(self, scope: Scope, dialect: Dialect, body: bytes) -> Text2ImageError | None:
        """What this client would be told in the end, or None if that is not known yet."""
        gateway: Gateway = self._state.gateway
        scope["app"] = self
        request = Request(scope)
        try:
            caller, patience = caller_of(request), timeout_of(request)
            gateway.require_open(caller, patience)
        except Text2ImageError as refusal:
            return refusal
        try:
            require_json(request)
            params = dialect.parse(body, gateway.runners.named)
            asked = validation.resolve(params, gateway.runners.named(params.model))
        except (Text2ImageError, pydantic.ValidationError):
            return None
        try:
            gateway.require_open(caller, patience, asked)
        except Text2ImageError as refusal:
            return refusal
        return None

    @property
    def state(self) -> State:
        """What a request's `app.state` is here."""
        return self._state


def _must_be_read(body: Message) -> bool:
    return (
        body["type"] != "http.request"
        or body.get("more_body", False)
        or _SEED in body.get("body", b"")
    )
