"""What owners do with their jobs, and what time does. Each function is one transaction's work."""

from __future__ import annotations

from sqlalchemy import Connection, and_, delete, func, select, update

from text2image.core.errors import DeadlineExceeded, FieldViolation, InvalidRequest
from text2image.jobs import claims, codec
from text2image.jobs.reading import require
from text2image.jobs.records import ItemState, JobState, WebhookState
from text2image.jobs.tables import DELETING, items, jobs

_OPEN = (JobState.QUEUED, JobState.RUNNING)
_UNFINISHED = (ItemState.QUEUED, ItemState.RUNNING)
_ENDED = (JobState.CANCELLED, JobState.COMPLETED)


def pause(connection: Connection, owner: str, job_id: str) -> None:
    row = require(connection, owner, job_id, lock=True)
    if row.state in _OPEN:
        _set(connection, row.number, state=JobState.PAUSED, waiting_for="")


def resume(connection: Connection, owner: str, job_id: str) -> None:
    row = require(connection, owner, job_id, lock=True)
    if row.state == JobState.PAUSED:
        _set(connection, row.number, state=_begun(row.started_at))


def cancel(connection: Connection, owner: str, job_id: str, now: float) -> None:
    row = require(connection, owner, job_id, lock=True)
    if row.state not in _ENDED:
        _stop(connection, row.number, now)
        _set(connection, row.number, **claims.ended(JobState.CANCELLED, now))
        claims.tell(connection, row.number)


def retry_failed(connection: Connection, owner: str, job_id: str) -> None:
    """As `Jobs.retry_failed` has it; a deadline that has passed counts no more."""
    row = require(connection, owner, job_id, lock=True)
    if row.state == JobState.CANCELLED:
        raise InvalidRequest(FieldViolation("job", "it was cancelled; submit its requests anew"))
    again = and_(
        items.c.job == row.number,
        items.c.state == ItemState.FAILED,
        items.c.params.is_not(None),
    )
    fresh = {"state": ItemState.QUEUED, "losses": 0, "error": None, "finished_at": None}
    queued = connection.execute(update(items).where(again).values(fresh)).rowcount
    if queued and row.state == JobState.COMPLETED:
        late = row.patience is not None and row.patience <= 0
        _set(
            connection,
            row.number,
            state=_begun(row.started_at),
            ended_at=None,
            age=0.0,
            patience=None if late else row.patience,
            webhook_state=WebhookState.WAITING if row.webhook_url else WebhookState.NONE,
            webhook_attempts=0,
            webhook_error="",
        )


def remove(connection: Connection, owner: str, job_id: str, now: float) -> None:
    """Hides a job for good, and stops it; `doomed` finds it."""
    row = require(connection, owner, job_id, lock=True)
    _stop(connection, row.number, now)
    _doom(connection, row.number)


def _begun(started_at: float | None) -> JobState:
    return JobState.QUEUED if started_at is None else JobState.RUNNING


def _set(connection: Connection, number: int, **values: object) -> None:
    connection.execute(update(jobs).where(jobs.c.number == number).values(values))


def _stop(connection: Connection, number: int, now: float) -> None:
    unfinished = and_(items.c.job == number, items.c.state.in_(_UNFINISHED))
    cancelled = {"state": ItemState.CANCELLED, "process": None, "finished_at": now}
    connection.execute(update(items).where(unfinished).values(cancelled))


def _doom(connection: Connection, number: int) -> None:
    # Its key may be used again.
    _set(connection, number, state=DELETING, idempotency_key=None)


def pass_time(connection: Connection, seconds: float, now: float) -> None:
    """Lets jobs grow older by so many seconds in which they were served; fails what has come to its deadline."""
    connection.execute(
        update(jobs).where(jobs.c.state.in_(_ENDED)).values(age=jobs.c.age + seconds)
    )
    hurried = and_(jobs.c.patience.is_not(None), jobs.c.state.in_((*_OPEN, JobState.PAUSED)))
    connection.execute(update(jobs).where(hurried).values(patience=jobs.c.patience - seconds))
    error = DeadlineExceeded("the job's deadline passed before this was drawn")
    text = codec.error_text(codec.error_of(error))
    query = select(jobs.c.number).where(hurried, jobs.c.patience <= 0).with_for_update()
    for number in connection.scalars(query).all():
        late = and_(items.c.job == number, items.c.state.in_(_UNFINISHED))
        failed = {"state": ItemState.FAILED, "process": None, "error": text, "finished_at": now}
        connection.execute(update(items).where(late).values(failed))
        claims.settle(connection, number, now)


def has_deadlines(connection: Connection) -> bool:
    """Whether time has to be looked at closely."""
    hurried = jobs.c.patience.is_not(None) & jobs.c.state.in_((*_OPEN, JobState.PAUSED))
    return connection.execute(select(jobs.c.number).where(hurried).limit(1)).first() is not None


def expire(connection: Connection, keep_seconds: float, keep_bytes: int) -> None:
    """Dooms jobs that have ended too long ago, and those that ended first where their pictures are too large."""
    size = connection.scalar(select(func.sum(jobs.c.bytes)).where(jobs.c.state != DELETING)) or 0
    query = (
        select(jobs.c.number, jobs.c.age, jobs.c.bytes)
        .where(
            jobs.c.state.in_(_ENDED),
            # Somebody is yet to be told of it.
            jobs.c.webhook_state != WebhookState.PENDING,
        )
        .order_by(jobs.c.age.desc(), jobs.c.number)
    )
    for row in connection.execute(query).all():
        if row.age >= keep_seconds or (size > keep_bytes and row.bytes):
            _doom(connection, row.number)
            size -= row.bytes


def doomed(connection: Connection) -> list[tuple[int, str]]:
    """Numbers and ids of the jobs whose files are to be removed, and then they."""
    query = select(jobs.c.number, jobs.c.id).where(jobs.c.state == DELETING)
    return [(row.number, row.id) for row in connection.execute(query)]


def forget(connection: Connection, number: int) -> None:
    """Removes a doomed job whose files are gone."""
    gone = and_(jobs.c.number == number, jobs.c.state == DELETING)
    connection.execute(delete(jobs).where(gone))


def untold(connection: Connection, process: str) -> list[int]:
    """Takes the ended jobs whose ends nobody tells, and answers with the numbers of all that this process does."""
    pending = jobs.c.webhook_state == WebhookState.PENDING
    free = and_(pending, jobs.c.webhook_process.is_(None))
    if connection.execute(select(jobs.c.number).where(free).limit(1)).first():
        connection.execute(update(jobs).where(free).values(webhook_process=process))
    query = select(jobs.c.number).where(pending, jobs.c.webhook_process == process)
    return list(connection.scalars(query.order_by(jobs.c.number)))


def tell_again(connection: Connection, owner: str, job_id: str) -> int:
    """Has an end told as if it were new; answers with the job's number."""
    row = require(connection, owner, job_id, lock=True)
    if not row.webhook_url:
        raise InvalidRequest(FieldViolation("job", "it was submitted without a webhook_url"))
    if row.state not in _ENDED:
        raise InvalidRequest(FieldViolation("job", "it has not ended; its webhook is sent then"))
    _set(connection, row.number, webhook_state=WebhookState.PENDING, webhook_attempts=0)
    return int(row.number)


def told(connection: Connection, number: int, state: WebhookState, error: str) -> None:
    """Says how it went to tell somebody of a job's end; it is told again while PENDING."""
    pending = and_(jobs.c.number == number, jobs.c.webhook_state == WebhookState.PENDING)
    values = {
        "webhook_state": state,
        "webhook_attempts": jobs.c.webhook_attempts + 1,
        "webhook_error": error,
    }
    if state is not WebhookState.PENDING:
        values["webhook_process"] = None
    connection.execute(update(jobs).where(pending).values(values))
