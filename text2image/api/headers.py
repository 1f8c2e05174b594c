"""The headers of every HTTP answer, ours and BentoML's: those for security, and the id of the request's trace."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from text2image.observe import tracing

REQUEST_ID_HEADER = "X-Request-Id"
A_YEAR = 365 * 24 * 3600
# Nobody has to run, frame or fetch anything because of an answer.
_DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
# The page that shows the API brings its own scripts along; what it would load from elsewhere is not let in.
_PAGE_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class SecurityHeaders:
    """ASGI middleware. A header that the answer has already is left as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scheme = scope.get("scheme", "http")
        # A body of chunks that claims a length too has been let through. Where another server counted otherwise, what
        # is left of it must not be taken for a request of somebody else on the same connection.
        ends_connection = "Transfer-Encoding" in Headers(scope=scope)

        def complete(headers: MutableHeaders) -> None:
            for name, value in _headers(headers.get("Content-Type", ""), scheme).items():
                headers.setdefault(name, value)
            if ends_connection:
                headers["Connection"] = "close"

        await self._app(scope, receive, _sending(send, complete))


class TraceId:
    """ASGI middleware. Takes up the trace that a request names, or begins one, and tells its id in the answer.

    It is the request's id as well, which OpenAI's clients show with an error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace_id = tracing.begin(Headers(scope=scope))

        def complete(headers: MutableHeaders) -> None:
            headers[tracing.TRACE_HEADER] = headers[REQUEST_ID_HEADER] = trace_id

        await self._app(scope, receive, _sending(send, complete))


def secured(response: Response, scheme: str) -> Response:
    """An answer that no layer sees, with the headers that `SecurityHeaders` would give it."""
    for name, value in _headers(response.headers.get("Content-Type", ""), scheme).items():
        response.headers.setdefault(name, value)
    return response


def _sending(send: Send, complete: Callable[[MutableHeaders], None]) -> Send:
    """Sends an answer whose headers have been completed."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            complete(MutableHeaders(scope=message))
        await send(message)

    return sending


def _headers(content_type: str, scheme: str) -> dict[str, str]:
    page = content_type.startswith("text/html")
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": _PAGE_POLICY if page else _DATA_POLICY,
    }
    if not _is_asset(content_type):
        headers["Cache-Control"] = "no-store"
    if scheme == "https":
        headers["Strict-Transport-Security"] = f"max-age={A_YEAR}"
    return headers


def _is_asset(content_type: str) -> bool:
    """Whether it belongs to the page that shows the API: all that we answer ourselves is JSON, events or metrics."""
    kind = content_type.partition(";")[0]
    return kind in {"text/html", "text/css", "text/javascript", "application/javascript"} or (
        kind.startswith("image/")
    )
