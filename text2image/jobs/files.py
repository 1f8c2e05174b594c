"""Files that clients upload for batches: on disk, each its owner's alone, bounded in size and age.

A file is there when what is told of it is there, which is written last; whatever ends the process in between leaves a
draft, which is removed later. Several processes may share the folder. Blocking: call it off the event loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from text2image.core.errors import FileNotFound, PayloadTooLarge, Unavailable
from text2image.core.folders import private_folder

SETTING = "T2I_DATA_DIR"
_ID = re.compile(r"file-[0-9a-z_-]{8,80}")
_TOLD, _CONTENT, _DRAFT, _GONE = ".json", ".data", ".part", ".gone"
# Seconds after which a draft is nobody's any more.
_DRAFT_SECONDS = 24 * 3600.0
_STORAGE_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is told of a file; times are seconds since 1970."""

    id: str
    name: str
    bytes: int
    created_at: float
    expires_at: float


class FileStore:
    """The files of all owners under one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        max_age: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            max_bytes: of all files of one owner.
            max_age: seconds that a file is kept where its owner asks for no less.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._clock = clock

    def begin(self, owner: str) -> BinaryIO:
        """A new file to be written to, which `keep` or `discard` takes back.

        Raises:
            Unavailable: the folder cannot be written.
        """
        with _storage():
            folder = self._of(owner)
            private_folder(self._folder, SETTING)
            private_folder(folder, SETTING)
            self._tidy(folder)
            return (folder / f"{secrets.token_hex(12)}{_DRAFT}").open("w+b")

    def keep(
        self, owner: str, draft: BinaryIO, name: str, seconds: float | None = None
    ) -> StoredFile:
        """Makes a file of what was written, durably.

        Args:
            seconds: that it is kept, where that is less than the store does.

        Raises:
            PayloadTooLarge: the owner's files would be too large together; the draft is removed.
            Unavailable: it could not be written.
        """
        with _storage():
            draft.flush()
            os.fsync(draft.fileno())
            size = draft.seek(0, os.SEEK_END)
            there = sum(file.bytes for file in self.all_of(owner))
            if there + size > self._max_bytes:
                self.discard(draft)
                raise PayloadTooLarge(
                    f"with this one of {size} bytes your files would have {there + size}; at most {self._max_bytes} "
                    "are kept (T2I_BATCH_FILES_BYTES), so delete some"
                )
            now = self._clock()
            life = min(self._max_age, self._max_age if seconds is None else seconds)
            file = StoredFile(f"file-{secrets.token_hex(12)}", name, size, now, now + life)
            path = Path(draft.name)
            draft.close()
            path.rename(path.with_name(f"{file.id}{_CONTENT}"))
            _write(path.with_name(f"{file.id}{_TOLD}"), json.dumps(asdict(file)).encode())
            return file

    def discard(self, draft: BinaryIO) -> None:
        """Forgets what was written."""
        draft.close()
        Path(draft.name).unlink(missing_ok=True)

    def get(self, owner: str, file_id: str) -> StoredFile:
        """What is told of a file.

        Raises:
            FileNotFound: this owner has none of this id.
        """
        file = self._read(self._path(owner, file_id, _TOLD))
        if file is None or file.expires_at <= self._clock():
            raise _missing(file_id)
        return file

    def path_of(self, owner: str, file_id: str) -> Path:
        """Where a file's content is.

        Raises:
            FileNotFound: this owner has none of this id.
        """
        self.get(owner, file_id)
        return self._path(owner, file_id, _CONTENT)

    def all_of(self, owner: str) -> list[StoredFile]:
        """An owner's files, newest first."""
        now = self._clock()
        found = [self._read(path) for path in self._of(owner).glob(f"file-*{_TOLD}")]
        there = [file for file in found if file and file.expires_at > now]
        return sorted(there, key=lambda file: (file.created_at, file.id), reverse=True)

    def delete(self, owner: str, file_id: str) -> None:
        """Removes a file.

        Raises:
            FileNotFound: this owner has none of this id.
        """
        self.get(owner, file_id)
        with _storage():
            self._path(owner, file_id, _TOLD).unlink(missing_ok=True)
            self._path(owner, file_id, _CONTENT).unlink(missing_ok=True)

    def hide(self, owner: str, file_id: str) -> None:
        """Remembers that a file which is made of a batch's results is wanted no more."""
        with _storage():
            private_folder(self._folder, SETTING)
            private_folder(self._of(owner), SETTING)
            _write(self._path(owner, file_id, _GONE), b"")

    def is_hidden(self, owner: str, file_id: str) -> bool:
        return self._path(owner, file_id, _GONE).exists()

    def _of(self, owner: str) -> Path:
        # Names of callers may be anything; this one is a folder's name and nothing else.
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]

    def _path(self, owner: str, file_id: str, suffix: str) -> Path:
        if not _ID.fullmatch(file_id):
            raise _missing(file_id)
        return self._of(owner) / f"{file_id}{suffix}"

    @staticmethod
    def _read(path: Path) -> StoredFile | None:
        try:
            return StoredFile(**json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _tidy(self, folder: Path) -> None:
        """Removes what has expired, and what nobody will ever finish."""
        now = self._clock()
        ages = {_DRAFT: _DRAFT_SECONDS, _GONE: self._max_age}
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.suffix == _TOLD:
                    file = self._read(path)
                    if file is None or file.expires_at <= now:
                        path.unlink()
                        path.with_suffix(_CONTENT).unlink(missing_ok=True)
                elif path.suffix in ages and path.stat().st_mtime < now - ages[path.suffix]:
                    path.unlink()


def _missing(file_id: str) -> FileNotFound:
    return FileNotFound(f"there is no file {file_id[:80]!r} of yours")


def _write(path: Path, content: bytes) -> None:
    """Writes a file that appears whole, and stays."""
    draft = path.with_name(f"{secrets.token_hex(12)}{_DRAFT}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _storage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"the file could not be kept: {error.strerror or type(error).__name__}",
            reason=Unavailable.STORAGE,
            retry_after=_STORAGE_RETRY_SECONDS,
        ) from error
