"""Refuses what a full server can only refuse, before anything begins.

Beyond capacity most of a server's requests are refused, and each takes time from the cores that draw. So this asks only
who calls and how long they wait; where that does not decide it, what they ask for is parsed, and compared with what was
refused a moment ago. It leaves alone whatever might be answered all the same: a request that names a seed, since its
picture may be known; one of a browser's page, whose answer needs more headers than are made here; one with an error in
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import pydantic
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from text2image.api import openai, rest
from text2image.api.asgi import caller_of, require_json, timeout_of
from text2image.api.headers import secured
from text2image.api.openai_messages import ImagesRequest, Named
from text2image.core.errors import Text2ImageError, Unavailable
from text2image.core.messages import RequestParams
from text2image.gateway.generate import Gateway
from text2image.observe import tracing

_TRACE_HEADER = tracing.TRACE_HEADER.lower().encode()
_SEED = b'"seed"'
# Whoever asks before sending is told to send when the body is waited for; a body in chunks is for those who read it.
_LEFT_ALONE = frozenset((b"origin", b"expect", b"transfer-encoding"))

Headers = Sequence[tuple[bytes, bytes]]


class Refusal(NamedTuple):
    """An answer, whole."""

    status: int
    headers: Headers
    body: bytes


class Dialect(NamedTuple):
    """How a path speaks: its name, its words for an error, and what a body asks for."""

    transport: str
    told: Callable[[Text2ImageError], Response]
    parse: Callable[[bytes, Named], RequestParams]


_DIALECTS = {
    b"/generate": Dialect(
        rest.TRANSPORT,
        rest.error_response,
        lambda body, _: rest.GenerateRequest.model_validate_json(body).params(),
    ),
    b"/v1/images/generations": Dialect(
        openai.TRANSPORT,
        openai.error_response,
        lambda body, named: ImagesRequest.model_validate_json(body).params(named),
    ),
}


class Unread:
    """What is refused without an application; `state.gateway` is set once the gateway is there."""

    def __init__(self, state: State) -> None:
        self.state = state

    def may_refuse(self, method: bytes, url: bytes, headers: Headers) -> bool:
        """Whether it is worth asking `refusal` for a request, which needs its body."""
        gateway: Gateway | None = getattr(self.state, "gateway", None)
        return (
            gateway is not None
            and method == b"POST"
            and url in _DIALECTS
            and gateway.may_refuse_unread
            and not any(name in _LEFT_ALONE for name, _ in headers)
        )

    def refusal(self, scope: Mapping[str, object], url: bytes, body: bytes) -> Refusal | None:
        """The answer to a request that is refused; None if it might be drawn.

        Args:
            scope: as ASGI has it; the names of its headers in lower case.
        """
        if _SEED in body:
            return None
        dialect = _DIALECTS[url]
        request = Request({**scope, "app": self})
        error = self._error(request, dialect, body)
        if error is None:
            return None
        gateway: Gateway = self.state.gateway
        gateway.metrics.refused_unread(dialect.transport, error)
        response = _told(url, str(scope["scheme"]), error)
        headers = [*response.raw_headers, (_TRACE_HEADER, tracing.id_of(request.headers).encode())]
        return Refusal(response.status_code, headers, bytes(response.body))

    def _error(self, request: Request, dialect: Dialect, body: bytes) -> Text2ImageError | None:
        """What this client would be told in the end, or None if that is not known yet."""
        gateway: Gateway = self.state.gateway
        try:
            caller, patience = caller_of(request), timeout_of(request)
            gateway.require_open(caller, patience, claim=True)
        except Text2ImageError as refusal:
            return refusal
        try:
            require_json(request)
            params = dialect.parse(body, gateway.runners.named)
            asked = gateway.resolve(params, gateway.runners.named(params.model))
        except (Text2ImageError, pydantic.ValidationError):
            return None
        try:
            gateway.require_open(caller, patience, asked, claim=True)
        except Text2ImageError as refusal:
            return refusal
        return None


def _told(url: bytes, scheme: str, error: Text2ImageError) -> Response:
    """An error as the dialect of a path says it, with the headers of every answer but those that differ by request."""
    if isinstance(error, Unavailable):
        return _told_often(url, scheme, error.message, error.reason, error.retry_after or 0.0)
    return secured(_DIALECTS[url].told(error), scheme)


@lru_cache(maxsize=256)
def _told_often(url: bytes, scheme: str, message: str, reason: str, retry_after: float) -> Response:
    # What lasts is said in the same words each time, and writing them is half of what a refusal takes.
    error = Unavailable(message, reason=reason, retry_after=retry_after)
    return secured(_DIALECTS[url].told(error), scheme)
