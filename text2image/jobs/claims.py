"""Who works on which item: claims, what becomes of them, and what those who died have left.

Each function is one transaction's work. A claim raises the item's attempt, and whatever ends the item names it: of two
who draw the same item, since one was thought dead, the later claim alone counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    delete,
    exists,
    insert,
    select,
    update,
)

from text2image.core.formats import Encoding
from text2image.core.messages import RequestParams
from text2image.jobs import codec
from text2image.jobs.records import ItemError, ItemState, JobState, PictureFile, WebhookState
from text2image.jobs.tables import SUBMITTING, items, jobs, processes

_OPEN = (JobState.QUEUED, JobState.RUNNING)
_UNFINISHED = (ItemState.QUEUED, ItemState.RUNNING)


@dataclass(frozen=True, slots=True)
class Claim:
    """An item that this process draws; `patience` is the seconds that were left to its job, None for ever."""

    job: int
    job_id: str
    owner: str
    place: int
    attempt: int
    losses: int
    params: RequestParams = field(repr=False)
    encoding: Encoding
    title: str
    patience: float | None

    @property
    def key(self) -> tuple[int, int, int]:
        return self.job, self.place, self.attempt


def claim(
    connection: Connection,
    process: str,
    count: int,
    at_work: Mapping[str, int],
    cap: Callable[[str], int | None],
    now: float,
) -> list[Claim]:
    """Takes up to `count` items, so that each owner has about as many at work; of an owner the oldest job's first.

    Args:
        at_work: items by owner that this process has already.
        cap: the most that an owner may have at work, None for any number.
    """
    query = (
        select(jobs.c.number, jobs.c.id, jobs.c.owner, jobs.c.patience, jobs.c.state)
        .where(
            jobs.c.state.in_(_OPEN),
            exists().where(items.c.job == jobs.c.number, items.c.state == ItemState.QUEUED),
        )
        .order_by(jobs.c.number)
    )
    found = connection.execute(query).all()
    shares = _shares({row.owner for row in found}, count, at_work, cap)
    claims: list[Claim] = []
    for row in found:
        left = shares.get(row.owner, 0)
        if not left:
            continue
        taken = _take(connection, process, row.number, left)
        if taken and row.state == JobState.QUEUED:
            started = {"state": JobState.RUNNING, "started_at": now}
            of_job = and_(jobs.c.number == row.number, jobs.c.state == JobState.QUEUED)
            connection.execute(update(jobs).where(of_job).values(started))
        shares[row.owner] -= len(taken)
        claims += [
            Claim(
                row.number,
                row.id,
                row.owner,
                item.place,
                item.attempt + 1,
                item.losses,
                codec.params_of(item.params, item.files),
                codec.encoding_in(item.encoding),
                item.title,
                row.patience,
            )
            for item in taken
        ]
    return claims


def _shares(
    owners: Collection[str],
    count: int,
    at_work: Mapping[str, int],
    cap: Callable[[str], int | None],
) -> Counter[str]:
    shares = Counter({owner: at_work.get(owner, 0) for owner in owners})
    caps = {owner: cap(owner) for owner in owners}
    for _ in range(count):
        able = [owner for owner, most in caps.items() if most is None or shares[owner] < most]
        if not able:
            break
        shares[min(able, key=shares.__getitem__)] += 1
    return Counter({owner: shares[owner] - at_work.get(owner, 0) for owner in owners})


def _take(connection: Connection, process: str, job: int, count: int) -> list[Row[Any]]:
    query = (
        select(
            items.c.place,
            items.c.attempt,
            items.c.losses,
            items.c.params,
            items.c.files,
            items.c.encoding,
            items.c.title,
        )
        .where(items.c.job == job, items.c.state == ItemState.QUEUED)
        .order_by(items.c.place)
        .limit(count)
        # Where several write at once, each takes other rows; SQLite has one writer.
        .with_for_update(skip_locked=True)
    )
    taken = list(connection.execute(query).all())
    if taken:
        of_items = and_(items.c.job == job, items.c.place.in_([item.place for item in taken]))
        connection.execute(
            update(items)
            .where(of_items)
            .values(state=ItemState.RUNNING, attempt=items.c.attempt + 1, process=process)
        )
    return taken


def succeed(
    connection: Connection,
    claimed: Claim,
    pictures: tuple[PictureFile, ...],
    message: str,
    now: float,
) -> bool:
    """Keeps an item's result, if it is still this claim's; tells whether it was."""
    size = sum(picture.size for picture in pictures)
    _lock(connection, claimed.job)
    kept = _end(
        connection,
        claimed,
        state=ItemState.SUCCEEDED,
        pictures=codec.pictures_text(pictures),
        message=message,
        finished_at=now,
    )
    if kept:
        more = {"bytes": jobs.c.bytes + size}
        connection.execute(update(jobs).where(jobs.c.number == claimed.job).values(more))
        settle(connection, claimed.job, now)
    return kept or _is_kept(connection, claimed)


def fail(connection: Connection, claimed: Claim, error: ItemError, now: float) -> bool:
    """Ends an item with an error, if it is still this claim's; tells whether it was."""
    _lock(connection, claimed.job)
    text = codec.error_text(error)
    kept = _end(connection, claimed, state=ItemState.FAILED, error=text, finished_at=now)
    if kept:
        settle(connection, claimed.job, now)
    return kept


def release(connection: Connection, claimed: Claim) -> None:
    """Queues an item again that this process does not draw."""
    _end(connection, claimed, state=ItemState.QUEUED)


def lose(connection: Connection, claimed: Claim) -> None:
    """Counts that a drawing was lost after it had been admitted."""
    connection.execute(update(items).where(_is_mine(claimed)).values(losses=items.c.losses + 1))


def _is_mine(claimed: Claim) -> ColumnElement[bool]:
    return and_(
        items.c.job == claimed.job,
        items.c.place == claimed.place,
        items.c.attempt == claimed.attempt,
        items.c.state == ItemState.RUNNING,
    )


def _end(connection: Connection, claimed: Claim, **values: object) -> bool:
    ended = connection.execute(
        update(items).where(_is_mine(claimed)).values(process=None, **values)
    )
    return ended.rowcount == 1


def _is_kept(connection: Connection, claimed: Claim) -> bool:
    """Whether it was kept already: a database that is lost in mid-commit does not say so."""
    query = select(items.c.state).where(
        items.c.job == claimed.job,
        items.c.place == claimed.place,
        items.c.attempt == claimed.attempt,
    )
    return connection.scalar(query) == ItemState.SUCCEEDED


def _lock(connection: Connection, job: int) -> None:
    # The last two of a job's items may end at once, and the later must see the earlier.
    connection.execute(select(jobs.c.number).where(jobs.c.number == job).with_for_update())


def settle(connection: Connection, job: int, now: float) -> None:
    """Ends a job of which nothing is left to draw; its row is locked, or nobody else knows it."""
    left = exists().where(items.c.job == job, items.c.state.in_(_UNFINISHED))
    is_over = and_(jobs.c.number == job, jobs.c.state.in_((*_OPEN, JobState.PAUSED)), ~left)
    connection.execute(update(jobs).where(is_over).values(ended(JobState.COMPLETED, now)))
    tell(connection, job)


def ended(state: JobState, now: float) -> dict[str, object]:
    """What a job's row says once it has ended."""
    return {"state": state, "ended_at": now, "age": 0.0, "waiting_for": ""}


def tell(connection: Connection, job: int) -> None:
    """Has somebody be told of a job's end who waits for it."""
    waits = and_(
        jobs.c.number == job,
        jobs.c.state.in_((JobState.COMPLETED, JobState.CANCELLED)),
        jobs.c.webhook_state == WebhookState.WAITING,
    )
    connection.execute(update(jobs).where(waits).values(webhook_state=WebhookState.PENDING))


def mine(connection: Connection, process: str) -> set[tuple[int, int, int]]:
    """The keys of a process's claims; one that was cancelled or taken over is none of them."""
    query = select(items.c.job, items.c.place, items.c.attempt).where(
        items.c.process == process, items.c.state == ItemState.RUNNING
    )
    return {(row.job, row.place, row.attempt) for row in connection.execute(query)}


def wait_for(connection: Connection, reasons: Mapping[str, str]) -> bool:
    """Says in open jobs why they do not go on, by owner, and nothing in the others; tells whether that was news."""
    known = case(reasons, value=jobs.c.owner, else_="") if reasons else ""
    return _wait(connection, known)


def wait_for_all(connection: Connection, why: str) -> bool:
    """Says in open jobs that nobody draws why that is; tells whether that was news."""
    at_work = exists().where(items.c.job == jobs.c.number, items.c.state == ItemState.RUNNING)
    return _wait(connection, why, ~at_work)


def _wait(
    connection: Connection, why: ColumnElement[str] | str, *which: ColumnElement[bool]
) -> bool:
    news = update(jobs).where(jobs.c.state.in_(_OPEN), jobs.c.waiting_for != why, *which)
    return connection.execute(news.values(waiting_for=why)).rowcount > 0


def enter(connection: Connection, process: str, boot: str) -> None:
    """Takes a process in among those who work."""
    connection.execute(insert(processes).values(id=process, boot=boot, beat=0))


def beat(connection: Connection, process: str) -> bool:
    """Shows that a process lives; tells whether the others believed so."""
    alive = update(processes).where(processes.c.id == process).values(beat=processes.c.beat + 1)
    return connection.execute(alive).rowcount == 1


def beats(connection: Connection) -> dict[str, tuple[str, int]]:
    """All processes: where each runs, and how often its heart has beaten."""
    return {row.id: (row.boot, row.beat) for row in connection.execute(select(processes))}


def bury(connection: Connection, process: str, seen: int) -> bool:
    """Takes a process out, if it has shown no life since its beat was `seen`; tells whether it did."""
    silent = and_(processes.c.id == process, processes.c.beat == seen)
    return connection.execute(delete(processes).where(silent)).rowcount == 1


def inherit(connection: Connection) -> None:
    """Queues again what processes had that are none any more, and removes jobs that they were taking in."""
    alive = select(processes.c.id)
    orphaned = and_(
        items.c.process.is_not(None),
        items.c.process.not_in(alive),
        items.c.state == ItemState.RUNNING,
    )
    connection.execute(update(items).where(orphaned).values(state=ItemState.QUEUED, process=None))
    half = and_(jobs.c.state == SUBMITTING, jobs.c.process.not_in(alive))
    connection.execute(delete(jobs).where(half))
    untold = and_(jobs.c.webhook_process.is_not(None), jobs.c.webhook_process.not_in(alive))
    connection.execute(update(jobs).where(untold).values(webhook_process=None))
