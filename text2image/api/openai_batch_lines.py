"""The lines of OpenAI's batches: requests as they come, and what is told of each.

A file whose lines cannot be told apart fails as a whole, with the number of each bad line. A line whose body asks for
what cannot be drawn fails alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pydantic

from text2image.api.asgi import invalid
from text2image.api.openai_answers import QUALITIES, pixel_tokens, tokens_of
from text2image.api.openai_batch_messages import BatchError, Line
from text2image.api.openai_requests import ImagesRequest, JsonEditRequest, Named
from text2image.api.openai_responses import error_body
from text2image.core.errors import FieldViolation, InvalidRequest, Text2ImageError
from text2image.core.messages import Quality
from text2image.jobs.records import Item, ItemState, NewItem

# Lines that a batch names that has failed for them.
MAX_ERRORS = 50
# Letters of what is said of a line, which may have any number of wrong fields.
_MAX_MESSAGE = 300
# What lines hold, by their endpoints.
_BODIES: dict[str, type[ImagesRequest]] = {
    "/v1/images/generations": ImagesRequest,
    "/v1/images/edits": JsonEditRequest,
}
_BLANK = b" \t\r\n"
_EXPIRED = "DEADLINE_EXCEEDED"


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that hold anything, and their numbers from 1; a mark of the byte order is left out."""
    for number, line in enumerate(file, 1):
        text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip(_BLANK)
        if text:
            yield number, text


def errors_in(file: BinaryIO, endpoint: str, most: int) -> list[BatchError]:
    """What is wrong with an input file as a whole: nothing, or the first of it.

    Args:
        most: lines that it may have.
    """
    errors: list[BatchError] = []
    first_use: dict[str, int] = {}
    count = 0
    for number, text in lines_of(file):
        count += 1
        if count > most:
            message = f"the file has more than {most} lines; send the others as another batch"
            return [BatchError(code="too_many_requests", message=message, line=number)]
        try:
            line = read_line(text)
        except InvalidRequest as error:
            errors.append(_error(number, error))
        else:
            errors += _misfits(number, line, endpoint, first_use)
        if len(errors) >= MAX_ERRORS:
            break
    if not count:
        return [BatchError(code="empty_file", message="the file has no lines with requests")]
    return errors[:MAX_ERRORS]


def read_line(text: bytes) -> Line:
    """A line.

    Raises:
        InvalidRequest: it is no JSON, or lacks what every line has.
    """
    try:
        return Line.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise invalid(error) from None


def _misfits(
    number: int, line: Line, endpoint: str, first_use: dict[str, int]
) -> Iterator[BatchError]:
    if line.url.rstrip("/") != endpoint:
        message = f"url is {line.url[:80]!r}, and the batch is for {endpoint}"
        yield BatchError(code="mismatched_url", message=message, param="url", line=number)
    earlier = first_use.setdefault(line.custom_id, number)
    if earlier != number:
        message = f"custom_id is that of line {earlier}; give each line its own"
        yield BatchError(
            code="duplicate_custom_id", message=message, param="custom_id", line=number
        )


def _error(number: int, error: InvalidRequest) -> BatchError:
    first = error.violations[0]
    malformed = first.field == "body" and len(error.violations) == 1
    return BatchError(
        code="invalid_json_line" if malformed else "invalid_line",
        message=f"line {number}: {error.message[:_MAX_MESSAGE]}",
        param=None if malformed else first.field,
        line=number,
    )


def item_of(text: bytes, named: Named) -> NewItem:
    """The request of a line that has no error but in its body.

    Raises:
        Unavailable: it is not known yet which models there are.
    """
    line = read_line(text)
    try:
        body = _BODIES[line.url.rstrip("/")].model_validate(line.body)
        if body.stream:
            raise InvalidRequest(FieldViolation("stream", "must be left out; batches are not"))
        if body.response_format == "url":
            reason = "must be 'b64_json' in a batch, whose files are kept longer than URLs work"
            raise InvalidRequest(FieldViolation("response_format", reason))
        # Models that OpenAI answered with URLs for need none here.
        body = body.model_copy(update={"response_format": "b64_json"})
        params = body.params(named)
    except pydantic.ValidationError as error:
        return NewItem(params=invalid(error), custom_id=line.custom_id)
    except InvalidRequest as error:
        return NewItem(params=error, custom_id=line.custom_id)
    return NewItem(params=params, custom_id=line.custom_id, encoding=body.encoding)


def output_of(item: Item, batch_id: str, pictures: Sequence[bytes]) -> dict[str, Any]:
    """The line of an item that was drawn, in which bytes stand for their base64."""
    body = {
        "created": int(item.finished_at or 0),
        "data": [
            {"b64_json": file, "seed": picture.seed}
            for file, picture in zip(pictures, item.pictures, strict=True)
        ],
        "output_format": item.encoding.format.value,
        "background": "opaque",
        **_told(item),
        "message": item.message,
        "cached": False,
    }
    return _line(item, batch_id, {"status_code": 200, "body": body}, None)


def error_of(item: Item, batch_id: str) -> dict[str, Any]:
    """The line of an item that was not drawn."""
    if item.state is ItemState.CANCELLED:
        told = {"code": "batch_cancelled", "message": "the batch was cancelled before"}
        return _line(item, batch_id, None, told)
    assert item.error
    if item.error.code == _EXPIRED:
        told = {"code": "batch_expired", "message": item.error.message}
        return _line(item, batch_id, None, told)
    failure = InvalidRequest(*item.error.violations) if item.error.violations else None
    body = error_body(failure) if failure else _plain_error(item.error.code, item.error.message)
    return _line(item, batch_id, {"status_code": item.error.http_status, "body": body}, None)


def _plain_error(code: str, message: str) -> dict[str, Any]:
    """The body of an error of which its reason and its message are known."""
    kind = next((each for each in _all_errors() if each.reason == code), Text2ImageError)
    return {
        "error": {
            "message": message,
            "type": kind.openai_type,
            "param": "model" if code == "MODEL_NOT_FOUND" else None,
            "code": kind.openai_code or code.lower(),
        }
    }


def _all_errors() -> Iterator[type[Text2ImageError]]:
    waiting = [Text2ImageError]
    while waiting:
        kind = waiting.pop()
        yield kind
        waiting += kind.__subclasses__()


def _line(
    item: Item,
    batch_id: str,
    response: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
) -> dict[str, Any]:
    own = f"{batch_id.removeprefix('batch_')}_{item.index}"
    return {
        "id": f"batch_req_{own}",
        "custom_id": item.custom_id,
        "response": {"request_id": f"req_{own}", **response} if response else None,
        "error": error,
    }


def _told(item: Item) -> dict[str, Any]:
    """Size, quality and usage of an item's pictures, as a single answer has them."""
    params, first = item.params, item.pictures[0]
    assert params
    quality = QUALITIES.get(Quality.named(params.quality or Quality.EXACT), "auto")
    text = tokens_of(params.prompt) + tokens_of(params.negative_prompt or "")
    drawn = sum(pixel_tokens(each.width, each.height) for each in item.pictures)
    return {
        "quality": quality,
        "size": f"{first.width}x{first.height}",
        "usage": {
            "input_tokens": text,
            "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
            "output_tokens": drawn,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
            "total_tokens": text + drawn,
        },
    }
