"""How a job is taken in: in parts, hidden until the last of them is there."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from text2image.core.errors import FieldViolation, InvalidRequest, QuotaExceeded, Text2ImageError
from text2image.jobs import claims, codec
from text2image.jobs.records import ItemState, JobState, NewItem, WebhookState
from text2image.jobs.tables import DELETING, SUBMITTING, items, jobs

MAX_JSON = 1 << 16
MAX_KEY = 255
# Seconds after which somebody who has too many unfinished items may try again.
FULL_RETRY_AFTER = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What is known of a job before its items, as `Jobs.submit` has it; metadata and extra as JSON."""

    owner: str
    name: str
    kind: str
    metadata: str
    extra: str
    idempotency_key: str
    webhook_url: str
    patience: float | None
    paused: bool


def form_of(
    owner: str,
    *,
    name: str,
    kind: str,
    metadata: Mapping[str, str] | None,
    extra: Mapping[str, Any] | None,
    idempotency_key: str,
    webhook_url: str,
    seconds: float | None,
    paused: bool,
) -> Form:
    """Checks what is known before the items.

    Raises:
        InvalidRequest: with one violation for each bad field.
    """
    bad: list[FieldViolation] = []
    if len(idempotency_key) > MAX_KEY:
        bad.append(FieldViolation("idempotency_key", f"has more than {MAX_KEY} characters"))
    if seconds is not None and not 0 < seconds < 1e9:
        bad.append(FieldViolation("seconds", "must be more than 0 and less than 1000000000"))
    texts = {}
    for field, value in (("metadata", metadata), ("extra", extra)):
        try:
            texts[field] = json_of(value or {})
        except ValueError as error:
            bad.append(FieldViolation(field, str(error)))
    if bad:
        raise InvalidRequest(*bad)
    return Form(
        owner=owner,
        name=name,
        kind=kind,
        metadata=texts["metadata"],
        extra=texts["extra"],
        idempotency_key=idempotency_key,
        webhook_url=webhook_url,
        patience=seconds,
        paused=paused,
    )


def json_of(value: Mapping[str, Any]) -> str:
    """A client's notes as JSON.

    Raises:
        ValueError: they are none, or too long.
    """
    try:
        text = codec.dumps(dict(value))
    except (TypeError, ValueError):
        raise ValueError("has values that JSON has no words for") from None
    if len(text) > MAX_JSON:
        raise ValueError(f"is longer than {MAX_JSON} bytes")
    return text


def row_of(place: int, item: NewItem, now: float) -> dict[str, Any]:
    """An item as it is written, but for its job.

    Raises:
        InvalidRequest: its extra is no JSON, or too long.
    """
    try:
        extra = json_of(item.extra)
    except ValueError as error:
        raise InvalidRequest(FieldViolation(f"items[{place}].extra", str(error))) from None
    row: dict[str, Any] = {
        "place": place,
        "state": ItemState.QUEUED,
        "custom_id": item.custom_id,
        "title": item.title,
        "encoding": codec.encoding_text(item.encoding),
        "extra": extra,
        "params": None,
        "files": None,
        "error": None,
        "finished_at": None,
    }
    if isinstance(item.params, Text2ImageError):
        text = codec.error_text(codec.error_of(item.params))
        return row | {"state": ItemState.FAILED, "error": text, "finished_at": now}
    text, files = codec.params_text(item.params)
    return row | {"params": text, "files": files}


class Digest:
    """Tells whether two submissions have the same items."""

    def __init__(self, form: Form) -> None:
        self._hash = hashlib.sha256(f"{form.kind}\0{form.extra}".encode())

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            told = {name: row[name] for name in ("params", "custom_id", "encoding", "extra")}
            self._hash.update(codec.dumps(told).encode())
            self._hash.update(row["files"] or b"")
            self._hash.update((row["error"] or "").encode())

    def text(self) -> str:
        return self._hash.hexdigest()


def begin(connection: Connection, form: Form, process: str, now: float) -> int:
    """Makes a hidden job; answers with its number."""
    values = {
        "id": f"job_{secrets.token_hex(12)}",
        "owner": form.owner,
        "kind": form.kind,
        "name": form.name,
        "state": SUBMITTING,
        "process": process,
        "created_at": now,
        "patience": form.patience,
        "metadata": form.metadata,
        "extra": form.extra,
        "webhook_url": form.webhook_url,
        "webhook_state": WebhookState.WAITING if form.webhook_url else WebhookState.NONE,
    }
    made = connection.execute(insert(jobs).values(values))
    number = made.inserted_primary_key
    assert number is not None
    return int(number[0])


def add(connection: Connection, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds items to a hidden job."""
    if rows:
        connection.execute(insert(items), [{"job": number, **row} for row in rows])


def earlier(connection: Connection, form: Form, digest: str) -> str | None:
    """The id of the owner's earlier job with this key; None if there is none.

    Raises:
        InvalidRequest: its items are others.
    """
    if not form.idempotency_key:
        return None
    query = select(jobs.c.id, jobs.c.digest).where(
        jobs.c.owner == form.owner,
        jobs.c.idempotency_key == form.idempotency_key,
        jobs.c.state != DELETING,
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.digest != digest:
        raise InvalidRequest(
            FieldViolation(
                "idempotency_key",
                f"it was used for {row.id}, whose items are others; take a new key for another job",
            )
        )
    return str(row.id)


def finish(
    connection: Connection,
    number: int,
    form: Form,
    digest: str,
    total: int,
    warning: str,
    most: int,
    now: float,
) -> str:
    """Makes a job visible and answers with its id, or with that of an earlier one with its key.

    Raises:
        InvalidRequest: as `earlier` says.
        QuotaExceeded: its owner would have more than `most` unfinished items.
    """
    known = earlier(connection, form, digest)
    if known is not None:
        remove(connection, number)
        return known
    unfinished = (
        select(func.count())
        .select_from(items.join(jobs))
        .where(
            jobs.c.owner == form.owner,
            jobs.c.state != DELETING,
            items.c.state.in_((ItemState.QUEUED, ItemState.RUNNING)),
        )
    )
    count = connection.scalar(unfinished) or 0
    if count > most:
        raise QuotaExceeded(
            f"your jobs would have {count} unfinished requests, and {most} are allowed; wait for some to end",
            retry_after=FULL_RETRY_AFTER,
            subject=form.owner,
        )
    values = {
        "state": JobState.PAUSED if form.paused else JobState.QUEUED,
        "process": None,
        "idempotency_key": form.idempotency_key or None,
        "digest": digest,
        "total": total,
        "warning": warning,
    }
    connection.execute(update(jobs).where(jobs.c.number == number).values(values))
    claims.settle(connection, number, now)
    return str(connection.scalar(select(jobs.c.id).where(jobs.c.number == number)))


def remove(connection: Connection, number: int) -> None:
    """Removes a hidden job."""
    hidden = and_(jobs.c.number == number, jobs.c.state == SUBMITTING)
    connection.execute(delete(jobs).where(hidden))
