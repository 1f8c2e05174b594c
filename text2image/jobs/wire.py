"""Between the nouns of jobs and the messages of gRPC v1, in both directions."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from text2image.core.errors import FieldViolation
from text2image.jobs.records import (
    Counts,
    Item,
    ItemError,
    ItemPage,
    ItemState,
    Job,
    JobPage,
    JobState,
    NewItem,
    PictureFile,
)
from text2image.net import wire
from text2image.v1 import jobs_pb2 as pb
from text2image.v1.jobs_pb2_grpc import JobsStub

_TIMES = ("created_at", "started_at", "ended_at", "deadline_at", "predicted_end", "expires_at")
_COUNTS = ("queued", "running", "succeeded", "failed", "cancelled")
_MICROSECONDS = 1e6


def stub(channel: Any) -> Any:
    """The methods for jobs on a channel, blocking ones or asyncio's as the channel is."""
    return JobsStub(channel)  # type: ignore[no-untyped-call]


def job_to(job: Job) -> pb.Job:
    return pb.Job(
        id=job.id,
        name=job.name,
        state=f"JOB_STATE_{job.state.name}",
        counts=pb.JobCounts(**{name: getattr(job.counts, name) for name in _COUNTS}),
        **{name: _timestamp(getattr(job, name)) for name in _TIMES},
        waiting_for=job.waiting_for,
        warning=job.warning,
        bytes=job.bytes,
        metadata=dict(job.metadata),
    )


def job_from(message: pb.Job) -> Job:
    """A job as its owner is told of it, who needs not be told who that is."""
    times: dict[str, Any] = {name: _seconds(message, name) for name in _TIMES}
    created_at = times.pop("created_at")
    return Job(
        id=message.id,
        owner="",
        name=message.name,
        state=_job_state_from(message.state),
        counts=Counts(**{name: getattr(message.counts, name) for name in _COUNTS}),
        created_at=created_at or 0.0,
        **times,
        waiting_for=message.waiting_for,
        warning=message.warning,
        bytes=message.bytes,
        metadata=dict(message.metadata),
    )


def _job_state_from(number: int) -> JobState:
    """The state of this number; one that only later versions know has not ended."""
    known = pb.JobState.DESCRIPTOR.values_by_number.get(number)
    return (
        JobState(known.name.removeprefix("JOB_STATE_").lower())
        if known and number
        else JobState.RUNNING
    )


def jobs_from(message: pb.ListJobsResponse) -> JobPage:
    return JobPage(tuple(map(job_from, message.jobs)), message.after or None)


def new_item_from(message: pb.JobRequest) -> NewItem:
    return NewItem(params=wire.params_from(message.request), custom_id=message.custom_id)


def item_to(item: Item) -> pb.JobItem:
    return pb.JobItem(
        index=item.index,
        custom_id=item.custom_id,
        request=wire.params_to(item.params) if item.params else None,
        state=item_state_to(item.state),
        pictures=map(picture_to, item.pictures),
        error=_error_to(item.error) if item.error else None,
        message=item.message,
        attempts=item.attempts,
        finished_at=_timestamp(item.finished_at),
    )


def item_from(message: pb.JobItem) -> Item:
    return Item(
        index=message.index,
        custom_id=message.custom_id,
        params=wire.params_from(message.request) if message.HasField("request") else None,
        state=item_state_from(message.state) or ItemState.RUNNING,
        pictures=tuple(map(_picture_from, message.pictures)),
        error=_error_from(message.error) if message.HasField("error") else None,
        message=message.message,
        attempts=message.attempts,
        finished_at=_seconds(message, "finished_at"),
    )


def items_from(message: pb.ListResultsResponse) -> ItemPage:
    after = message.after if message.HasField("after") else None
    return ItemPage(tuple(map(item_from, message.items)), after)


def item_state_to(state: ItemState) -> str:
    """The name of the state, by which a message takes it."""
    return f"JOB_ITEM_STATE_{state.name}"


def item_state_from(number: int) -> ItemState | None:
    """The state of this number; None for none, and for one that this version does not know."""
    known = pb.JobItemState.DESCRIPTOR.values_by_number.get(number)
    return (
        ItemState(known.name.removeprefix("JOB_ITEM_STATE_").lower()) if known and number else None
    )


def picture_to(picture: PictureFile) -> pb.JobPicture:
    return pb.JobPicture(
        index=picture.index,
        media_type=picture.media_type,
        size=picture.size,
        seed=picture.seed,
        width=picture.width,
        height=picture.height,
    )


def _picture_from(message: pb.JobPicture) -> PictureFile:
    """What a client is told of a picture; the name that the server keeps it under is not part of that."""
    return PictureFile(
        index=message.index,
        name="",
        media_type=message.media_type,
        size=message.size,
        seed=message.seed,
        width=message.width,
        height=message.height,
    )


def _error_to(error: ItemError) -> pb.JobError:
    return pb.JobError(
        code=error.code,
        message=error.message,
        http_status=error.http_status,
        violations=[pb.JobViolation(field=v.field, reason=v.reason) for v in error.violations],
    )


def _error_from(message: pb.JobError) -> ItemError:
    return ItemError(
        code=message.code,
        message=message.message,
        http_status=message.http_status,
        violations=tuple(FieldViolation(v.field, v.reason) for v in message.violations),
    )


def _timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    timestamp = Timestamp()
    timestamp.FromMicroseconds(round(seconds * _MICROSECONDS))
    return timestamp


def _seconds(message: pb.Job | pb.JobItem, name: Any) -> float | None:
    if not message.HasField(name):
        return None
    timestamp: Timestamp = getattr(message, name)
    return timestamp.ToMicroseconds() / _MICROSECONDS
