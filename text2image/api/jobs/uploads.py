"""Bodies of jobs: JSON, which is read whole, or JSON Lines, of which a piece at a time is in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pydantic
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from text2image.api.asgi import (
    BODY_TIMEOUT,
    DISCARD_FACTOR,
    PICTURE_RATE,
    encoded_bytes,
    invalid,
    is_json,
)
from text2image.api.forms import is_form
from text2image.api.jobs.requests import (
    Checker,
    Envelope,
    Loose,
    all_of,
    envelope_in,
    refused,
)
from text2image.core.errors import (
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from text2image.core.settings import get_settings
from text2image.jobs.jobs import MAX_ITEMS
from text2image.jobs.records import NewItem

LINES = (
    "application/jsonl",
    "application/x-ndjson",
    "application/x-jsonlines",
    "application/ndjson",
)
MAX_JSON = 16 << 20
FILE = "file"
# Requests that are checked in one go, beside the event loop.
_AT_ONCE = 100
# Of a file that lies on the disk already.
_CHUNK = 256 << 10
# Bad requests that are named; how many more there are nobody needs to know to the last one.
_MOST_FAULTS = 32

Items = AsyncGenerator[NewItem, None]
Batches = AsyncGenerator[list[tuple[int, Any]], None]


@asynccontextmanager
async def read_submission(
    request: Request, checker: Checker
) -> AsyncGenerator[tuple[Envelope, Items], None]:
    """What a job says of itself, and its requests; of JSON Lines they are still to be received.

    Raises:
        UnsupportedMediaType: the body is called neither JSON nor JSON Lines nor a form.
        Text2ImageError: it cannot be read; the requests raise what is wrong with them, by their places.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in LINES:
        envelope = envelope_in(request.query_params)
        source: Batches = _lines(_received(request, get_settings().jobs_body_bytes))
        word = "line"
    elif is_form(request):
        fields, file = await _form(request)
        envelope, source, word = envelope_in(fields), _lines(_chunks(file)), "line"
    elif is_json(request.headers):
        loose = await _json(request)
        envelope, source, word = loose, _batches(loose), "requests"
    else:
        raise UnsupportedMediaType(
            "send JSON with the header Content-Type: application/json, or JSON Lines with "
            f"{LINES[0]}, not {kind[:80]!r}"
        )
    async with aclosing(source), aclosing(_checked(source, checker, word)) as items:
        yield envelope, items


async def _json(request: Request) -> Loose:
    body = bytearray()
    async for chunk in _received(request, min(MAX_JSON, get_settings().jobs_body_bytes)):
        body += chunk
    try:
        loose = await asyncio.to_thread(Loose.model_validate_json, bytes(body))
    except pydantic.ValidationError as error:
        raise invalid(error) from None
    if len(loose.requests) > MAX_ITEMS:
        raise refused("requests", f"are {len(loose.requests)}; a job has at most {MAX_ITEMS}")
    return loose


async def _batches(loose: Loose) -> Batches:
    for start in range(0, len(loose.requests), _AT_ONCE):
        yield list(enumerate(loose.requests[start : start + _AT_ONCE], start))


async def _form(request: Request) -> tuple[dict[str, str], UploadFile]:
    """The fields of a form, and its file, which lies on the disk if it is large."""
    stream = _received(request, get_settings().jobs_body_bytes)
    parser = MultiPartParser(
        request.headers, stream, max_files=1, max_fields=16, max_part_size=64 << 10
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:
        raise refused("body", f"is no form that can be read: {str(error)[:120]}") from None
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    file = form.get(FILE)
    if not isinstance(file, UploadFile):
        raise refused(FILE, "is missing; it brings the requests as JSON Lines")
    return fields, file


async def _chunks(file: UploadFile) -> AsyncGenerator[bytes, None]:
    try:
        while chunk := await file.read(_CHUNK):
            yield chunk
    finally:
        await file.close()


async def _checked(batches: Batches, checker: Checker, word: str) -> Items:
    """The items of all batches, unless something is wrong with any of them."""
    faults: list[InvalidRequest] = []
    async for batch in batches:
        for item in await asyncio.to_thread(_items, batch, checker, word):
            if isinstance(item, InvalidRequest):
                faults = [*faults, item][:_MOST_FAULTS]
            elif not faults:
                yield item
    if faults:
        raise all_of(faults)


def _items(
    batch: list[tuple[int, Any]], checker: Checker, word: str
) -> list[NewItem | InvalidRequest]:
    return [_item(f"{word}.{number}", fields, checker) for number, fields in batch]


def _item(place: str, fields: Any, checker: Checker) -> NewItem | InvalidRequest:
    if isinstance(fields, bytes):
        try:
            fields = from_json(fields, allow_inf_nan=False)
        except ValueError as error:
            return refused(place, f"is no JSON: {str(error)[:100]}")
    if not isinstance(fields, dict):
        return refused(place, "must be an object as POST /generate takes it")
    return checker.item(place, fields)


async def _lines(chunks: AsyncIterator[bytes]) -> Batches:
    """The lines that are not empty with their numbers, counted from 1, as they come."""
    settings = get_settings()
    longest = settings.max_body_bytes + encoded_bytes(settings)
    rest = bytearray()
    number = count = 0
    async for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        if whole:
            whole[0] = bytes(rest) + whole[0]
            rest.clear()
        rest += last
        if len(rest) > longest or any(len(line) > longest for line in whole):
            raise PayloadTooLarge(
                f"a line after line {number} is longer than {longest} bytes, the most of a request"
            )
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
    bare = ((number, line.removeprefix(b"\xef\xbb\xbf")) for number, line in numbered)
    return [(number, line) for number, line in bare if line.strip()]


def _check_count(count: int) -> None:
    if count > MAX_ITEMS:
        raise refused(
            "body", f"has more than {MAX_ITEMS} requests, the most of a job; send several"
        )


async def _received(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body piece by piece.

    Raises:
        PayloadTooLarge: it is larger than the limit.
        RequestTimeout: it comes too slowly. Time that its reader takes is not counted.
    """
    declared = request.headers.get("Content-Length", "")
    if "Expect" in request.headers and declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)  # before the client begins to send
    # A client that is cut off while it sends sees a broken connection where it should see the answer.
    most = limit + get_settings().max_body_bytes * DISCARD_FACTOR
    received, waited = 0, 0.0
    stream = request.stream()
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
            break
        received += len(chunk)
        if received > most:
            break
        if received <= limit:
            yield chunk
    if received > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit} bytes; send JSON Lines, which may be larger than JSON, or several jobs"
    )
