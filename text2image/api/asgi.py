"""What both HTTP dialects share: bounded bodies, strict JSON, deadlines, and clients that leave."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pydantic
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive

from text2image.api import load
from text2image.core.errors import (
    Cancelled,
    FieldViolation,
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    Text2ImageError,
    Unauthenticated,
    UnsupportedMediaType,
)
from text2image.core.limits import MEGA
from text2image.core.settings import Settings, get_settings
from text2image.gateway.auth import Caller, Credentials, key_in
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Drawing, Gateway
from text2image.net.rpc import as_ours

TIMEOUT_HEADER = "X-Request-Timeout"
_TIMEOUT = TIMEOUT_HEADER.lower()
# What the RateLimit headers count.
WORK_UNIT = "megapixel-steps"
CACHE_HEADER = "X-Cache"
# Seconds that a body may take to arrive.
BODY_TIMEOUT = 30.0
# A body of pictures has longer, by as much as a client takes that sends so many bytes a second.
PICTURE_RATE = 512 << 10
# Of a request, as large as they may be: the one that it begins from, its mask, and one that steers it.
PICTURES = 3
# How much of a refused body is still read, in multiples of the limit: a client that is cut off while it sends
# sees a broken connection where it should see the answer.
DISCARD_FACTOR = 16

_JSON_PICTURES = (b'"image"', b'"mask"', b'"init_images"')
_JSON = re.compile(r"application/([\w!#$&^.+-]+\+)?json", re.IGNORECASE | re.ASCII)

T = TypeVar("T")
B = TypeVar("B", bound=pydantic.BaseModel)


def gateway_of(request: Request) -> Gateway:
    return cast(Gateway, request.app.state.gateway)


def credentials_of(request: Request) -> Credentials:
    """Where the client calls from, and the API key it shows as `Authorization: Bearer` or as `X-API-Key`."""
    return Credentials(
        address=request.client.host if request.client else "",
        forwarded_for=",".join(request.headers.getlist("X-Forwarded-For")),
        api_key=key_in(request.headers),
    )


def caller_of(request: Request) -> Caller:
    """Whom a request for pictures counts as; ask before its body is read.

    Raises:
        Unauthenticated: no key is shown where one is asked for, or one that is worth nothing.
        PermissionDenied: the key is for other things.
    """
    return gateway_of(request).authenticate(credentials_of(request))


def context_of(request: Request, **fields: Any) -> RequestContext:
    """The context of a request, which `answer` takes the headers from."""
    context = RequestContext(**fields)
    request.state.context = context
    return context


async def answer(
    request: Request,
    transport: str,
    work: Callable[[], Awaitable[Response]],
    refuse: Callable[[Text2ImageError], Response],
) -> Response:
    """The response of `work`, or its error in the words of `refuse`; an answer is made even if nobody waits for it.

    It is measured as one request, up to the last byte of an `EventStream`. Its headers tell where the caller stands
    with its limits, if it has any.
    """
    response = await _answered(request, transport, work, refuse)
    context: RequestContext | None = getattr(request.state, "context", None)
    if context:
        load.add_header(request.headers, response.headers, gateway_of(request))
    for spending in (context and context.standing) or ():
        limit = spending.limit
        policy = f'"{limit.period}";q={limit.megapixel_steps};w={limit.seconds};qu="{WORK_UNIT}"'
        left, seconds = spending.left // MEGA, math.ceil(spending.seconds_until_more)
        response.headers.append("RateLimit-Policy", policy)
        response.headers.append("RateLimit", f'"{limit.period}";r={left};t={seconds}')
    return response


async def _answered(
    request: Request,
    transport: str,
    work: Callable[[], Awaitable[Response]],
    refuse: Callable[[Text2ImageError], Response],
) -> Response:
    try:
        with ExitStack() as measuring:
            measuring.enter_context(gateway_of(request).metrics.request(transport))
            try:
                response = await work()
            except ClientDisconnect:
                raise Cancelled("the client left before the request was read") from None
            if isinstance(response, EventStream):
                await response.measure(measuring.pop_all())
            return response
    except Exception as error:
        return refuse(as_ours(error))


class EventStream(StreamingResponse):
    """Server-sent events from `lines`; an error on the way is the last of them, in the words of `tell`."""

    def __init__(
        self, lines: AsyncGenerator[str, None], tell: Callable[[Text2ImageError], str]
    ) -> None:
        super().__init__(lines, media_type="text/event-stream")
        self._lines = lines
        self._tell = tell

    async def measure(self, measuring: ExitStack) -> None:
        """Ends the measurement when the stream ends, and by the way it ends."""
        self.body_iterator = lines = _measured(self._lines, self._tell, measuring)
        # Only what has begun is told when nobody wants the rest of it.
        await anext(lines)


async def _measured(
    lines: AsyncGenerator[str, None], tell: Callable[[Text2ImageError], str], measuring: ExitStack
) -> AsyncGenerator[str, None]:
    try:
        with measuring:
            async with aclosing(lines):
                yield ""
                async for line in lines:
                    yield line
    except Exception as error:
        yield tell(as_ours(error))


def marked(response: Response, context: RequestContext, drawing: Drawing) -> Response:
    """The response with what the cache did, where there is one and the request's pictures could be there."""
    if drawing.remembered and context.params.seed is not None:
        response.headers[CACHE_HEADER] = "hit" if drawing.cached else "miss"
    return response


def refused(error: Text2ImageError, body: Response) -> Response:
    """The response to an error, with the status and headers that it calls for."""
    body.status_code = error.http_status
    if isinstance(error, Unauthenticated):
        body.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        body.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return body


async def read_json(request: Request, kind: type[B], *, pictures: bool = False) -> B:
    """The body as a `kind`, whose own strictness decides about types and unknown fields.

    Args:
        pictures: whether it may be larger for the sake of pictures in it.

    Raises:
        UnsupportedMediaType: the body is not called JSON.
        InvalidRequest: it is no JSON, no UTF-8, or not of this kind; names each bad field.
        Text2ImageError: as `read_body` says.
    """
    require_json(request)
    settings = get_settings()
    body = await read_body(request, _JSON_PICTURES if pictures else ())
    try:
        if len(body) > settings.max_body_bytes:
            # What takes milliseconds keeps nobody else waiting.
            return await asyncio.to_thread(kind.model_validate_json, body)
        return kind.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise invalid(error) from None


def is_json(headers: Mapping[str, str]) -> bool:
    """Whether a body is called JSON by its headers, whose names are in lower case."""
    kind = headers.get("content-type", "").partition(";")[0]
    return _JSON.fullmatch(kind.strip()) is not None


def require_json(request: Request) -> None:
    """Does nothing if a body is called JSON.

    Raises:
        UnsupportedMediaType: it is not.
    """
    if not is_json(request.headers):
        sent = request.headers.get("Content-Type", "")
        # A browser sends other kinds for any page, without asking first.
        said = f"not {sent[:80]!r}" if sent else "which is missing"
        raise UnsupportedMediaType(
            f"send JSON with the header Content-Type: application/json, {said}"
        )


def invalid(error: pydantic.ValidationError) -> InvalidRequest:
    """What pydantic found wrong, as our error."""
    return InvalidRequest(*map(_violation, error.errors(include_url=False, include_input=False)))


async def read_body(request: Request, pictures: tuple[bytes, ...] = ()) -> bytes:
    """The body.

    Args:
        pictures: one of these stands in front of a picture; a body that has any may be larger, and take longer.

    Raises:
        PayloadTooLarge: it is larger than the settings allow.
        RequestTimeout: it did not arrive in time.
    """
    settings = get_settings()
    clock = asyncio.timeout(BODY_TIMEOUT)
    size = Size(settings.max_body_bytes, encoded_bytes(settings), pictures, clock, BODY_TIMEOUT)
    try:
        async with clock:
            return await _read_body(request, size)
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {size.seconds:g} s") from None


def encoded_bytes(settings: Settings) -> int:
    """What pictures may take of a body, as base64."""
    return PICTURES * -(-settings.max_image_bytes * 4 // 3 // 4 * 4) + PICTURES * 4


@dataclass(slots=True)
class Size:
    """How large a body may be.

    Attributes:
        limit: without pictures, in bytes.
        more: for them.
        signs: what stands in front of one.
        clock: runs while the body is read, `seconds` in all.
    """

    limit: int
    more: int
    signs: tuple[bytes, ...]
    clock: asyncio.Timeout
    seconds: float

    @property
    def most(self) -> int:
        """Bytes that a body of this kind may have."""
        return self.limit + (self.more if self.signs else 0)

    def grow(self, beginning: bytearray) -> int:
        """The limit of a body that goes on beyond it; all but its pictures fits in front of that."""
        if any(sign in beginning for sign in self.signs):
            longer = 0.0 if self.seconds > BODY_TIMEOUT else self.more / PICTURE_RATE
            self.seconds += longer
            self.clock.reschedule((self.clock.when() or 0.0) + longer)
            return self.limit + self.more
        return self.limit


async def _read_body(request: Request, size: Size) -> bytes:
    limit = size.limit
    declared = request.headers.get("Content-Length", "")
    if "Expect" in request.headers and declared.isdecimal() and int(declared) > size.most:
        raise _too_large(size.most)  # before the client begins to send
    body = bytearray()
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit and received - len(chunk) == len(body):
            # Nothing of it is lost yet.
            limit = size.grow(body + chunk)
        if received <= limit:
            body += chunk
        elif received > limit + size.limit * DISCARD_FACTOR:
            break
    if received > limit:
        raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limit} bytes")


def after(first: Message, receive: Receive) -> Receive:
    """Receives a message that was received already, and then what follows it."""
    waiting = [first]

    async def receiving() -> Message:
        return waiting.pop() if waiting else await receive()

    return receiving


def _violation(detail: Any) -> FieldViolation:
    field = ".".join(str(part) for part in detail["loc"]) or "body"
    if detail["type"] == "extra_forbidden":
        return FieldViolation(field[:80], "is not a field of this request")
    if detail["type"] == "missing":
        return FieldViolation(field, "is missing")
    return FieldViolation(field, detail["msg"])


def timeout_of(request: Request) -> float:
    """As `timeout_in` has it."""
    return timeout_in(request.headers)


def timeout_in(headers: Mapping[str, str]) -> float:
    """Seconds the client gives us: what its header names, else the setting; names of headers are in lower case.

    Raises:
        InvalidRequest: the header holds anything but a number in range.
    """
    settings = get_settings()
    named = headers.get(_TIMEOUT)
    if named is None:
        return settings.request_timeout
    try:
        # Underscores are Python's own way to write numbers, and no client's.
        seconds = math.nan if "_" in named else float(named)
    except ValueError:
        seconds = math.nan
    longest = settings.longest_timeout
    if not 0 < seconds <= longest:
        reason = f"must be a number of seconds above 0, at most {longest:g}"
        raise InvalidRequest(FieldViolation(TIMEOUT_HEADER, reason))
    return seconds


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves; the body must have been read.

    Raises:
        Cancelled: the client left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("the client left before the answer")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
