"""The database of jobs: one thread that writes and reads it, and what is told while it is out of reach."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from text2image.core.errors import Unavailable
from text2image.jobs import tables

logger = logging.getLogger(__name__)

# What clients are told to wait while the database is away, in seconds.
RETRY_AFTER = 5.0
# Seconds that another process may hold SQLite's lock; a transaction takes hundredths of one.
_LOCK_SECONDS = 30
# Seconds until a PostgreSQL that does not answer counts as away.
_CONNECT_SECONDS = 5
_STATEMENT_MS = 30_000
_WITHOUT_ACK_MS = 10_000
# Seconds for which the log has told enough of what is away.
_TOLD_SECONDS = 60.0

P = ParamSpec("P")
T = TypeVar("T")


def out_of_reach(why: object) -> Unavailable:
    """What everybody is told while nothing can be read or written."""
    return Unavailable(
        f"jobs cannot be read or written at the moment ({why}); they go on when that is over, try again",
        reason=Unavailable.STORAGE,
        retry_after=RETRY_AFTER,
    )


class Database:
    """A database by its URL, or SQLite at a path.

    Every transaction runs in one thread: SQLite has one writer, and an event loop must not wait for a disk.
    """

    def __init__(self, where: str | Path) -> None:
        self._engine = _sqlite(where) if isinstance(where, Path) else _postgresql(where)
        self._path = where if isinstance(where, Path) else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._made = False
        self._told = -_TOLD_SECONDS

    async def run(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs `work` in a transaction of its own; a cancelled one is finished all the same.

        Raises:
            Unavailable: the database, or its disk, is out of reach; nothing of the transaction is kept.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, lambda: self.run_here(work, *args, **kwargs)
        )

    def run_here(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The same in this thread."""
        try:
            self._make()
            with self._engine.begin() as connection:
                result = work(connection, *args, **kwargs)
        except IntegrityError:
            raise
        except (SQLAlchemyError, OSError) as error:
            self._tell(error)
            raise out_of_reach(_cause(error)) from error
        return result

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._engine.dispose()

    def _make(self) -> None:
        if self._made:
            return
        if self._path:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                # Two gateways that start at once would both make the tables. The number means nothing.
                connection.execute(select(func.pg_advisory_xact_lock(7_112_020)))
            if not inspect(connection).has_table(tables.schema.name):
                tables.metadata.create_all(connection)
                connection.execute(insert(tables.schema).values(version=tables.VERSION))
            found = connection.scalar(select(tables.schema.c.version))
        if found != tables.VERSION:
            raise OSError(
                f"its tables are of version {found} and this server knows {tables.VERSION} alone"
            )
        self._made = True

    def _tell(self, error: Exception) -> None:
        # A full disk can be read, so that what fails and what does not alternate.
        now = time.monotonic()
        if now - self._told >= _TOLD_SECONDS:
            self._told = now
            logger.error("the database of jobs is out of reach: %s", _cause(error))


def _cause(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(cause).split())[:200]


def _sqlite(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        # One thread has the one connection.
        poolclass=StaticPool,
        connect_args={"timeout": _LOCK_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: object) -> None:
        # Transactions begin below, since the driver's own would let two readers of the same rows both write.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begins(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgresql(url: str) -> Engine:
    options = f"-c statement_timeout={_STATEMENT_MS}"
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=1,
        max_overflow=1,
        # Connections that were lost while nobody asked are made anew unseen.
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": _WITHOUT_ACK_MS,
            "options": options,
        },
    )
