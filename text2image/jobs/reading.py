"""What may be asked about jobs. Each function is one transaction's work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, select

from text2image.core.errors import FieldViolation, InvalidRequest, JobNotFound
from text2image.jobs import codec
from text2image.jobs.records import (
    Counts,
    Item,
    ItemPage,
    ItemState,
    Job,
    JobPage,
    JobState,
    PictureFile,
    Webhook,
    WebhookState,
)
from text2image.jobs.tables import DELETING, SUBMITTING, items, jobs

MAX_JOBS, MAX_PAGE = 100, 1000
_HIDDEN = (SUBMITTING, DELETING)
_ITEM = [column for column in items.c if column is not items.c.files]


def require(connection: Connection, owner: str, job_id: str, *, lock: bool = False) -> Row[Any]:
    """The row of an owner's job.

    Raises:
        JobNotFound: there is none.
    """
    query = select(jobs).where(
        jobs.c.id == job_id, jobs.c.owner == owner, jobs.c.state.not_in(_HIDDEN)
    )
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise JobNotFound(f"you have no job {job_id[:80]!r}; it may have been removed")
    return row


def get(connection: Connection, owner: str, job_id: str, now: float, keep: float) -> Job:
    """An owner's job; `keep` is for how many seconds it stays once it has ended.

    Raises:
        JobNotFound: there is none.
    """
    return _jobs(connection, [require(connection, owner, job_id)], now, keep)[0]


def page(
    connection: Connection,
    owner: str,
    after: str,
    limit: int,
    kind: str,
    now: float,
    keep: float,
) -> JobPage:
    """As `Jobs.list` has it."""
    wanted: list[ColumnElement[bool]] = [jobs.c.owner == owner, jobs.c.state.not_in(_HIDDEN)]
    if kind:
        wanted.append(jobs.c.kind == kind)
    if after:
        try:
            wanted.append(jobs.c.number < require(connection, owner, after).number)
        except JobNotFound as error:
            raise InvalidRequest(FieldViolation("after", error.message)) from None
    query = select(jobs).where(*wanted).order_by(jobs.c.number.desc()).limit(limit + 1)
    rows = connection.execute(query).all()
    shown = _jobs(connection, rows[:limit], now, keep)
    return JobPage(tuple(shown), shown[-1].id if len(rows) > limit else None)


def by_number(connection: Connection, number: int, now: float, keep: float) -> Job | None:
    """A job whoever its owner is; None if it is removed."""
    query = select(jobs).where(jobs.c.number == number, jobs.c.state.not_in(_HIDDEN))
    found = _jobs(connection, connection.execute(query).all(), now, keep)
    return found[0] if found else None


def _jobs(connection: Connection, rows: Sequence[Row[Any]], now: float, keep: float) -> list[Job]:
    counted: dict[int, dict[str, int]] = {row.number: {} for row in rows}
    query = (
        select(items.c.job, items.c.state, func.count())
        .where(items.c.job.in_(counted))
        .group_by(items.c.job, items.c.state)
    )
    for number, state, count in connection.execute(query):
        counted[number][state] = count
    return [_job(row, Counts(**counted[row.number]), now, keep) for row in rows]


def _job(row: Row[Any], counts: Counts, now: float, keep: float) -> Job:
    state = JobState(row.state)
    return Job(
        id=row.id,
        owner=row.owner,
        name=row.name,
        kind=row.kind,
        state=state,
        counts=counts,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        deadline_at=None if row.patience is None or state.has_ended else now + row.patience,
        predicted_end=_predicted_end(row, state, counts, now),
        expires_at=now + max(0.0, keep - row.age) if state.has_ended else None,
        waiting_for=row.waiting_for,
        warning=row.warning,
        bytes=row.bytes,
        metadata=json.loads(row.metadata),
        extra=json.loads(row.extra),
        webhook=Webhook(
            row.webhook_url,
            WebhookState(row.webhook_state),
            row.webhook_attempts,
            row.webhook_error,
        ),
    )


def _predicted_end(row: Row[Any], state: JobState, counts: Counts, now: float) -> float | None:
    if state is not JobState.RUNNING or not counts.succeeded or row.started_at is None:
        return None
    pace = max(0.0, now - row.started_at) / counts.succeeded
    return now + float(pace) * (counts.queued + counts.running)


def item_page(
    connection: Connection,
    owner: str,
    job_id: str,
    after: int,
    limit: int,
    state: ItemState | None,
) -> ItemPage:
    """As `Jobs.items` has it."""
    job = require(connection, owner, job_id)
    wanted = [items.c.job == job.number, items.c.place > after]
    if state is not None:
        wanted.append(items.c.state == state)
    query = select(*_ITEM).where(*wanted).order_by(items.c.place).limit(limit + 1)
    rows = connection.execute(query).all()
    shown = tuple(map(_item, rows[:limit]))
    return ItemPage(shown, shown[-1].index if len(rows) > limit else None)


def item(connection: Connection, owner: str, job_id: str, place: int) -> Item:
    """As `Jobs.item` has it."""
    return _item(_item_row(connection, owner, job_id, place))


def picture(
    connection: Connection, owner: str, job_id: str, place: int, index: int
) -> tuple[PictureFile, int]:
    """A picture of an item, and the attempt that drew it.

    Raises:
        JobNotFound: there is no such job of its owner's, no such item, or no such picture yet.
    """
    row = _item_row(connection, owner, job_id, place)
    for file in codec.pictures_in(row.pictures) if row.pictures else ():
        if file.index == index:
            return file, row.attempt
    raise JobNotFound(f"item {place} of {job_id} is {row.state} and has no picture {index}")


def _item_row(connection: Connection, owner: str, job_id: str, place: int) -> Row[Any]:
    job = require(connection, owner, job_id)
    # What is beyond a database's integers is no place either.
    wanted = and_(items.c.job == job.number, items.c.place == min(place, job.total))
    row = connection.execute(select(*_ITEM).where(wanted)).first()
    if row is None:
        raise JobNotFound(f"{job_id} has items 0 to {job.total - 1}, and no {place}")
    return row


def _item(row: Row[Any]) -> Item:
    return Item(
        index=row.place,
        custom_id=row.custom_id,
        params=codec.params_of(row.params) if row.params else None,
        encoding=codec.encoding_in(row.encoding),
        extra=json.loads(row.extra),
        state=ItemState(row.state),
        pictures=codec.pictures_in(row.pictures) if row.pictures else (),
        error=codec.error_in(row.error) if row.error else None,
        message=row.message,
        attempts=row.attempt,
        finished_at=row.finished_at,
    )
