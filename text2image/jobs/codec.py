"""How requests, errors and pictures stand in the database: as JSON, and files apart from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter

from text2image.core.errors import InvalidRequest, Text2ImageError
from text2image.core.formats import Encoding, FileFormat
from text2image.core.messages import RequestParams
from text2image.jobs.records import ItemError, PictureFile

_PARAMS = TypeAdapter(RequestParams)
_ERROR = TypeAdapter(ItemError)
_PICTURES = TypeAdapter(tuple[PictureFile, ...])
# Where the sizes of the files stand, by the fields that they belong to.
_FILES = "_files"


def params_text(params: RequestParams) -> tuple[str, bytes | None]:
    """A request as JSON, and its files one behind another."""
    found = [(name, file) for name, file in _files_of(params) if isinstance(file, bytes)]
    controls = params.controls and tuple(replace(each, image=None) for each in params.controls)
    bare = asdict(replace(params, image=None, mask=None, controls=controls))
    told: dict[str, Any] = {name: value for name, value in bare.items() if value is not None}
    if found:
        told[_FILES] = [(name, len(file)) for name, file in found]
    return dumps(told), b"".join(file for _, file in found) or None


def params_of(text: str, files: bytes | None = None) -> RequestParams:
    """The request that `params_text` wrote; without its files if they are not given."""
    told = json.loads(text)
    sizes = told.pop(_FILES, ())
    params = _PARAMS.validate_python(told)
    if files is None:
        return params
    controls = list(params.controls or ())
    begin = 0
    for name, size in sizes:
        file, begin = files[begin : begin + size], begin + size
        if name == "image":
            params = replace(params, image=file)
        elif name == "mask":
            params = replace(params, mask=file)
        else:
            controls[int(name)] = replace(controls[int(name)], image=file)
    return replace(params, controls=tuple(controls) if params.controls is not None else None)


def _files_of(params: RequestParams) -> Iterator[tuple[str, object]]:
    yield "image", params.image
    yield "mask", params.mask
    for index, control in enumerate(params.controls or ()):
        yield str(index), control.image


def error_of(error: Text2ImageError) -> ItemError:
    """What is kept of an error."""
    violations = error.violations if isinstance(error, InvalidRequest) else ()
    return ItemError(
        code=error.reason,
        message=error.message,
        http_status=error.http_status,
        violations=violations,
    )


def error_text(error: ItemError) -> str:
    return _ERROR.dump_json(error).decode()


def error_in(text: str) -> ItemError:
    return _ERROR.validate_json(text)


def pictures_text(pictures: tuple[PictureFile, ...]) -> str:
    return _PICTURES.dump_json(pictures).decode()


def pictures_in(text: str) -> tuple[PictureFile, ...]:
    return _PICTURES.validate_json(text)


def encoding_text(encoding: Encoding) -> str:
    return f"{encoding.format}:{encoding.quality}"


def encoding_in(text: str) -> Encoding:
    form, _, quality = text.partition(":")
    return Encoding(FileFormat(form), int(quality))


def dumps(value: object) -> str:
    """JSON without anything that it has no words for.

    Raises:
        ValueError, TypeError: there is such a thing.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
