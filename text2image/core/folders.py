"""Folders that nobody else can enter or put theirs in place of: for the sockets to the runners, and for the cache."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


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
