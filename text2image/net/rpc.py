"""What every gRPC server of ours shares: forgiving parsing, strict field checks, and errors as rich statuses.

grpc answers a message that does not parse with INTERNAL before any handler runs. Here such a message reaches the
handler as `Malformed`, so that it gets the 400 it deserves in the dialect of its contract.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from text2image.core.errors import (
    Cancelled,
    FieldViolation,
    Internal,
    InvalidRequest,
    PayloadTooLarge,
    Text2ImageError,
)
from text2image.net import rpc_errors

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "Callable[[Any, Context], Awaitable[Message] | AsyncIterator[Message]]"


@dataclass(frozen=True, slots=True)
class Malformed:
    """A request that is no valid message of its type, and why."""

    error: Text2ImageError


# What becomes of a message of this name that holds fields of these numbers, which this version does not know.
Unknown: TypeAlias = "Callable[[str, Sequence[int]], Text2ImageError | None]"


def refuse_unknown(message: str, numbers: Sequence[int]) -> Text2ImageError | None:
    """Whoever sends them should hear of it: what they are for is not done."""
    reason = f"{message} has no field of this number and type"
    return InvalidRequest(*(FieldViolation(f"#{number}", reason) for number in numbers))


# Fields of requests that hold pictures.
_PICTURES = ("image", "mask")


def _pictures_in(message: Message) -> int:
    """Bytes of the pictures that a message holds, and those of the requests in it."""
    known = message.DESCRIPTOR.fields_by_name
    if "requests" in known:
        requests: Any = getattr(message, "requests")  # noqa: B009
        return sum(_pictures_in(each.request) for each in requests)
    own = sum(len(getattr(message, name)) for name in _PICTURES if name in known)
    controls: Any = getattr(message, "controls") if "controls" in known else ()  # noqa: B009
    return own + sum(len(each.image) for each in controls)


def deserializer(
    kind: type[M], max_bytes: int, unknown: Unknown = refuse_unknown, *, picture_bytes: int = 0
) -> Callable[[bytes], M | Malformed]:
    """Parses a request; what does not parse, is too large or refused by `unknown` becomes `Malformed`.

    Args:
        max_bytes: of all but its pictures, which may have `picture_bytes` more.
    """
    more = f", and {picture_bytes} of pictures" if picture_bytes else ""

    def too_large(size: int) -> Malformed:
        reason = f"the request has {size} bytes; at most {max_bytes} are read{more}"
        return Malformed(PayloadTooLarge(reason))

    def deserialize(data: bytes) -> M | Malformed:
        size = len(data)
        if size > max_bytes + picture_bytes:
            return too_large(size)
        try:
            message = kind.FromString(data)
        except DecodeError:
            reason = (
                f"is not a valid {kind.DESCRIPTOR.name}: check field types and that text is UTF-8"
            )
            return Malformed(InvalidRequest(FieldViolation("request", reason)))
        if size > max_bytes and size - _pictures_in(message) > max_bytes:
            return too_large(size)
        numbers = sorted({field.field_number for field in _unknown_fields(message)})
        if numbers and (error := unknown(kind.DESCRIPTOR.name, numbers)):
            return Malformed(error)
        return message

    return deserialize


def _unknown_fields(message: Message) -> Iterator[Any]:
    fields: Any = UnknownFieldSet(message)  # iterable, whatever its type stub says
    return iter(fields)


def checked(request: M | Malformed) -> M:
    """The parsed request.

    Raises:
        Text2ImageError: why it could not be parsed.
    """
    if isinstance(request, Malformed):
        raise request.error
    return request


_MAKE_HANDLER = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def generic_handler(
    service: ServiceDescriptor,
    methods: dict[str, Handler],
    max_bytes: int,
    unknown: Unknown = refuse_unknown,
    send_timeout: float | None = None,
    picture_bytes: int = 0,
) -> grpc.GenericRpcHandler:
    """Handlers for the methods of a service, each streaming as its descriptor says.

    Args:
        max_bytes, picture_bytes: as `deserializer` has them.
        send_timeout: seconds after which a stream ends whose client takes no message of it.
    """
    handlers = {}
    for name, handler in methods.items():
        method = service.methods_by_name[name]
        if method.server_streaming and send_timeout is not None:
            handler = _sent_in_time(handler, send_timeout)
        handlers[name] = _MAKE_HANDLER[method.client_streaming, method.server_streaming](
            handler,
            request_deserializer=deserializer(
                GetMessageClass(method.input_type),
                max_bytes,
                unknown,
                picture_bytes=picture_bytes,
            ),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _sent_in_time(handler: Handler, seconds: float) -> Any:
    """Sends what `handler` yields, and closes it when the client does not take a message in so many seconds."""

    async def send(request: Any, context: Context) -> None:
        messages: Any = handler(request, context)
        async with aclosing(messages):
            async for message in messages:
                writing = asyncio.ensure_future(context.write(message))
                try:
                    await asyncio.wait([writing], timeout=seconds)
                    if writing.done():
                        await writing
                        continue
                    await messages.aclose()
                    # gRPC lets no status pass a message: this one is all that is held until the client comes or goes.
                    await writing
                finally:
                    writing.cancel()
                await abort(
                    context, Cancelled(f"nothing of the answer was taken for {seconds:g} s")
                )

    return send


def headers_in(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """The textual part of a call's metadata; of several with one name the first counts, as in HTTP."""
    return {name: value for name, value in reversed(tuple(metadata)) if isinstance(value, str)}


async def abort(context: Context, error: Exception) -> NoReturn:
    """Ends the call with an error's status; what is none of ours is logged under an id and told as internal."""
    status = rpc_errors.status_of(as_ours(error))
    # grpc would send the status' own trailers in place of those that are set already.
    trailers = (*(context.trailing_metadata() or ()), *(status.trailing_metadata or ()))
    await context.abort(status.code, status.details, trailers)
    raise AssertionError("abort_with_status raises")


def as_ours(error: Exception) -> Text2ImageError:
    """The error itself, or for a stranger an `Internal` whose id stands in the log beside the cause."""
    if isinstance(error, Text2ImageError):
        return error
    internal = Internal()
    logger.error("internal error %s", internal.error_id, exc_info=error)
    return internal
