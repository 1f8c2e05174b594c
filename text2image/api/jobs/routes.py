"""The routes of jobs: everything is the caller's own, and what is another's is not there."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from text2image.api import rest
from text2image.api.asgi import caller_of, gateway_of, invalid
from text2image.api.jobs import describe, events, results
from text2image.api.jobs.queries import ItemsQuery, JobsQuery, StateQuery
from text2image.api.jobs.requests import Checker, check_envelope, key_in
from text2image.api.jobs.uploads import read_submission
from text2image.core.errors import Cancelled, InvalidRequest, JobNotFound
from text2image.jobs.jobs import Jobs
from text2image.jobs.records import Job
from text2image.jobs.views import (
    PREFIX,
    DeletedView,
    ItemsView,
    JobsView,
    JobView,
    item_view,
    job_view,
)
from text2image.jobs.webhooks import Webhooks
from text2image.net.rpc import as_ours

router = APIRouter(tags=["jobs"])
# What the core's fields are called here, where it is not the same.
_NAMES = {
    **rest.NAMES,
    "items": "requests",
    "seconds": "timeout",
    "idempotency_key": "Idempotency-Key",
}
_ONE = f"{PREFIX}/{{job_id}}"
Q = TypeVar("Q", bound=BaseModel)


def _jobs(request: Request) -> Jobs:
    return cast(Jobs, request.app.state.jobs)


def _job_id(request: Request) -> str:
    """The id in the path.

    Raises:
        JobNotFound: it is none that a job could have.
    """
    job_id: str = request.path_params["job_id"]
    if not re.fullmatch(r"\w{1,100}", job_id, re.ASCII):
        raise JobNotFound(f"there is no job {job_id[:80]!r}; ids look like job_ and 24 digits")
    return job_id


async def _told(work: Callable[[str], Awaitable[Response]], request: Request) -> Response:
    """What `work` answers to the caller of this name, or its error."""
    try:
        return await work(caller_of(request).name)
    except ClientDisconnect:
        return rest.error_response(Cancelled("the client left before the request was read"))
    except InvalidRequest as error:
        return rest.error_response(error.renamed(_NAMES))
    except Exception as error:
        return rest.error_response(as_ours(error))


def _shown(view: BaseModel, status: int = 200, **headers: str) -> Response:
    return JSONResponse(view.model_dump(mode="json"), status, headers)


def _query(request: Request, kind: type[Q]) -> Q:
    """The query as a `kind`.

    Raises:
        InvalidRequest: names what is wrong.
    """
    try:
        return kind.model_validate(dict(request.query_params), strict=False)
    except pydantic.ValidationError as error:
        raise invalid(error) from None


def _number(request: Request, name: str) -> int:
    """A number in the path.

    Raises:
        JobNotFound: it is none.
    """
    text: str = request.path_params[name]
    # More digits than any database's integers have.
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise JobNotFound(f"there is no {name} {text[:20]!r}; they are counted from 0")
    return int(text)


@router.post(
    PREFIX,
    summary="Have many requests drawn in the background",
    name="create_job",
    status_code=201,
    response_model=JobView,
    responses=describe.created(),
    openapi_extra=describe.SUBMISSION,
)
async def create_job(request: Request) -> Response:
    """Answers when all requests are kept durably: the job goes on whatever ends in between.

    Up to 10,000 requests as POST /generate takes them, in JSON, or as JSON Lines with a request a line and the other
    fields in the query. A form may bring JSON Lines in its file `file`, and the other fields beside it.
    The same `Idempotency-Key` and requests give the same job.
    """

    async def work(_: str) -> Response:
        caller = caller_of(request)
        key = key_in(request.headers.get("Idempotency-Key"))
        hooks: Webhooks = request.app.state.webhooks
        async with read_submission(request, Checker(gateway_of(request))) as (envelope, items):
            check_envelope(envelope, hooks.check)
            job = await _jobs(request).submit(
                caller,
                items,
                name=envelope.name or "",
                metadata=envelope.metadata,
                idempotency_key=key,
                webhook_url=envelope.webhook_url or "",
                seconds=envelope.timeout,
                paused=bool(envelope.paused),
            )
        return _shown(job_view(job), 201, Location=f"{PREFIX}/{job.id}")

    return await _told(work, request)


@router.get(
    PREFIX,
    summary="The caller's jobs, newest first",
    name="list_jobs",
    response_model=JobsView,
    responses=describe.told("A page of jobs.", describe.JOBS, bad=True),
    openapi_extra={"parameters": describe.parameters(JobsQuery)},
)
async def list_jobs(request: Request) -> Response:
    """`after` of one page asks for the next."""

    async def work(owner: str) -> Response:
        asked = _query(request, JobsQuery)
        page = await _jobs(request).list(
            owner, after=asked.after, limit=asked.limit, kind=asked.kind
        )
        return _shown(JobsView(jobs=[job_view(job) for job in page.jobs], after=page.after))

    return await _told(work, request)


@router.get(
    _ONE,
    summary="A job as it is now",
    name="get_job",
    response_model=JobView,
    responses=describe.told("The job.", describe.JOB),
    openapi_extra={"parameters": [describe.JOB_ID]},
)
async def get_job(request: Request) -> Response:
    """Its state, its counts, and when it will end by the pace so far."""

    async def work(owner: str) -> Response:
        return _shown(job_view(await _jobs(request).get(owner, _job_id(request))))

    return await _told(work, request)


def _control(
    action: str,
    summary: str,
    explained: str,
    act: Callable[[Jobs, str, str], Awaitable[Job]],
    *,
    bad: bool = False,
) -> None:
    """A route that does something to a job and answers with it."""

    async def control(request: Request) -> Response:
        async def work(owner: str) -> Response:
            job = await act(_jobs(request), owner, _job_id(request))
            return _shown(job_view(job))

        return await _told(work, request)

    router.add_api_route(
        f"{_ONE}/{action}",
        control,
        methods=["POST"],
        name=f"{action}_job",
        summary=summary,
        description=explained,
        response_model=JobView,
        responses=describe.told("The job.", describe.JOB, bad=bad),
        openapi_extra={"parameters": [describe.JOB_ID]},
    )


_control(
    "cancel",
    "End a job at once",
    "What is at work ends within one step; finished pictures stay. Does nothing to a job that has ended.",
    Jobs.cancel,
)
_control("pause", "Begin no more of a job", "What is at work is finished.", Jobs.pause)
_control("resume", "Go on with a paused job", "Does nothing to others.", Jobs.resume)
_control(
    "retry",
    "Draw the failed requests of a job again",
    "A completed job goes on with them. A cancelled one does not.",
    Jobs.retry_failed,
    bad=True,
)
_control(
    "webhook",
    "Send the webhook of an ended job again",
    "At once, and then as often as the first time; also where it was delivered or given up.",
    Jobs.tell_again,
    bad=True,
)


@router.delete(
    _ONE,
    summary="Remove a job with its pictures",
    name="delete_job",
    response_model=DeletedView,
    responses=describe.told("It is gone.", {"id": describe.JOB["id"], "deleted": True}),
    openapi_extra={"parameters": [describe.JOB_ID]},
)
async def delete_job(request: Request) -> Response:
    """Cancels it before, if it has not ended."""

    async def work(owner: str) -> Response:
        job_id = _job_id(request)
        await _jobs(request).delete(owner, job_id)
        return _shown(DeletedView(id=job_id))

    return await _told(work, request)


@router.get(
    f"{_ONE}/items",
    summary="The requests of a job and what came of them, page by page",
    name="list_job_items",
    response_model=ItemsView,
    responses=describe.told("A page of them.", describe.ITEMS, bad=True),
    openapi_extra={"parameters": [describe.JOB_ID, *describe.parameters(ItemsQuery)]},
)
async def list_items(request: Request) -> Response:
    """In the order in which they were sent; `after` of one page asks for the next."""

    async def work(owner: str) -> Response:
        asked, job_id = _query(request, ItemsQuery), _job_id(request)
        page = await _jobs(request).items(
            owner, job_id, after=asked.after, limit=asked.limit, state=asked.state
        )
        items = [item_view(job_id, item, rest.NAMES) for item in page.items]
        return _shown(ItemsView(items=items, after=page.after))

    return await _told(work, request)


@router.get(
    f"{_ONE}/items/{{index}}/pictures/{{picture}}",
    summary="A finished picture of a job",
    name="get_job_picture",
    response_class=FileResponse,
    responses=describe.files("The picture.", "image/png"),
    openapi_extra={"parameters": [describe.JOB_ID, describe.INDEX, describe.PICTURE]},
)
async def get_picture(request: Request) -> Response:
    """The file as it was drawn."""

    async def work(owner: str) -> Response:
        index, number = _number(request, "index"), _number(request, "picture")
        job_id = _job_id(request)
        picture, path = await _jobs(request).picture(owner, job_id, index, number)
        return FileResponse(_there(path), media_type=picture.media_type)

    return await _told(work, request)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise JobNotFound("this picture was removed a moment ago")
    return path


@router.get(
    f"{_ONE}/results.jsonl",
    summary="All requests of a job and what came of them, as JSON Lines",
    name="get_job_results",
    response_class=StreamingResponse,
    responses=describe.files("A request a line.", results.JSONL, bad=True),
    openapi_extra={"parameters": [describe.JOB_ID, *describe.parameters(StateQuery)]},
)
async def get_lines(request: Request) -> Response:
    """In the order in which they were sent, as far as the job has come."""

    async def work(owner: str) -> Response:
        state, job = _query(request, StateQuery).state, await _found(request, owner)
        lines = results.lines(_jobs(request), owner, job.id, state)
        return _download(lines, results.JSONL, f"{job.id}.jsonl")

    return await _told(work, request)


@router.get(
    f"{_ONE}/results.zip",
    summary="All pictures of a job in one file",
    name="get_job_zip",
    response_class=StreamingResponse,
    responses=describe.files("The pictures, and results.jsonl.", results.ZIP),
    openapi_extra={"parameters": [describe.JOB_ID]},
)
async def get_zip(request: Request) -> Response:
    """Named in the order of the requests, as far as the job has come; results.jsonl in it tells which is which."""

    async def work(owner: str) -> Response:
        job = await _found(request, owner)
        return _download(
            results.zipped(_jobs(request), owner, job.id), results.ZIP, f"{job.id}.zip"
        )

    return await _told(work, request)


async def _found(request: Request, owner: str) -> Job:
    return await _jobs(request).get(owner, _job_id(request))


def _download(content: Any, kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(content, media_type=kind, headers=headers)


@router.get(
    f"{_ONE}/events",
    summary="Watch a job",
    name="watch_job",
    response_class=StreamingResponse,
    responses=describe.watched(),
    openapi_extra={"parameters": [describe.JOB_ID]},
)
async def watch(request: Request) -> Response:
    """Server-sent events `job`, each with all of the job, a few a second at most; the last is the job as it ended."""

    async def work(owner: str) -> Response:
        job = await _found(request, owner)
        lines = events.lines(gateway_of(request), _jobs(request).watch(owner, job.id))
        return StreamingResponse(
            lines, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    return await _told(work, request)
