"""Jobs and what comes of them as HTTP and webhooks tell of them: JSON, with times as in RFC 3339."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from text2image.core.messages import RequestParams
from text2image.jobs.records import Item, ItemState, Job, JobState, PictureFile, WebhookState

PREFIX = "/v1/jobs"
# Fields of a request that are shown in other words, or are files.
_OWN = ("prompt", "image", "mask", "loras", "controls")


class CountsView(BaseModel):
    """Requests of a job by their state."""

    total: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int


class WebhookView(BaseModel):
    """Whom the end is told, and how far that has come: `dead` is given up on, for the reason in `error`."""

    url: str
    state: WebhookState
    attempts: int
    error: str


class JobView(BaseModel):
    """A job as it is now."""

    id: str = Field(examples=["job_5f0c1e2b9a7d4c3f8e6b0a1d"])
    name: str
    kind: str = Field(description="What made it: `native`, or another dialect.")
    state: JobState
    counts: CountsView
    created_at: str
    started_at: str | None
    ended_at: str | None
    deadline_at: str | None = Field(description="When what is not drawn yet fails.")
    predicted_end: str | None = Field(description="By the pace so far.")
    expires_at: str | None = Field(description="When it is removed with its pictures.")
    waiting_for: str = Field(description="Why it does not go on by itself; empty if it does.")
    warning: str
    bytes: int = Field(description="Size of its pictures.")
    metadata: dict[str, str]
    webhook: WebhookView | None


class PictureView(BaseModel):
    """A finished picture; `url` is where it lies on this server."""

    index: int
    seed: int
    width: int
    height: int
    media_type: str
    bytes: int
    url: str
    file: str = Field(description="Its name in results.zip.")


class ViolationView(BaseModel):
    """A bad field and what is wrong with it."""

    field: str
    reason: str


class ItemErrorView(BaseModel):
    """Why there is no picture: what POST /generate would have answered."""

    status_code: int
    reason: str
    message: str
    violations: list[ViolationView]


class ItemView(BaseModel):
    """One request of a job, and what came of it; `index` is its place among them, from 0."""

    index: int
    custom_id: str
    state: ItemState
    request: dict[str, Any] | None = Field(description="What was asked for, less its pictures.")
    pictures: list[PictureView]
    error: ItemErrorView | None
    message: str
    attempts: int
    finished_at: str | None


class JobsView(BaseModel):
    """A page of jobs, newest first; `after` asks for the next, and is null on the last."""

    jobs: list[JobView]
    after: str | None


class ItemsView(BaseModel):
    """A page of requests in their order; `after` asks for the next, and is null on the last."""

    items: list[ItemView]
    after: int | None


class DeletedView(BaseModel):
    """A job that is gone."""

    id: str
    deleted: bool = True


def job_view(job: Job) -> JobView:
    counts = job.counts
    return JobView(
        id=job.id,
        name=job.name,
        kind=job.kind,
        state=job.state,
        counts=CountsView(
            total=counts.total,
            queued=counts.queued,
            running=counts.running,
            succeeded=counts.succeeded,
            failed=counts.failed,
            cancelled=counts.cancelled,
        ),
        created_at=_time(job.created_at) or "",
        started_at=_time(job.started_at),
        ended_at=_time(job.ended_at),
        deadline_at=_time(job.deadline_at),
        predicted_end=_time(job.predicted_end),
        expires_at=_time(job.expires_at),
        waiting_for=job.waiting_for,
        warning=job.warning,
        bytes=job.bytes,
        metadata=dict(job.metadata),
        webhook=_webhook_view(job),
    )


def _webhook_view(job: Job) -> WebhookView | None:
    hook = job.webhook
    if not hook.url:
        return None
    return WebhookView(url=hook.url, state=hook.state, attempts=hook.attempts, error=hook.error)


def item_view(job_id: str, item: Item, names: Mapping[str, str]) -> ItemView:
    """An item in the words of a dialect, which calls our fields as `names` says where it is not the same."""
    error = item.error
    return ItemView(
        index=item.index,
        custom_id=item.custom_id,
        state=item.state,
        request=request_view(item.params) if item.params else None,
        pictures=[_picture_view(job_id, item, picture) for picture in item.pictures],
        error=ItemErrorView(
            status_code=error.http_status,
            reason=error.code,
            message=error.message,
            violations=[
                ViolationView(field=names.get(v.field, v.field), reason=v.reason)
                for v in error.violations
            ],
        )
        if error
        else None,
        message=item.message,
        attempts=item.attempts,
        finished_at=_time(item.finished_at),
    )


def file_name(item: Item, picture: PictureFile) -> str:
    """What a picture is called among all of a job's: in the order of the requests."""
    suffix = picture.name.rpartition(".")[2]
    return f"{item.index:05d}_{picture.index}.{suffix if suffix.isalnum() else 'png'}"


def _picture_view(job_id: str, item: Item, picture: PictureFile) -> PictureView:
    return PictureView(
        index=picture.index,
        seed=picture.seed,
        width=picture.width,
        height=picture.height,
        media_type=picture.media_type,
        bytes=picture.size,
        url=f"{PREFIX}/{job_id}/items/{item.index}/pictures/{picture.index}",
        file=file_name(item, picture),
    )


def request_view(params: RequestParams) -> dict[str, Any]:
    """What was asked for as `/generate` takes it, less pictures."""
    shown: dict[str, Any] = {"text": params.prompt}
    for name in RequestParams.__slots__:
        value = getattr(params, name)
        if name not in _OWN and value is not None and value is not False:
            shown[name] = value
    if params.loras:
        shown["loras"] = [{"name": each.name, "weight": each.weight} for each in params.loras]
    if params.controls:
        shown["controls"] = [{"name": each.name, "scale": each.scale} for each in params.controls]
    return shown


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return (
        datetime.fromtimestamp(seconds, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
