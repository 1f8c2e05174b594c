"""Refuses what a full server can only refuse, before anything begins.

Beyond capacity most of a server's requests are refused, and each takes time from the cores that draw. So this asks only
who calls, how long they wait, and for what, of which `shapes.py` has a short cut; and compares that with what was
refused a moment ago. It leaves alone whatever might be answered all the same: a request that names a seed, since its
picture may be known; one that is drawn in the background, which waits; one that begins from a picture, which is read
apart; one of a browser's page, whose answer needs more headers than are made here; one with an error in it, unless the
wait alone is too long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from starlette.datastructures import State
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from text2image.api import openai, rest
from text2image.api.asgi import is_json, timeout_in
from text2image.api.headers import REQUEST_ID_HEADER, secured
from text2image.api.openai_requests import ImagesRequest
from text2image.api.shapes import Shapes
from text2image.core.errors import Text2ImageError, Unavailable
from text2image.gateway.auth import Credentials, key_in
from text2image.gateway.generate import Gateway
from text2image.observe import tracing

_TRACE_HEADER = tracing.TRACE_HEADER.lower()
_ID_HEADER = REQUEST_ID_HEADER.lower()
_FORWARDED_FOR = b"x-forwarded-for"
# Whose picture may be known, who begins from one, which is read apart, and who waits in the background.
_UNDECIDED = (b'"seed"', b'"image"', b'"background"', b'"service_tier"')
# Whoever asks before sending is told to send when the body is waited for; a body in chunks is for those who read it.
_LEFT_ALONE = frozenset((b"origin", b"expect", b"transfer-encoding"))

Headers = Sequence[tuple[bytes, bytes]]


class Refusal(NamedTuple):
    """An answer as it is written; the head wants the headers of all answers of a connection, and then an empty line.

    `lasts` is for how many seconds the same will be told to whoever comes with the like of it.
    """

    head: bytes
    body: bytes
    lasts: float = 0.0


class Dialect(NamedTuple):
    """How a path speaks: its name, its words for an error, and what its bodies ask for."""

    transport: str
    told: Callable[[Text2ImageError], Response]
    shapes: Shapes


DIALECTS = {
    b"/generate": Dialect(
        rest.TRANSPORT,
        rest.error_response,
        Shapes(
            lambda body, _: rest.GenerateRequest.model_validate_json(body).params(),
            ("text", "context", "negative_prompt"),
        ),
    ),
    b"/v1/images/generations": Dialect(
        openai.TRANSPORT,
        openai.error_response,
        Shapes(
            lambda body, named: ImagesRequest.model_validate_json(body).params(named),
            ("prompt", "negative_prompt", "user", "safety_identifier"),
        ),
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
            and url in DIALECTS
            and gateway.may_refuse_unread
            and _LEFT_ALONE.isdisjoint([name for name, _ in headers])
        )

    def refusal(self, scope: Mapping[str, Any], url: bytes, body: bytes) -> Refusal | None:
        """The answer to a request that is refused; None if it might be drawn.

        Args:
            scope: as ASGI has it; the names of its headers in lower case.
        """
        if any(word in body for word in _UNDECIDED):
            return None
        gateway: Gateway = self.state.gateway
        dialect = DIALECTS[url]
        # Of several headers of one name the first counts.
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in reversed(scope["headers"])
        }
        try:
            caller = gateway.authenticate(_credentials(scope, headers))
            patience = timeout_in(headers)
        except Text2ImageError as refused:
            error: Text2ImageError | None = refused
        else:
            shape = dialect.shapes.of(body, gateway) if is_json(headers) else None
            error = gateway.refusal(caller, patience, shape, claim=True)
        if error is None:
            return None
        gateway.metrics.refused_unread(dialect.transport, error)
        told = _told(url, scope["scheme"], error)
        lasts = error.lasts if isinstance(error, Unavailable) else 0.0
        own_id = tracing.id_of(headers)
        ids = f"{_TRACE_HEADER}: {own_id}\r\n{_ID_HEADER}: {own_id}\r\n"
        return Refusal(told.head + ids.encode(), told.body, lasts)


def _credentials(scope: Mapping[str, Any], headers: Mapping[str, str]) -> Credentials:
    """As `credentials_of` has them, of which a request that is refused has no need for the rest."""
    client = scope["client"]
    forwarded = [value for name, value in scope["headers"] if name == _FORWARDED_FOR]
    return Credentials(
        client[0] if client else "", b",".join(forwarded).decode("latin-1"), key_in(headers)
    )


def _told(url: bytes, scheme: str, error: Text2ImageError) -> Refusal:
    """An error as the dialect of a path says it, with the headers of every answer but those that differ by request."""
    if isinstance(error, Unavailable):
        return _told_often(url, scheme, error.message, error.reason, error.retry_after or 0.0)
    return _written(secured(DIALECTS[url].told(error), scheme))


@lru_cache(maxsize=256)
def _told_often(url: bytes, scheme: str, message: str, reason: str, retry_after: float) -> Refusal:
    # What lasts is said in the same words each time, and writing them is half of what a refusal takes.
    error = Unavailable(message, reason=reason, retry_after=retry_after)
    return _written(secured(DIALECTS[url].told(error), scheme))


def _written(response: Response) -> Refusal:
    lines = [b"%b: %b\r\n" % header for header in response.raw_headers]
    return Refusal(STATUS_LINE[response.status_code] + b"".join(lines), bytes(response.body))
