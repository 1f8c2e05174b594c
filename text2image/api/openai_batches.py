"""OpenAI's batches, `/v1/batches`: a file of requests that are drawn in the background, as a job of its own kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import islice
from typing import BinaryIO, cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from text2image.api import schema
from text2image.api.asgi import answer, caller_of, gateway_of, read_json
from text2image.api.openai import TRANSPORT, error_response
from text2image.api.openai_batch_lines import errors_in, item_of, lines_of
from text2image.api.openai_batch_messages import (
    BATCHES_PAGE,
    MAX_BATCHES_PAGE,
    WINDOW,
    WINDOW_SECONDS,
    Batch,
    BatchError,
    BatchErrors,
    BatchList,
    CreateBatchRequest,
    RequestCounts,
)
from text2image.api.openai_outputs import (
    ERRORS,
    KIND,
    OUTPUT,
    batch_id_of,
    job_id_of,
    outputs_of,
)
from text2image.api.openai_requests import Named
from text2image.api.openai_responses import ErrorEnvelope, error_body
from text2image.core.errors import (
    FieldViolation,
    FileNotFound,
    InvalidRequest,
    JobNotFound,
)
from text2image.jobs.files import FileStore
from text2image.jobs.jobs import MAX_ITEMS, Jobs
from text2image.jobs.records import Job, JobState, NewItem

IDEMPOTENCY_HEADER = "Idempotency-Key"
router = APIRouter(prefix="/v1")
# Lines that are read at once, in a thread.
_CHUNK = 64
# Seconds by which a deadline and the clock may differ.
_CLOCKS_APART = 5.0

_EXAMPLE = Batch(
    id="batch_0f3a9c1b7d60e5f1a2b3c4d5",
    endpoint="/v1/images/generations",
    input_file_id="file-5d1c0e9f8a7b6c5d4e3f2a1b",
    status="in_progress",
    created_at=1767225600,
    in_progress_at=1767225601,
    expires_at=1767312000,
    request_counts=RequestCounts(total=100, completed=42, failed=0),
    metadata={"made_by": "the nightly run"},
)
_NOT_FOUND = JobNotFound("there is no batch 'batch_0f3a9c1b7d60e5f1a2b3c4d5' of yours")
_REFUSALS = schema.refusals((*schema.READING, _NOT_FOUND), ErrorEnvelope, error_body)
_BATCH_ID = {
    "name": "batch_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "example": _EXAMPLE.id,
}


def after_parameter(example: str) -> dict[str, object]:
    """The description of where a page begins."""
    return {
        "name": "after",
        "in": "query",
        "description": "The id of the last one of the page before.",
        "schema": {"type": "string"},
        "example": example,
    }


def choice_parameter(name: str, description: str, choices: Sequence[str]) -> dict[str, object]:
    """The description of one of several words, of which the first is the default."""
    schema = {"type": "string", "enum": [*choices], "default": choices[0]}
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": schema,
        "example": choices[0],
    }


def limit_parameter(most: int, default: int) -> dict[str, object]:
    """The description of how many a page has."""
    return {
        "name": "limit",
        "in": "query",
        "description": "How many a page has at most.",
        "schema": {"type": "integer", "minimum": 1, "maximum": most, "default": default},
        "example": default,
    }


def jobs_of(request: Request) -> Jobs:
    return cast(Jobs, request.app.state.jobs)


def files_of(request: Request) -> FileStore:
    """The uploads.

    Raises:
        JobNotFound: none are taken, and neither are jobs.
    """
    files = cast(FileStore | None, request.app.state.files)
    if files is None:
        raise JobNotFound("this server takes no files and no batches; T2I_JOBS=1 has it take them")
    return files


def limit_of(request: Request, most: int, default: int) -> int:
    """How many a client wants of a list.

    Raises:
        InvalidRequest: that is no number, or none that is given.
    """
    named = request.query_params.get("limit")
    if named is None:
        return default
    if not (named.isascii() and named.isdecimal() and 1 <= int(named[:9]) <= most):
        raise InvalidRequest(
            FieldViolation("limit", f"is {named[:20]!r}; it must be between 1 and {most}")
        )
    return int(named)


def choice_of(request: Request, name: str, choices: Sequence[str]) -> str:
    """One of several words, the first if none is named.

    Raises:
        InvalidRequest: it is another one.
    """
    named = request.query_params.get(name, choices[0])
    if named not in choices:
        reason = f"is {named[:80]!r}; it must be one of {', '.join(choices)}"
        raise InvalidRequest(FieldViolation(name, reason))
    return named


def batch_of(job: Job) -> Batch:
    """A job as a batch."""
    errors = [BatchError(**each) for each in job.extra.get("errors", ())]
    ended = None if job.ended_at is None else int(job.ended_at)
    status = _status(job, failed=bool(errors))
    names = {file.kind: file.id for file in outputs_of(job)}
    counts = job.counts
    return Batch(
        id=batch_id_of(job.id),
        endpoint=str(job.extra.get("endpoint", "")),
        errors=BatchErrors(data=errors) if errors else None,
        input_file_id=str(job.extra.get("input_file_id", "")),
        completion_window=WINDOW,
        status=status,
        output_file_id=names.get(OUTPUT),
        error_file_id=names.get(ERRORS),
        created_at=int(job.created_at),
        # The file was read before the answer, and there is nothing left to be validated.
        in_progress_at=None if errors else int(job.created_at),
        expires_at=int(job.deadline_at or job.created_at + WINDOW_SECONDS),
        finalizing_at=ended if status in ("completed", "expired") else None,
        completed_at=ended if status == "completed" else None,
        failed_at=ended if status == "failed" else None,
        expired_at=ended if status == "expired" else None,
        cancelling_at=ended if status == "cancelled" else None,
        cancelled_at=ended if status == "cancelled" else None,
        request_counts=RequestCounts(total=0, completed=0, failed=0)
        if errors
        else RequestCounts(total=counts.total, completed=counts.succeeded, failed=counts.failed),
        metadata=dict(job.metadata) or None,
    )


def _status(job: Job, *, failed: bool) -> str:
    if failed:
        return "failed"
    if job.state is JobState.CANCELLED:
        return "cancelled"
    if job.state is JobState.COMPLETED:
        late = (job.ended_at or 0.0) - job.created_at >= WINDOW_SECONDS - _CLOCKS_APART
        return "expired" if late and job.counts.failed else "completed"
    return "in_progress"


@router.post(
    "/batches",
    summary="Draw a file of requests in the background, in the dialect of OpenAI",
    tags=["batches"],
    response_model=Batch,
    responses={
        **schema.success(
            "The batch, which has failed if the file cannot be read.",
            schema.json(_EXAMPLE.model_dump()),
        ),
        **schema.refusals(schema.DRAWING, ErrorEnvelope, error_body),
    },
    openapi_extra={
        "requestBody": schema.body_of(
            CreateBatchRequest,
            {
                "input_file_id": _EXAMPLE.input_file_id,
                "endpoint": _EXAMPLE.endpoint,
                "completion_window": WINDOW,
            },
        )
    },
)
async def create_batch(request: Request) -> Response:
    """Takes in a batch, which is durable from the moment of the answer. Others' requests go before its own."""

    async def work() -> Response:
        caller = caller_of(request)
        body = await read_json(request, CreateBatchRequest)
        with await _input(files_of(request), caller.name, body.input_file_id) as file:
            errors = await asyncio.to_thread(errors_in, file, body.endpoint, MAX_ITEMS)
            named = gateway_of(request).runners.named
            key = request.headers.get(IDEMPOTENCY_HEADER, "")
            job = await jobs_of(request).submit(
                caller,
                _failed(errors) if errors else _items(file, named),
                kind=KIND,
                metadata=body.metadata,
                extra={
                    "endpoint": body.endpoint,
                    "input_file_id": body.input_file_id,
                    "errors": [error.model_dump() for error in errors],
                },
                idempotency_key=f"{KIND} {key}" if key else "",
                seconds=WINDOW_SECONDS,
            )
        return JSONResponse(batch_of(job).model_dump())

    return await answer(request, TRANSPORT, work, error_response)


async def _input(files: FileStore, owner: str, file_id: str) -> BinaryIO:
    try:
        return await asyncio.to_thread(files.open, owner, file_id)
    except FileNotFound as error:
        reason = f"is no file to begin from: {error.message}"
        raise InvalidRequest(FieldViolation("input_file_id", reason)) from None


def _failed(errors: Sequence[BatchError]) -> list[NewItem]:
    """What stands for a file that cannot be read, since no job is empty."""
    return [NewItem(params=InvalidRequest(FieldViolation("input_file_id", errors[0].message)))]


async def _items(file: BinaryIO, named: Named) -> AsyncGenerator[NewItem, None]:
    file.seek(0)
    lines = lines_of(file)

    def some() -> list[NewItem]:
        return [item_of(text, named) for _, text in islice(lines, _CHUNK)]

    while items := await asyncio.to_thread(some):
        for item in items:
            yield item


@router.get(
    "/batches",
    summary="The caller's batches, in the dialect of OpenAI",
    tags=["batches"],
    response_model=BatchList,
    responses={
        **schema.success(
            "Batches, newest first.",
            schema.json(BatchList(data=[_EXAMPLE], has_more=False).model_dump()),
        ),
        **schema.refusals(
            (InvalidRequest(FieldViolation("limit", "is 0")), *schema.READING),
            ErrorEnvelope,
            error_body,
        ),
    },
    openapi_extra={
        "parameters": [
            after_parameter(_EXAMPLE.id),
            limit_parameter(MAX_BATCHES_PAGE, BATCHES_PAGE),
        ]
    },
)
async def list_batches(request: Request) -> Response:
    """Lists the caller's batches, a page at a time."""

    async def work() -> Response:
        owner = caller_of(request).name
        limit = limit_of(request, MAX_BATCHES_PAGE, BATCHES_PAGE)
        after = request.query_params.get("after", "")
        page = await jobs_of(request).list(
            owner, after=job_id_of(after) if after else "", limit=limit, kind=KIND
        )
        batches = [batch_of(job) for job in page.jobs]
        told = BatchList(
            data=batches,
            first_id=batches[0].id if batches else None,
            last_id=batches[-1].id if batches else None,
            has_more=page.after is not None,
        )
        return JSONResponse(told.model_dump())

    return await answer(request, TRANSPORT, work, error_response)


async def _own(request: Request) -> Job:
    """The batch that a path names.

    Raises:
        JobNotFound: there is none of the caller's.
    """
    batch_id = request.path_params["batch_id"]
    missing = JobNotFound(f"there is no batch {batch_id[:80]!r} of yours")
    try:
        job = await jobs_of(request).get(caller_of(request).name, job_id_of(batch_id))
    except JobNotFound:
        raise missing from None
    if job.kind != KIND or batch_id_of(job.id) != batch_id:
        raise missing
    return job


@router.get(
    "/batches/{batch_id}",
    summary="A batch, in the dialect of OpenAI",
    tags=["batches"],
    response_model=Batch,
    responses={
        **schema.success("The batch.", schema.json(_EXAMPLE.model_dump())),
        **_REFUSALS,
    },
    openapi_extra={"parameters": [_BATCH_ID]},
)
async def get_batch(request: Request) -> Response:
    """Tells how far a batch is."""

    async def work() -> Response:
        return JSONResponse(batch_of(await _own(request)).model_dump())

    return await answer(request, TRANSPORT, work, error_response)


@router.post(
    "/batches/{batch_id}/cancel",
    summary="Cancel a batch, in the dialect of OpenAI",
    tags=["batches"],
    response_model=Batch,
    responses={
        **schema.success("The batch.", schema.json(_EXAMPLE.model_dump())),
        **_REFUSALS,
    },
    openapi_extra={"parameters": [_BATCH_ID]},
)
async def cancel_batch(request: Request) -> Response:
    """Ends a batch within one step; what is drawn by then is in its output file. Does nothing to one that has ended."""

    async def work() -> Response:
        job = await _own(request)
        cancelled = await jobs_of(request).cancel(job.owner, job.id)
        return JSONResponse(batch_of(cancelled).model_dump())

    return await answer(request, TRANSPORT, work, error_response)
