"""Bodies that are forms, as `multipart/form-data`: pictures beside fields, all of it in memory and bounded."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import TypeVar

import pydantic
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from text2image.api.asgi import invalid, read_body
from text2image.core.errors import FieldViolation, InvalidRequest, UnsupportedMediaType
from text2image.core.messages import RequestParams
from text2image.core.settings import get_settings

KIND = "multipart/form-data"
IMAGE, MASK = "image", "mask"
# More fields than any of our forms has, and files.
_MOST_FIELDS = 64
_MOST_FILES = 8
# In front of a file, however its header is written.
_SIGNS = (b"image", b"mask")
# What browsers write in front of base64 where a picture stands in a text.
_DATA_URL = re.compile(r"data:[\w.+/-]{0,80}(;[\w=.-]{0,80}){0,4};base64,", re.ASCII)

B = TypeVar("B", bound=pydantic.BaseModel)


@dataclass(frozen=True, slots=True)
class Form:
    """What a form holds: its fields as text, and files by the names of their fields, in the order of the form."""

    fields: dict[str, str]
    files: dict[str, list[bytes]]

    def added_to(self, params: RequestParams) -> RequestParams:
        """A request with the form's image and mask, each a file or text as base64.

        Raises:
            InvalidRequest: there are several of one, or it is no base64.
        """
        return replace(params, image=self._picture(IMAGE), mask=self._picture(MASK))

    def _picture(self, name: str) -> bytes | None:
        found, text = self.files.get(name, []), self.fields.get(name)
        count = len(found) + (text is not None)
        if count > 1:
            raise _refused(name, f"is there {count} times; send one")
        return found[0] if found else decoded(name, text)

    def parsed(self, kind: type[B]) -> B:
        """The fields less the pictures as a `kind`, which reads them as numbers where they are meant so.

        Raises:
            InvalidRequest: names each bad field.
        """
        try:
            others = {name: each for name, each in self.fields.items() if name not in (IMAGE, MASK)}
            return kind.model_validate_strings(others, strict=False)
        except pydantic.ValidationError as error:
            raise invalid(error) from None


def is_form(request: Request) -> bool:
    """Whether a body is called a form with files."""
    sent = request.headers.get("Content-Type", "")
    return sent.partition(";")[0].strip().lower() == KIND


async def read_form(request: Request) -> Form:
    """The body as a form; a field's name may end in `[]`, as clients write those of lists. An empty file is none.

    Raises:
        UnsupportedMediaType: the body is not called a form.
        InvalidRequest: it is none, or a field that is no picture is a file.
        Text2ImageError: as `read_body` says.
    """
    if not is_form(request):
        said = request.headers.get("Content-Type", "")[:80]
        raise UnsupportedMediaType(f"send a form, as {KIND}, and not {said!r}")
    body = await read_body(request, _SIGNS)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers,
        stream(),
        max_files=_MOST_FILES,
        max_fields=_MOST_FIELDS,
        max_part_size=get_settings().max_body_bytes,
    )
    # Nothing of it is put on a disk.
    parser.spool_max_size = len(body) + 1
    try:
        parsed = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:
        raise _refused("body", f"is no form that can be read: {str(error)[:120]}") from None
    return await _sorted(list(parsed.multi_items()))


async def _sorted(items: list[tuple[str, UploadFile | str]]) -> Form:
    form = Form({}, {})
    for written, value in items:
        name = written.removesuffix("[]")
        if isinstance(value, str):
            if name in form.fields:
                raise _refused(name[:80], "is there twice")
            form.fields[name] = value
        elif name not in (IMAGE, MASK):
            raise _refused(name[:80], "is a file; send it as text")
        elif content := await value.read():
            form.files.setdefault(name, []).append(content)
    return form


def decoded(field: str, text: str | None) -> bytes | None:
    """A file that stands in a text as base64, with or without what makes a URL of it.

    Raises:
        InvalidRequest: it is no base64.
    """
    if text is None:
        return None
    start = _DATA_URL.match(text)
    try:
        return base64.b64decode(text[start.end() if start else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise _refused(field, "is no base64") from None


def _refused(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation(field, reason))
