"""Bodies of jobs: JSON, which is read whole, or JSON Lines, of which a piece at a time is in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pydantic
from pydantic_core import from_json
from starlette.requests import Request

from text2image.api.asgi import BODY_TIMEOUT, PICTURE_RATE, encoded_bytes, invalid, is_json
from text2image.api.jobs.requests import Checker, Envelope, Loose, all_of, envelope_in, refused
from text2image.core.errors import (
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from text2image.core.settings import get_settings
from text2image.jobs.jobs import MAX_ITEMS
from text2image.jobs.records import NewItem

LINES = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines", "application/ndjson")
MAX_JSON = 16 << 20
# Requests that are checked in one go, beside the event loop.
_AT_ONCE = 100

Items = AsyncGenerator[NewItem, None]


async def read_submission(request: Request, checker: Checker) -> tuple[Envelope, Items]:
    """What a job says of itself, and its requests; of JSON Lines they are still to be received.

    Raises:
        UnsupportedMediaType: the body is called neither JSON nor JSON Lines.
        Text2ImageError: it cannot be read; the requests raise what is wrong with them, by their places.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in LINES:
        return envelope_in(request.query_params), _checked(_lines(request), checker, "line")
    if not is_json(request.headers):
        raise UnsupportedMediaType(
            f"send JSON with the header Content-Type: application/json, or JSON Lines with {LINES[0]}, "
            f"not {kind[:80]!r}"
        )
    body = bytearray()
    async for chunk in _received(request, min(MAX_JSON, get_settings().job_body_bytes)):
        body += chunk
    loose = await asyncio.to_thread(_parsed, bytes(body))
    if len(loose.requests) > MAX_ITEMS:
        raise refused("requests", f"are {len(loose.requests)}; a job has at most {MAX_ITEMS}")

    async def batches() -> AsyncIterator[list[tuple[int, Any]]]:
        for start in range(0, len(loose.requests), _AT_ONCE):
            yield list(enumerate(loose.requests[start : start + _AT_ONCE], start))

    return loose, _checked(batches(), checker, "requests")


def _parsed(body: bytes) -> Loose:
    try:
        return Loose.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise invalid(error) from None


async def _checked(
    batches: AsyncIterator[list[tuple[int, Any]]], checker: Checker, word: str
) -> Items:
    """The items of all batches, unless something is wrong with any of them."""
    faults: list[InvalidRequest] = []
    async for batch in batches:
        for item in await asyncio.to_thread(_items, batch, checker, word):
            if isinstance(item, InvalidRequest):
                # Enough to be told what is wrong; how many more there are nobody needs to the last one.
                faults = [*faults, item][:32]
            elif not faults:
                yield item
    if faults:
        raise all_of(faults)


def _items(
    batch: list[tuple[int, Any]], checker: Checker, word: str
) -> list[NewItem | InvalidRequest]:
    made: list[NewItem | InvalidRequest] = []
    for number, fields in batch:
        place = f"{word}.{number}"
        if isinstance(fields, bytes):
            try:
                fields = from_json(fields)
            except ValueError as error:
                made.append(refused(place, f"is no JSON: {str(error)[:100]}"))
                continue
        if not isinstance(fields, dict):
            made.append(refused(place, "must be an object as POST /generate takes it"))
            continue
        made.append(checker.item(place, fields))
    return made


async def _lines(request: Request) -> AsyncIterator[list[tuple[int, Any]]]:
    """The lines that are not empty with their numbers, counted from 1, as they come."""
    settings = get_settings()
    longest = settings.max_body_bytes + encoded_bytes(settings)
    rest = bytearray()
    number = count = 0
    async for chunk in _received(request, settings.job_body_bytes):
        rest += chunk
        if len(rest) > longest and b"\n" not in rest:
            raise PayloadTooLarge(f"line {number + 1} is longer than {longest} bytes")
        if b"\n" not in chunk:
            continue
        *whole, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        batch = _numbered(whole, number)
        number += len(whole)
        count += len(batch)
        _check_count(count)
        if batch:
            yield batch
    if batch := _numbered([bytes(rest)], number):
        _check_count(count + 1)
        yield batch


def _numbered(lines: list[bytes], before: int) -> list[tuple[int, Any]]:
    numbered = enumerate(lines, before + 1)
    return [(number, line) for number, line in numbered if line.strip(b" \t\r\xef\xbb\xbf")]


def _check_count(count: int) -> None:
    if count > MAX_ITEMS:
        raise refused("body", f"has more than {MAX_ITEMS} requests, the most of a job; send several")


async def _received(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body piece by piece.

    Raises:
        PayloadTooLarge: it is larger than the limit.
        RequestTimeout: it comes too slowly. Time that its reader takes is not counted.
    """
    declared = request.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    received, waited = 0, 0.0
    stream = request.stream().__aiter__()
    while True:
        patience = BODY_TIMEOUT + received / PICTURE_RATE
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience - waited):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {patience:.0f} s") from None
        waited += time.monotonic() - began
        if chunk is None:
            return
        received += len(chunk)
        if received > limit:
            raise _too_large(limit)
        yield chunk


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit} bytes; send JSON Lines, which may be larger than JSON, or several jobs"
    )
