"""Jobs as a client has them: `Client.jobs`, and `AsyncClient.jobs` for asyncio.

job = client.jobs.submit([{"prompt": "a red fox", "seed": 1}], name="foxes")
for job in client.jobs.watch(job.id):
    print(job.counts.ended, "of", job.counts.total)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import grpc

from text2image.jobs import wire
from text2image.jobs.records import Item, ItemPage, ItemState, Job, JobPage
from text2image.net.calls import error_of, request_of
from text2image.v1 import jobs_pb2 as pb

# Seconds that an answer may take which a server has at hand.
PATIENCE = 10.0
# Requests in a message are at most so many and of about so many bytes, unless one is larger alone.
_MESSAGE_REQUESTS, _MESSAGE_BYTES = 500, 256 << 10

# Fields of a request by their names, as `Client.generate` takes them, its `prompt` and a `custom_id` among them.
Fields = Mapping[str, Any]
_Answer = TypeVar("_Answer")


class JobsClient:
    """The caller's jobs on a server. Failures are raised as `Text2ImageError`; `timeout` is in seconds."""

    def __init__(self, channel: grpc.Channel, metadata: Any, address: str) -> None:
        self._stub = wire.stub(channel)
        self._metadata = metadata
        self._address = address

    def submit(
        self, requests: Iterable[Fields], *, timeout: float | None = None, **options: Any
    ) -> Job:
        """Hands over requests, read as they are sent; from the moment that this returns the server loses none.

        Args:
            options: of the job: name, metadata, idempotency_key (the caller's job with it and the same requests is
                returned in its place), seconds (after which what is not drawn fails), paused.

        Raises:
            Text2ImageError: it was not taken; nothing is left of it.
            OSError, ValueError: a request names a file that cannot be read, or what is no field.
        """
        sent = _Sent(requests, options)
        return self._ask("UploadJob", iter(sent), _job, timeout, sent)

    def get(self, job_id: str, *, timeout: float | None = PATIENCE) -> Job:
        return self._ask("GetJob", pb.GetJobRequest(job_id=job_id), _job, timeout)

    def list(
        self, *, after: str = "", limit: int = 20, timeout: float | None = PATIENCE
    ) -> JobPage:
        """The caller's jobs, newest first; `after` is that of the page before."""
        request = pb.ListJobsRequest(after=after, limit=limit)
        return self._ask("ListJobs", request, wire.jobs_from, timeout)

    def watch(self, job_id: str, *, timeout: float | None = None) -> Generator[Job, None, None]:
        """Yields a job now and as it changes, and last as it ended; closing the generator ends the call alone."""
        request = pb.WatchJobRequest(job_id=job_id)
        call = self._stub.WatchJob(request, timeout=timeout, metadata=self._metadata)
        try:
            for message in call:
                yield wire.job_from(message.job)
        except grpc.RpcError as error:
            raise error_of(error, self._address) from error
        finally:
            call.cancel()

    def cancel(self, job_id: str, *, timeout: float | None = PATIENCE) -> Job:
        return self._ask("CancelJob", pb.CancelJobRequest(job_id=job_id), _job, timeout)

    def pause(self, job_id: str, *, timeout: float | None = PATIENCE) -> Job:
        return self._ask("PauseJob", pb.PauseJobRequest(job_id=job_id), _job, timeout)

    def resume(self, job_id: str, *, timeout: float | None = PATIENCE) -> Job:
        return self._ask("ResumeJob", pb.ResumeJobRequest(job_id=job_id), _job, timeout)

    def retry(self, job_id: str, *, timeout: float | None = PATIENCE) -> Job:
        """Has the failed requests drawn again."""
        return self._ask("RetryJob", pb.RetryJobRequest(job_id=job_id), _job, timeout)

    def delete(self, job_id: str, *, timeout: float | None = PATIENCE) -> None:
        self._ask("DeleteJob", pb.DeleteJobRequest(job_id=job_id), lambda _: None, timeout)

    def results(
        self,
        job_id: str,
        *,
        after: int = -1,
        limit: int = 100,
        state: ItemState | None = None,
        timeout: float | None = PATIENCE,
    ) -> ItemPage:
        """Requests of a job in their order, those behind the index `after`, in one state if that is named."""
        request = _results_request(job_id, after, limit, state)
        return self._ask("ListResults", request, wire.items_from, timeout)

    def all_results(self, job_id: str, *, state: ItemState | None = None) -> Iterator[Item]:
        """The same, page by page."""
        after: int | None = -1
        while after is not None:
            page = self.results(job_id, after=after, state=state)
            yield from page.items
            after = page.after

    def picture(
        self, job_id: str, index: int, picture: int = 0, *, timeout: float | None = PATIENCE
    ) -> bytes:
        """The file of a finished picture."""
        request = pb.GetPictureRequest(job_id=job_id, index=index, picture=picture)
        return self._ask("GetPicture", request, lambda answer: bytes(answer.content), timeout)

    def _ask(
        self,
        method: str,
        request: Any,
        read: Callable[[Any], _Answer],
        timeout: float | None,
        sent: _Sent | None = None,
    ) -> _Answer:
        try:
            answer = getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise (sent and sent.error) or error_of(error, self._address) from error
        return read(answer)


class AsyncJobsClient:
    """The same for asyncio."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Any, address: str) -> None:
        self._stub = wire.stub(channel)
        self._metadata = metadata
        self._address = address

    async def submit(
        self,
        requests: Iterable[Fields],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - grpc keeps it
        **options: Any,
    ) -> Job:
        """Hands over requests, with the `options` of `JobsClient.submit`."""
        sent = _Sent(requests, options)
        return await self._ask("UploadJob", iter(sent), _job, timeout, sent)

    async def get(self, job_id: str) -> Job:
        return await self._ask("GetJob", pb.GetJobRequest(job_id=job_id), _job)

    async def list(self, *, after: str = "", limit: int = 20) -> JobPage:
        """The caller's jobs, newest first; `after` is that of the page before."""
        request = pb.ListJobsRequest(after=after, limit=limit)
        return await self._ask("ListJobs", request, wire.jobs_from)

    async def watch(self, job_id: str) -> AsyncGenerator[Job, None]:
        """Yields a job now and as it changes, and last as it ended; closing the generator ends the call alone."""
        call = self._stub.WatchJob(pb.WatchJobRequest(job_id=job_id), metadata=self._metadata)
        try:
            async for message in call:
                yield wire.job_from(message.job)
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self._address) from error
        finally:
            call.cancel()

    async def cancel(self, job_id: str) -> Job:
        return await self._ask("CancelJob", pb.CancelJobRequest(job_id=job_id), _job)

    async def pause(self, job_id: str) -> Job:
        return await self._ask("PauseJob", pb.PauseJobRequest(job_id=job_id), _job)

    async def resume(self, job_id: str) -> Job:
        return await self._ask("ResumeJob", pb.ResumeJobRequest(job_id=job_id), _job)

    async def retry(self, job_id: str) -> Job:
        """Has the failed requests drawn again."""
        return await self._ask("RetryJob", pb.RetryJobRequest(job_id=job_id), _job)

    async def delete(self, job_id: str) -> None:
        await self._ask("DeleteJob", pb.DeleteJobRequest(job_id=job_id), lambda _: None)

    async def results(
        self, job_id: str, *, after: int = -1, limit: int = 100, state: ItemState | None = None
    ) -> ItemPage:
        """Requests of a job in their order, those behind the index `after`, in one state if that is named."""
        request = _results_request(job_id, after, limit, state)
        return await self._ask("ListResults", request, wire.items_from)

    async def picture(self, job_id: str, index: int, picture: int = 0) -> bytes:
        """The file of a finished picture."""
        request = pb.GetPictureRequest(job_id=job_id, index=index, picture=picture)
        return await self._ask("GetPicture", request, lambda answer: bytes(answer.content))

    async def _ask(
        self,
        method: str,
        request: Any,
        read: Callable[[Any], _Answer],
        timeout: float | None = PATIENCE,  # noqa: ASYNC109 - grpc keeps it
        sent: _Sent | None = None,
    ) -> _Answer:
        call = getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata)
        try:
            return read(await call)
        except asyncio.CancelledError:
            # So grpc tells of what went wrong while messages were made, too.
            if sent is None or sent.error is None:
                raise
            raise sent.error from None
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self._address) from error


class _Sent:
    """The messages that a job is uploaded in; what goes wrong while they are made is kept, since grpc hides it."""

    def __init__(self, requests: Iterable[Fields], options: Mapping[str, Any]) -> None:
        self._requests = requests
        self._message = pb.UploadJobRequest(job=pb.NewJob(**options))
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[pb.UploadJobRequest]:
        try:
            yield from self._messages()
        except Exception as error:
            self.error = error
            raise

    def _messages(self) -> Iterator[pb.UploadJobRequest]:
        message, size = self._message, 0
        for fields in self._requests:
            request = _job_request(fields)
            added = request.ByteSize()
            full = len(message.requests) == _MESSAGE_REQUESTS or size + added > _MESSAGE_BYTES
            if message.requests and full:
                yield message
                message, size = pb.UploadJobRequest(), 0
            message.requests.append(request)
            size += added
        yield message


def _job_request(fields: Fields) -> pb.JobRequest:
    others = {name: value for name, value in fields.items() if name not in ("prompt", "custom_id")}
    request = request_of(fields.get("prompt", ""), 0, 0, others)
    return pb.JobRequest(request=request, custom_id=fields.get("custom_id", ""))


def _results_request(
    job_id: str, after: int, limit: int, state: ItemState | None
) -> pb.ListResultsRequest:
    return pb.ListResultsRequest(
        job_id=job_id,
        after=after,
        limit=limit,
        state=wire.item_state_to(state) if state else None,
    )


def _job(answer: Any) -> Job:
    return wire.job_from(answer.job)
