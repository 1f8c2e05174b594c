"""gRPC v1, `text2image.v1.Jobs`: what `ImageGeneration` draws at once, in the background."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from text2image.api.v1_grpc import credentials_of, trace
from text2image.core.errors import FieldViolation, InvalidRequest, JobNotFound
from text2image.gateway.auth import Caller
from text2image.gateway.generate import Gateway
from text2image.jobs import wire
from text2image.jobs.jobs import Jobs
from text2image.jobs.records import Job, NewItem
from text2image.net.rpc import Context, Handler, Malformed, abort, checked
from text2image.v1 import jobs_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Jobs"]
# Where a request names no limit.
_JOBS, _ITEMS = 20, 100

# What is asked of a job by its id and answered with the job as it is then.
_Asked = Callable[[str, str], Awaitable[Job]]


class JobsService:
    """The servicer. Every method asks first who is calling, and acts for that caller alone."""

    def __init__(self, gateway: Gateway, jobs: Jobs, *, over_http: bool = False) -> None:
        """`over_http` as `ImageGeneration` has it."""
        self._gateway = gateway
        self._jobs = jobs
        self._over_http = over_http

    @property
    def methods(self) -> dict[str, Handler]:
        return {
            "SubmitJob": self.submit_job,
            "UploadJob": self.upload_job,
            "GetJob": self._of_one(self._jobs.get, pb.GetJobResponse),
            "ListJobs": self.list_jobs,
            "WatchJob": self.watch_job,
            "CancelJob": self._of_one(self._jobs.cancel, pb.CancelJobResponse),
            "PauseJob": self._of_one(self._jobs.pause, pb.PauseJobResponse),
            "ResumeJob": self._of_one(self._jobs.resume, pb.ResumeJobResponse),
            "RetryJob": self._of_one(self._jobs.retry_failed, pb.RetryJobResponse),
            "DeleteJob": self.delete_job,
            "ListResults": self.list_results,
            "GetPicture": self.get_picture,
        }

    async def submit_job(
        self, request: pb.SubmitJobRequest | Malformed, context: Context
    ) -> pb.SubmitJobResponse:
        try:
            caller = await self._begin(context)
            message = checked(request)
            items = map(wire.new_item_from, message.requests)
            job = await self._jobs.submit(caller, items, **_options_in(message.job))
            return pb.SubmitJobResponse(job=wire.job_to(job))
        except Exception as error:
            await abort(context, error)

    async def upload_job(
        self, requests: AsyncIterator[pb.UploadJobRequest | Malformed], context: Context
    ) -> pb.UploadJobResponse:
        try:
            caller = await self._begin(context)
            first = checked(await anext(requests, pb.UploadJobRequest()))
            async with aclosing(_items_in(first, requests)) as items:
                job = await self._jobs.submit(caller, items, **_options_in(first.job))
            return pb.UploadJobResponse(job=wire.job_to(job))
        except Exception as error:
            await abort(context, error)

    async def list_jobs(
        self, request: pb.ListJobsRequest | Malformed, context: Context
    ) -> pb.ListJobsResponse:
        try:
            caller = await self._begin(context)
            message = checked(request)
            page = await self._jobs.list(
                caller.name, after=message.after, limit=message.limit or _JOBS
            )
            return pb.ListJobsResponse(jobs=map(wire.job_to, page.jobs), after=page.after or "")
        except Exception as error:
            await abort(context, error)

    async def watch_job(
        self, request: pb.WatchJobRequest | Malformed, context: Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        try:
            caller = await self._begin(context)
            async with aclosing(self._jobs.watch(caller.name, checked(request).job_id)) as states:
                async for job in states:
                    yield pb.WatchJobResponse(job=wire.job_to(job))
        except Exception as error:
            await abort(context, error)

    async def delete_job(
        self, request: pb.DeleteJobRequest | Malformed, context: Context
    ) -> pb.DeleteJobResponse:
        try:
            caller = await self._begin(context)
            await self._jobs.delete(caller.name, checked(request).job_id)
            return pb.DeleteJobResponse()
        except Exception as error:
            await abort(context, error)

    async def list_results(
        self, request: pb.ListResultsRequest | Malformed, context: Context
    ) -> pb.ListResultsResponse:
        try:
            caller = await self._begin(context)
            message = checked(request)
            state = wire.item_state_from(message.state)
            if message.state and state is None:
                reason = f"is {message.state}, which is no state of a request"
                raise InvalidRequest(FieldViolation("state", reason))
            page = await self._jobs.items(
                caller.name,
                message.job_id,
                after=message.after if message.HasField("after") else -1,
                limit=message.limit or _ITEMS,
                state=state,
            )
            return pb.ListResultsResponse(items=map(wire.item_to, page.items), after=page.after)
        except Exception as error:
            await abort(context, error)

    async def get_picture(
        self, request: pb.GetPictureRequest | Malformed, context: Context
    ) -> pb.GetPictureResponse:
        try:
            caller = await self._begin(context)
            message = checked(request)
            picture, path = await self._jobs.picture(
                caller.name, message.job_id, message.index, message.picture
            )
            try:
                content = await asyncio.to_thread(path.read_bytes)
            except FileNotFoundError:
                # Removed since.
                raise JobNotFound(f"this picture of {message.job_id[:80]!r} is gone") from None
            return pb.GetPictureResponse(picture=wire.picture_to(picture), content=content)
        except Exception as error:
            await abort(context, error)

    def _of_one(self, ask: _Asked, answer: Callable[..., Any]) -> Handler:
        """A method that names a job and answers with it."""

        async def handle(request: Any, context: Context) -> Any:
            try:
                caller = await self._begin(context)
                job = await ask(caller.name, checked(request).job_id)
                return answer(job=wire.job_to(job))
            except Exception as error:
                await abort(context, error)

        return handle

    async def _begin(self, context: Context) -> Caller:
        """Who asks for their jobs.

        Raises:
            Unauthenticated, PermissionDenied: as `Gateway.authenticate` has it.
        """
        if not self._over_http:
            await trace(context)
        return self._gateway.authenticate(credentials_of(context))


def _options_in(job: pb.NewJob) -> dict[str, Any]:
    """What a job is submitted with.

    Raises:
        InvalidRequest: it is to be drawn within no time.
    """
    if job.HasField("seconds") and not 0 < job.seconds < math.inf:
        reason = f"is {job.seconds}; it must be a number of seconds above 0"
        raise InvalidRequest(FieldViolation("job.seconds", reason))
    return {
        "name": job.name,
        "metadata": dict(job.metadata),
        "idempotency_key": job.idempotency_key,
        "seconds": job.seconds if job.HasField("seconds") else None,
        "paused": job.paused,
    }


async def _items_in(
    first: pb.UploadJobRequest, rest: AsyncIterator[pb.UploadJobRequest | Malformed]
) -> AsyncGenerator[NewItem, None]:
    """The requests of all messages.

    Raises:
        Text2ImageError: a message cannot be read, or is a later one with a job in it.
    """
    for request in first.requests:
        yield wire.new_item_from(request)
    async for later in rest:
        message = checked(later)
        if message.HasField("job"):
            raise InvalidRequest(FieldViolation("job", "belongs into the first message alone"))
        for request in message.requests:
            yield wire.new_item_from(request)
