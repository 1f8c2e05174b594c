"""The tables of jobs, the same in SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

# Of the tables below. One that is changed needs a way from the version before.
VERSION = 1

# A job that is being taken in, or removed: nobody sees it.
SUBMITTING, DELETING = "submitting", "deleting"

metadata = MetaData()

# SQLite counts rows only where the key is an INTEGER.
_Serial = BigInteger().with_variant(Integer, "sqlite")

schema = Table("t2i_schema", metadata, Column("version", Integer, primary_key=True))

# Those who work on jobs. `beat` grows while one lives; `boot` is the start of the machine that it runs on.
processes = Table(
    "t2i_processes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("boot", String(64), nullable=False),
    Column("beat", BigInteger, nullable=False, default=0),
)

# `age` counts the seconds since the end in which somebody served, `patience` those that are left to its deadline.
jobs = Table(
    "t2i_jobs",
    metadata,
    Column("number", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("process", String(32)),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("patience", Float),
    Column("age", Float, nullable=False, default=0.0),
    Column("total", Integer, nullable=False, default=0),
    Column("waiting_for", Text, nullable=False, default=""),
    Column("warning", Text, nullable=False, default=""),
    Column("bytes", BigInteger, nullable=False, default=0),
    Column("metadata", Text, nullable=False),
    Column("extra", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("digest", String(64)),
    Column("webhook_url", Text, nullable=False),
    Column("webhook_state", String(16), nullable=False),
    Column("webhook_attempts", Integer, nullable=False, default=0),
    Column("webhook_error", Text, nullable=False, default=""),
    Column("webhook_process", String(32)),
    UniqueConstraint("owner", "idempotency_key"),
    Index("t2i_jobs_state", "state", "number"),
    Index("t2i_jobs_owner", "owner", "number"),
    # A number is never used twice, so that an old one is not taken for a new job.
    sqlite_autoincrement=True,
)

# `attempt` is raised by each claim, and what does not name the present one is too late.
items = Table(
    "t2i_items",
    metadata,
    Column("job", ForeignKey(jobs.c.number, ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("losses", Integer, nullable=False, default=0),
    Column("process", String(32)),
    Column("custom_id", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("encoding", Text, nullable=False),
    Column("params", Text),
    Column("files", LargeBinary),
    Column("extra", Text, nullable=False),
    Column("pictures", Text),
    Column("message", Text, nullable=False, default=""),
    Column("error", Text),
    Column("finished_at", Float),
    Index("t2i_items_state", "job", "state", "place"),
    Index("t2i_items_process", "process"),
)
