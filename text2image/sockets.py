"""Where the sockets between gateway and runners lie: folders that nobody else can enter or put theirs in place of."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def own_folder() -> Path:
    """This user's folder among everybody's temporary files."""
    return Path(tempfile.gettempdir(), f"text2image-{os.getuid()}")


def private_folder(folder: Path) -> None:
    """Creates a folder for this user alone; one in `own_folder` with that around it, which must be as private.

    Raises:
        PermissionError: it is there already, and not this user's alone: somebody could listen in our place.
    """
    if folder.parent == own_folder():
        _make(folder.parent)
    _make(folder)


def _make(folder: Path) -> None:
    # What else may stand there under this name is told below.
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    # Of a link itself, not of what it points to: whoever made it could point it elsewhere later.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _refused(folder, "is no folder")
    if found.st_uid != os.getuid():
        raise _refused(folder, "belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise _refused(folder, "is open to other users (chmod 700 closes it)")


def _refused(folder: Path, reason: str) -> PermissionError:
    return PermissionError(f"{folder} {reason}; set T2I_RUNTIME_DIR to a folder of this user alone")
