"""OpenAI's files, `/v1/files`: what batches begin from, and what comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import BinaryIO

import pydantic
from fastapi import APIRouter
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from text2image.api import openai_outputs, schema
from text2image.api.asgi import BODY_TIMEOUT, PICTURE_RATE, answer, caller_of, invalid
from text2image.api.forms import KIND as FORM
from text2image.api.forms import is_form
from text2image.api.openai import TRANSPORT, error_response
from text2image.api.openai_batch_messages import (
    LONGEST_LIFE,
    MAX_FILES_PAGE,
    OUTPUT_PURPOSE,
    PURPOSE,
    SHORTEST_LIFE,
    ExpiresAfter,
    FileDeleted,
    FileList,
    FileObject,
)
from text2image.api.openai_batches import (
    after_parameter,
    choice_of,
    choice_parameter,
    files_of,
    jobs_of,
    limit_of,
    limit_parameter,
)
from text2image.api.openai_responses import ErrorEnvelope, error_body
from text2image.core.errors import (
    FieldViolation,
    FileNotFound,
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from text2image.core.settings import get_settings
from text2image.jobs.files import StoredFile, storage

router = APIRouter(prefix="/v1")
MEDIA_TYPE = "application/jsonl"
_MAX_NAME = 255
# Of a form around its file, in bytes.
_FORM_BYTES = 64 << 10
# How much of a file that is too large is still read, in multiples of the limit.
_DISCARD_FACTOR = 2
_PIECE = 1 << 18
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = {"file", "purpose", _ANCHOR, _SECONDS}
_NO_FIELD = "is not a field of this request"

_EXAMPLE = FileObject(
    id="file-5d1c0e9f8a7b6c5d4e3f2a1b",
    bytes=18240,
    created_at=1767225600,
    expires_at=1769817600,
    filename="prompts.jsonl",
    purpose=PURPOSE,
)
_NOT_FOUND = FileNotFound("there is no file 'file-5d1c0e9f8a7b6c5d4e3f2a1b' of yours")
_REFUSALS = schema.refusals((*schema.READING, _NOT_FOUND), ErrorEnvelope, error_body)
_FILE_ID = {
    "name": "file_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "example": _EXAMPLE.id,
}
_FORM = {
    "required": True,
    "content": {
        FORM: {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "additionalProperties": False,
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "minLength": 1,
                        "description": "A request a line, as JSON, with custom_id, method, url and body.",
                    },
                    "purpose": {"type": "string", "enum": [PURPOSE]},
                    _ANCHOR: {"type": "string", "enum": ["created_at"]},
                    _SECONDS: {
                        "type": "integer",
                        "description": "For how long it is kept, where that is less than the server does.",
                        "minimum": SHORTEST_LIFE,
                        "maximum": LONGEST_LIFE,
                    },
                },
            },
            "example": {
                "purpose": PURPOSE,
                "file": '{"custom_id": "1", "method": "POST", "url": "/v1/images/generations", '
                '"body": {"prompt": "a fox"}}',
            },
        }
    },
}


def shown(file: StoredFile) -> FileObject:
    """An upload as it is told of."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        expires_at=int(file.expires_at),
        filename=file.name,
        purpose=PURPOSE,
    )


@router.post(
    "/files",
    summary="Upload a file of requests, in the dialect of OpenAI",
    tags=["batches"],
    response_model=FileObject,
    responses={
        **schema.success("The file.", schema.json(_EXAMPLE.model_dump())),
        **schema.refusals(schema.DRAWING, ErrorEnvelope, error_body),
    },
    openapi_extra={"requestBody": _FORM},
)
async def create_file(request: Request) -> Response:
    """Keeps a file of requests for a batch, its owner's alone."""

    async def work() -> Response:
        owner = caller_of(request).name
        return JSONResponse((await _uploaded(request, owner)).model_dump())

    return await answer(request, TRANSPORT, work, error_response)


async def _uploaded(request: Request, owner: str) -> FileObject:
    if not is_form(request):
        said = request.headers.get("Content-Type", "")[:80]
        raise UnsupportedMediaType(f"send a form, as {FORM}, and not {said!r}")
    store, form = files_of(request), await _parsed(request)
    try:
        fields = dict(form.multi_items())
        if unknown := fields.keys() - _FIELDS:
            raise InvalidRequest(*(FieldViolation(each[:80], _NO_FIELD) for each in unknown))
        file = fields.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidRequest(FieldViolation("file", "is missing; send it as a file"))
        if fields.get("purpose") != PURPOSE:
            raise InvalidRequest(FieldViolation("purpose", f"must be {PURPOSE!r}"))
        life = _life(fields)
        if not file.size:
            raise InvalidRequest(FieldViolation("file", "is empty"))
        most = get_settings().batch_file_bytes
        if file.size > most:
            raise _too_large(most)
        name = (file.filename or "")[:_MAX_NAME]
        return shown(await asyncio.to_thread(store.add, owner, file.file, name, life))
    finally:
        await form.close()


async def _parsed(request: Request) -> FormData:
    """The form, whose file is on the disk if it is large.

    Raises:
        InvalidRequest: it is none.
        PayloadTooLarge, RequestTimeout: its file is too large, or too slow.
        Unavailable: the disk is full.
    """
    most = get_settings().batch_file_bytes
    body = _bounded(request, most)
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=len(_FIELDS))
    seconds = BODY_TIMEOUT + most / PICTURE_RATE
    try:
        async with asyncio.timeout(seconds):
            with storage():
                return await parser.parse()
    except TimeoutError:
        raise RequestTimeout(f"the file did not arrive within {seconds:.0f} s") from None
    except (MultiPartException, ValueError, LookupError) as error:
        reason = f"is no form that can be read: {str(error)[:120]}"
        raise InvalidRequest(FieldViolation("body", reason)) from None


def _life(fields: dict[str, UploadFile | str]) -> float | None:
    """Seconds that the client wants the file to be kept; None if it does not say."""
    given = {
        name: fields[field]
        for name, field in (("anchor", _ANCHOR), ("seconds", _SECONDS))
        if field in fields
    }
    if not given:
        return None
    try:
        return ExpiresAfter.model_validate(given, strict=False).seconds
    except pydantic.ValidationError as error:
        raise invalid(error) from None


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received <= most + _FORM_BYTES:
            yield chunk
        # A client that is cut off while it sends would see a broken connection in place of the answer.
        elif received > most * _DISCARD_FACTOR:
            break
    if received > most + _FORM_BYTES:
        raise _too_large(most)


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the file is larger than {most} bytes (T2I_BATCH_FILE_BYTES); send it as several"
    )


@router.get(
    "/files",
    summary="The caller's uploads, in the dialect of OpenAI",
    tags=["batches"],
    response_model=FileList,
    responses={
        **schema.success("Files.", schema.json(FileList(data=[_EXAMPLE]).model_dump())),
        **schema.refusals(
            (InvalidRequest(FieldViolation("limit", "is 0")), *schema.READING),
            ErrorEnvelope,
            error_body,
        ),
    },
    openapi_extra={
        "parameters": [
            after_parameter(_EXAMPLE.id),
            limit_parameter(MAX_FILES_PAGE, MAX_FILES_PAGE),
            choice_parameter("order", "By when they were made.", ("desc", "asc")),
            choice_parameter("purpose", "Of these alone.", (PURPOSE, OUTPUT_PURPOSE)),
        ]
    },
)
async def list_files(request: Request) -> Response:
    """Lists what the caller has uploaded. What comes of a batch is named by the batch alone."""

    async def work() -> Response:
        owner = caller_of(request).name
        limit = limit_of(request, MAX_FILES_PAGE, MAX_FILES_PAGE)
        asked = request.query_params
        purpose = choice_of(request, "purpose", (PURPOSE, OUTPUT_PURPOSE))
        order = choice_of(request, "order", ("desc", "asc"))
        files = await asyncio.to_thread(files_of(request).all_of, owner)
        if purpose != PURPOSE:
            files = []
        if order == "asc":
            files.reverse()
        if after := asked.get("after"):
            ids = [file.id for file in files]
            if after not in ids:
                reason = f"is {after[:80]!r}, and there is no such file of yours"
                raise InvalidRequest(FieldViolation("after", reason))
            files = files[ids.index(after) + 1 :]
        page = files[:limit]
        told = FileList(
            data=[shown(file) for file in page],
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(files) > len(page),
        )
        return JSONResponse(told.model_dump())

    return await answer(request, TRANSPORT, work, error_response)


@router.get(
    "/files/{file_id}",
    summary="A file, in the dialect of OpenAI",
    tags=["batches"],
    response_model=FileObject,
    responses={**schema.success("The file.", schema.json(_EXAMPLE.model_dump())), **_REFUSALS},
    openapi_extra={"parameters": [_FILE_ID]},
)
async def get_file_object(request: Request) -> Response:
    """Tells of an upload, or of what came of a batch."""

    async def work() -> Response:
        owner, file_id = caller_of(request).name, request.path_params["file_id"]
        output = openai_outputs.output_named(file_id)
        if output is None:
            told = shown(await asyncio.to_thread(files_of(request).get, owner, file_id))
        else:
            job = await openai_outputs.job_of(jobs_of(request), files_of(request), owner, output)
            told = await openai_outputs.described(jobs_of(request), job, output)
        return JSONResponse(told.model_dump())

    return await answer(request, TRANSPORT, work, error_response)


@router.get(
    "/files/{file_id}/content",
    summary="What is in a file, in the dialect of OpenAI",
    tags=["batches"],
    responses={
        **schema.success("The lines.", schema.files([MEDIA_TYPE])),
        **_REFUSALS,
    },
    openapi_extra={"parameters": [_FILE_ID]},
)
async def get_file_content(request: Request) -> Response:
    """Answers with an upload, or with what came of a batch, a line for each request."""

    async def work() -> Response:
        owner, file_id = caller_of(request).name, request.path_params["file_id"]
        output = openai_outputs.output_named(file_id)
        if output is None:
            file = await asyncio.to_thread(files_of(request).open, owner, file_id)
            return StreamingResponse(_pieces(file), media_type=MEDIA_TYPE)
        job = await openai_outputs.job_of(jobs_of(request), files_of(request), owner, output)
        lines = openai_outputs.content(jobs_of(request), job, output)
        return StreamingResponse(lines, media_type=MEDIA_TYPE)

    return await answer(request, TRANSPORT, work, error_response)


async def _pieces(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    with file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


@router.delete(
    "/files/{file_id}",
    summary="Delete a file, in the dialect of OpenAI",
    tags=["batches"],
    response_model=FileDeleted,
    responses={
        **schema.success("It is gone.", schema.json(FileDeleted(id=_EXAMPLE.id).model_dump())),
        **_REFUSALS,
    },
    openapi_extra={"parameters": [_FILE_ID]},
)
async def delete_file(request: Request) -> Response:
    """Removes an upload, which batches that have begun do not need any more; or what came of a batch."""

    async def work() -> Response:
        owner, file_id = caller_of(request).name, request.path_params["file_id"]
        store = files_of(request)
        output = openai_outputs.output_named(file_id)
        if output is None:
            await asyncio.to_thread(store.delete, owner, file_id)
        else:
            await openai_outputs.job_of(jobs_of(request), store, owner, output)
            await asyncio.to_thread(store.hide, owner, file_id)
        return JSONResponse(FileDeleted(id=file_id).model_dump())

    return await answer(request, TRANSPORT, work, error_response)
