"""The nouns of jobs: what is submitted, what is kept of it, and what may be asked about it.

Times are seconds since 1970 in UTC, by the wall clock, for people; nothing is decided by them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from text2image.core.errors import FieldViolation, Text2ImageError
from text2image.core.formats import PNG, Encoding
from text2image.core.messages import RequestParams


class JobState(StrEnum):
    """Where a job is. The last two have ended; whether all went well its counts tell."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    COMPLETED = "completed"

    @property
    def has_ended(self) -> bool:
        return self in (JobState.CANCELLED, JobState.COMPLETED)


class ItemState(StrEnum):
    """Where one request of a job is. The last three have ended."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class WebhookState(StrEnum):
    """How far the news of a job's end has come."""

    NONE = "none"
    WAITING = "waiting"
    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whom to tell when a job has ended, and how that went.

    Attributes:
        url: where to; empty if nobody is told.
        state: WAITING until the job ends, PENDING until it is delivered or given up on (DEAD).
        attempts: how often it was tried.
        error: what the last attempt failed with; empty if it did not.
    """

    url: str = ""
    state: WebhookState = WebhookState.NONE
    attempts: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """Items of a job by their state."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.queued + self.running + self.ended

    @property
    def ended(self) -> int:
        return self.succeeded + self.failed + self.cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it is now.

    Attributes:
        id: `job_` and 24 hexadecimal digits.
        owner: the name of the caller that it belongs to, as `Caller.name` has it.
        kind: what made it, as `native` or `openai.batch`; it means nothing to the core.
        metadata: the client's own notes.
        extra: what the dialect that made it wants to find again, as JSON has it.
        deadline_at: when what is not drawn yet fails; None if that may wait for ever.
        predicted_end: by the pace so far; None where it has ended or nothing is known.
        expires_at: about when it is removed with its pictures, at the earliest; None before it has ended.
        waiting_for: why it does not go on by itself at the moment, for people; empty if it does.
        warning: what its owner should know of it, as that it takes longer than a day's quota; empty if nothing.
        bytes: size of its pictures.
    """

    id: str
    owner: str
    name: str = ""
    kind: str = "native"
    state: JobState = JobState.QUEUED
    counts: Counts = Counts()
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    deadline_at: float | None = None
    predicted_end: float | None = None
    expires_at: float | None = None
    waiting_for: str = ""
    warning: str = ""
    bytes: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    webhook: Webhook = Webhook()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItem:
    """One request of a job that is submitted.

    Attributes:
        params: what to draw; or why that cannot be read, with which the item has failed from the start.
        custom_id: what the client calls it; need not be unique.
        title: what saved files are named after; the prompt if it is empty.
        extra: what the dialect wants to find again, as JSON has it.
    """

    params: RequestParams | Text2ImageError
    custom_id: str = ""
    encoding: Encoding = PNG
    title: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """A finished picture of an item; `index` counts from 0 within the item, `size` is in bytes."""

    index: int
    name: str
    media_type: str
    size: int
    seed: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemError:
    """Why an item has failed: `code` is the error's `reason`, as INVALID_REQUEST."""

    code: str
    message: str
    http_status: int = 500
    violations: tuple[FieldViolation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One request of a job as it is now; `index` is its place in what was submitted, from 0.

    Attributes:
        params: what was asked for; None where that could not be read. Files in it (image, mask, controls) are left
            out, since they may be large: their fields are None.
        pictures: once it has succeeded, in the order of their index.
        message: how it went, for people; empty before it has succeeded.
        attempts: how often it was begun.
    """

    index: int
    custom_id: str = ""
    params: RequestParams | None = None
    encoding: Encoding = PNG
    extra: Mapping[str, Any] = field(default_factory=dict)
    state: ItemState = ItemState.QUEUED
    pictures: tuple[PictureFile, ...] = ()
    error: ItemError | None = None
    message: str = ""
    attempts: int = 0
    finished_at: float | None = None


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first; `after` asks for the next page, None on the last."""

    jobs: tuple[Job, ...]
    after: str | None


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Items in the order of their index; `after` asks for the next page, None on the last."""

    items: tuple[Item, ...]
    after: int | None


@dataclass(frozen=True, slots=True)
class Again:
    """What an `on_ended` handler answers if it is to be called again, in so many seconds, and why."""

    seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class Dead:
    """What an `on_ended` handler answers if it has given up for good, and why."""

    error: str


# Tells somebody of a job's end; None if that went well.
EndedHandler = Callable[[Job], Awaitable[Again | Dead | None]]
