"""Where entries of the cache are kept: on this machine's disk, or in a Redis that several gateways share.

A backend holds bytes by key and may forget any of them at any time. What fails is forgotten too: a cache that is broken
costs time, and no request ever fails for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from text2image.core.folders import private_folder

logger = logging.getLogger(__name__)

# How full a folder is after it has made room, so that it need not look through all of its files each time.
FULL_AGAIN = 0.9
# Seconds that a process waits for others to let go of the folder before it forgets what it wanted to keep.
LOCK_PATIENCE = 0.25
# How often in the life of an entry a folder is looked through for what is too old.
LOOKS = 10
_LEDGER = ".bytes"
_DRAFT = ".part"

T = TypeVar("T")


class Backend(Protocol):
    """Bytes by key. Keys are hexadecimal."""

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, entry: bytes) -> None: ...

    async def drop(self, key: str) -> None: ...


class DiskBackend:
    """One file an entry, together at most `max_bytes` long; what was not used for longest goes first.

    With `max_age` what was not used for so many seconds goes too, when something is written after that.
    Several processes may share the folder. It is this user's alone, since whoever writes there could answer for us.
    """

    def __init__(self, folder: Path, max_bytes: int, max_age: float | None = None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._tidied = 0.0
        self._told: set[str] = set()

    async def get(self, key: str) -> bytes | None:
        return await asyncio.to_thread(self._attempt, lambda: self._read(key))

    async def put(self, key: str, entry: bytes) -> None:
        await asyncio.to_thread(self._attempt, lambda: self._write(key, entry))

    async def drop(self, key: str) -> None:
        # The ledger counts it until the folder is next looked through.
        await asyncio.to_thread(self._attempt, lambda: (self._folder / key).unlink(missing_ok=True))

    def _attempt(self, work: Callable[[], T]) -> T | None:
        try:
            private_folder(self._folder, "T2I_CACHE_DIR")
            return work()
        except OSError as error:
            reason = error.strerror or str(error)
            if reason not in self._told:
                self._told.add(reason)
                logger.warning("the cache in %s is of no use: %s", self._folder, reason)
            return None

    def _read(self, key: str) -> bytes | None:
        path = self._folder / key
        try:
            entry = path.read_bytes()
        except FileNotFoundError:
            return None
        # Its time tells when it was last used; on a disk that takes no writes the order no longer matters.
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry

    def _write(self, key: str, entry: bytes) -> None:
        size = len(entry)
        if size > self._max_bytes:
            return
        with self._locked() as ledger:
            if ledger is None:
                return
            path = self._folder / key
            total = _total(ledger)
            if total is None or total + size > self._max_bytes or self._may_be_old():
                total = self._make_room(size)
            # Written before the file: a process that dies in between leaves the ledger too high, never too low.
            ledger.truncate(0)
            ledger.write(b"%d" % (total + size))
            ledger.flush()
            draft = self._folder / f"{secrets.token_hex(8)}{_DRAFT}"
            try:
                draft.write_bytes(entry)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
        self._told.clear()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO | None]:
        """The ledger, while no other process writes to the folder; None if one keeps it too long."""
        patience = time.monotonic() + LOCK_PATIENCE
        with (self._folder / _LEDGER).open("a+b") as ledger:
            while True:
                try:
                    fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    # A process that was stopped in the middle must not stop all others.
                    if time.monotonic() > patience:
                        yield None
                        return
                    time.sleep(0.005)
                else:
                    yield ledger
                    return

    def _make_room(self, size: int) -> int:
        """Removes the least recently used files until `size` bytes more fit easily; returns the bytes that stay."""
        files = []
        for path in self._folder.iterdir():
            if path.suffix == _DRAFT:
                # Whoever wrote it held the lock, so it is dead by now.
                path.unlink(missing_ok=True)
            elif path.name != _LEDGER:
                # Damaged ones are dropped without the lock.
                with contextlib.suppress(FileNotFoundError):
                    found = path.lstat()
                    files.append((found.st_mtime_ns, found.st_size, path))
        total = sum(file_size for _, file_size, _ in files)
        room = self._max_bytes - size
        room = room if total <= room else max(0, int(self._max_bytes * FULL_AGAIN) - size)
        for used_ns, file_size, path in sorted(files):
            if total <= room and not self._is_old(used_ns):
                break
            path.unlink(missing_ok=True)
            total -= file_size
        return total

    def _may_be_old(self) -> bool:
        """Whether it is time to look for what is too old, which is done a few times in each life of an entry."""
        now = time.time()
        if self._max_age is None or now - self._tidied < self._max_age / LOOKS:
            return False
        self._tidied = now
        return True

    def _is_old(self, used_ns: int) -> bool:
        return self._max_age is not None and used_ns < (time.time() - self._max_age) * 1e9


def _total(ledger: BinaryIO) -> int | None:
    """Bytes in the folder as the ledger has them, or None if it does not say."""
    ledger.seek(0)
    text = ledger.read()
    return int(text) if text.isdigit() else None
