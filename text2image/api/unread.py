"""Refuses what a full server need not read: in front of all other layers, before a body is parsed or anything begins.

Beyond capacity most of a server's requests are refused, and each takes time from the cores that draw. So this asks only
who calls and how long they wait. It lets through whatever might be answered all the same: a request that names a seed,
since its picture may be known; one whose body has not arrived in one piece; one of a browser's page, whose answer needs
more headers than are made here.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from text2image.api import openai, rest
from text2image.api.asgi import caller_of, timeout_of
from text2image.api.headers import SecurityHeaders, TraceId
from text2image.core.errors import Text2ImageError
from text2image.gateway.generate import Gateway

_SEED = b'"seed"'
# By path: the name of the dialect, and how it says an error.
_DIALECTS: dict[str, tuple[str, Callable[[Text2ImageError], Response]]] = {
    "/generate": (rest.TRANSPORT, rest.error_response),
    "/v1/images/generations": (openai.TRANSPORT, openai.error_response),
}


class RefuseUnread:
    """ASGI middleware, to be the outermost; `state.gateway` is set once the gateway is there."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        body = await receive()
        if _needs_reading(body):
            await self._app(scope, _after(body, receive), send)
            return
        transport, respond = _DIALECTS[scope["path"]]
        gateway: Gateway = self._state.gateway
        gateway.metrics.refused_unread(transport, refusal)
        await SecurityHeaders(TraceId(respond(refusal)))(scope, receive, send)

    def _refusal(self, scope: Scope) -> Text2ImageError | None:
        """What this client would be told whatever its body says, or None if that must be read."""
        gateway: Gateway | None = getattr(self._state, "gateway", None)
        if gateway is None or scope["type"] != "http" or scope["path"] not in _DIALECTS:
            return None
        if scope["method"] != "POST" or not gateway.may_refuse_unread:
            return None
        scope["app"] = self
        request = Request(scope)
        if "Origin" in request.headers:
            return None
        try:
            gateway.require_open(caller_of(request), timeout_of(request))
        except Text2ImageError as refusal:
            return refusal
        return None

    @property
    def state(self) -> State:
        """What a request's `app.state` is here."""
        return self._state


def _needs_reading(body: Message) -> bool:
    return (
        body["type"] != "http.request"
        or body.get("more_body", False)
        or _SEED in body.get("body", b"")
    )


def _after(first: Message, receive: Receive) -> Receive:
    """Receives a message that was received already, and then what follows it."""
    waiting = [first]

    async def receiving() -> Message:
        return waiting.pop() if waiting else await receive()

    return receiving
