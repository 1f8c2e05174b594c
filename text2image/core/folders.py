"""Folders that nobody else can enter or put theirs in place of: one for each server's processes, and the cache's."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_LOCK = "lock"
_PREFIX = "server-"
# The locks of the folders that this process has taken, until it ends.
_held: dict[Path, int] = {}


class FolderInUse(Exception):
    """Another server that is running has this folder."""


def own_folder() -> Path:
    """This user's folder among everybody's temporary files."""
    return Path(tempfile.gettempdir(), f"text2image-{os.getuid()}")


def private_folder(folder: Path, setting: str = "T2I_RUNTIME_DIR") -> None:
    """Creates a folder for this user alone; one in `own_folder` with that around it, which must be as private.

    Raises:
        PermissionError: it is there already, and not this user's alone, so that somebody could listen or write in our
            place; the text names the `setting` that chooses another.
    """
    if folder.parent == own_folder():
        _make(folder.parent, setting)
    _make(folder, setting)


def claim_folder(chosen: Path | None = None) -> Path:
    """A private folder that no other server has until this process ends: the chosen one, or else a new one.

    A new one goes with the process; what servers that were killed have left behind is removed.

    Raises:
        FolderInUse: another server has the chosen one.
        PermissionError: as `private_folder` says.
    """
    if chosen is not None:
        private_folder(chosen)
        _hold(chosen)
        return chosen
    around = own_folder()
    private_folder(around)
    # One at a time, lest a folder that is not locked yet is taken for one that was left behind.
    with (around / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder in around.glob(f"{_PREFIX}*"):
            if not _is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=around))
        _hold(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _hold(folder: Path) -> None:
    if folder in _held:
        return
    # Of the file and of this process: whatever way that ends, the lock is gone, and children do not inherit it.
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FolderInUse(f"another server is at work in {folder}") from None
    _held[folder] = lock


def _is_held(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _make(folder: Path, setting: str) -> None:
    # What else may stand there under this name is told below.
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    # Of a link itself, not of what it points to: whoever made it could point it elsewhere later.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _refused(folder, "is no folder", setting)
    if found.st_uid != os.getuid():
        raise _refused(folder, "belongs to another user", setting)
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise _refused(folder, "is open to other users (chmod 700 closes it)", setting)


def _refused(folder: Path, reason: str, setting: str) -> PermissionError:
    return PermissionError(f"{folder} {reason}; set {setting} to a folder of this user alone")
