"""Which of the processes that share a database are alive, without comparing clocks.

On one machine the kernel tells: each process holds a lock on a file of its own, which is gone with it. Elsewhere each
counts up a number, its beat, and whoever looks often enough without seeing it move takes its owner for dead. One that
is taken for dead by mistake loses what it draws, and enters anew.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from pathlib import Path

from sqlalchemy import Connection

from text2image.jobs import claims
from text2image.jobs.database import Database

logger = logging.getLogger(__name__)

# Seconds between two looks, and how many in a row must see no beat.
LOOK_SECONDS = 2.0
SILENT_LOOKS = 10
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_boot() -> str:
    """Names this start of this machine; another name each time where there is none."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return secrets.token_hex(16)


class Liveness:
    """This process among the others. `id` names it to them, and is another after it was taken for dead."""

    def __init__(self, database: Database, folder: Path, boot: str | None = None) -> None:
        """
        Args:
            folder: of the locks, shared with all processes on this machine.
            boot: those who name the same see each other's locks.
        """
        self._database = database
        self._folder = folder
        self._boot = boot or this_boot()
        self._lock: int | None = None
        # By process: the beat that was seen last, and how many looks have seen it.
        self._seen: dict[str, tuple[int, int]] = {}
        self.id = ""
        self.count = 1
        self.leads = False

    async def look(self) -> bool:
        """Shows that this process lives and looks after the others; tells whether it has entered anew.

        Raises:
            Unavailable: the database, or the folder, is out of reach.
        """
        return await self._database.run(self._look)

    async def leave(self) -> None:
        """Lets go of all that this process has.

        Raises:
            Unavailable: the database is out of reach, so the others find out later.
        """
        await self._database.run(self._leave)

    def _look(self, connection: Connection) -> bool:
        entered = not self.id or not self._is_known(connection)
        if entered:
            self._enter(connection)
        others = claims.beats(connection)
        del others[self.id]
        dead = [name for name, (boot, beat) in others.items() if self._is_dead(name, boot, beat)]
        buried = [name for name in dead if claims.bury(connection, name, others[name][1])]
        if buried or entered:
            claims.inherit(connection)
        for name in buried:
            logger.warning("process %s has died; what it had goes on here or elsewhere", name)
            (self._folder / name).unlink(missing_ok=True)
        living = others.keys() - set(buried)
        self._seen = {name: seen for name, seen in self._seen.items() if name in living}
        self.count = len(living) + 1
        self.leads = all(self.id < name for name in living)
        return entered

    def _is_known(self, connection: Connection) -> bool:
        if connection.dialect.name == "sqlite":
            # The lock shows it, and spares the disk.
            return self.id in claims.beats(connection)
        return claims.beat(connection, self.id)

    def _enter(self, connection: Connection) -> None:
        self._unlock()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = secrets.token_hex(16)
        # Held before the others hear of it.
        self._lock = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        claims.enter(connection, name, self._boot)
        self.id = name

    def _leave(self, connection: Connection) -> None:
        if not self.id:
            return
        _, beat = claims.beats(connection).get(self.id, ("", 0))
        claims.bury(connection, self.id, beat)
        claims.inherit(connection)
        (self._folder / self.id).unlink(missing_ok=True)
        self._unlock()
        self.id = ""

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_dead(self, name: str, boot: str, beat: int) -> bool:
        if boot == self._boot:
            locked = _is_locked(self._folder / name)
            if locked is not None:
                return not locked
        last, looks = self._seen.get(name, (-1, 0))
        looks = looks + 1 if beat == last else 0
        self._seen[name] = (beat, looks)
        return looks >= SILENT_LOOKS


def _is_locked(path: Path) -> bool | None:
    """Whether a living process holds a lock; None if nothing tells."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
