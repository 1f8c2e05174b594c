"""Files that clients upload for batches: on disk, each its owner's alone, bounded in size and age.

A file is there when what is told of it is there, which is written last; whatever ends the process in between leaves a
part, which is removed later. Several processes may share the folder. Blocking: call it off the event loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from text2image.core.errors import FileNotFound, PayloadTooLarge, Unavailable
from text2image.core.folders import private_folder

_SETTING = "T2I_DATA_DIR"
_ID = re.compile(r"file-[0-9a-z_-]{8,80}", re.ASCII)
_TOLD, _CONTENT, _PART, _GONE = ".json", ".data", ".part", ".gone"
_LOCK = "lock"
# Of one owner, however small they are.
_MOST_FILES = 10_000
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
        owner_bytes: int,
        all_bytes: int,
        max_age: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            owner_bytes, all_bytes: what the files of one owner may have together, and those of all.
            max_age: seconds that a file is kept where its owner asks for no less.
        """
        self._folder = folder
        self._owner_bytes = owner_bytes
        self._all_bytes = all_bytes
        self._max_age = max_age
        self._clock = clock

    def add(
        self, owner: str, source: BinaryIO, name: str, seconds: float | None = None
    ) -> StoredFile:
        """Keeps what can be read from `source`, durably; removes what has expired of anybody's.

        Args:
            name: what the client calls it, which is told again and used for nothing else.
            seconds: that it is kept, where that is less than `max_age`.

        Raises:
            PayloadTooLarge: with it there would be too much.
            Unavailable: it could not be written.
        """
        with storage():
            folder = self._of(owner)
            private_folder(self._folder, _SETTING)
            with self._locked():
                private_folder(folder, _SETTING)
                self._tidy()
                size = source.seek(0, os.SEEK_END)
                self._require_room(owner, size)
                now = self._clock()
                life = min(self._max_age, self._max_age if seconds is None else seconds)
                file = StoredFile(f"file-{secrets.token_hex(12)}", name, size, now, now + life)
                source.seek(0)
                _write(folder / f"{file.id}{_CONTENT}", source)
                self._tell(folder, file)
                return file

    def get(self, owner: str, file_id: str) -> StoredFile:
        """What is told of a file.

        Raises:
            FileNotFound: this owner has none of this id.
            Unavailable: the disk cannot be read.
        """
        file = _read(self._path(owner, file_id, _TOLD))
        if file is None or file.expires_at <= self._clock():
            raise _missing(file_id)
        return file

    def open(self, owner: str, file_id: str) -> BinaryIO:
        """A file's content, which stays readable if the file is deleted meanwhile.

        Raises:
            FileNotFound: this owner has none of this id.
            Unavailable: the disk cannot be read.
        """
        self.get(owner, file_id)
        with storage():
            try:
                return self._path(owner, file_id, _CONTENT).open("rb")
            except FileNotFoundError:
                raise _missing(file_id) from None

    def all_of(self, owner: str) -> list[StoredFile]:
        """An owner's files, newest first."""
        now = self._clock()
        found = map(_read, self._of(owner).glob(f"*{_TOLD}"))
        there = [file for file in found if file and file.expires_at > now]
        return sorted(there, key=lambda file: (file.created_at, file.id), reverse=True)

    def delete(self, owner: str, file_id: str) -> None:
        """Removes a file.

        Raises:
            FileNotFound: this owner has none of this id.
            Unavailable: the disk cannot be written.
        """
        self.get(owner, file_id)
        with storage():
            self._path(owner, file_id, _TOLD).unlink(missing_ok=True)
            self._path(owner, file_id, _CONTENT).unlink(missing_ok=True)

    def hide(self, owner: str, file_id: str) -> None:
        """Remembers that a file which is made of a batch's results is wanted no more."""
        with storage():
            private_folder(self._folder, _SETTING)
            with self._locked():
                private_folder(self._of(owner), _SETTING)
                self._path(owner, file_id, _GONE).touch()

    def is_hidden(self, owner: str, file_id: str) -> bool:
        return self._path(owner, file_id, _GONE).exists()

    def _of(self, owner: str) -> Path:
        # Names of callers may be anything; this one is a folder's name and nothing else.
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]

    def _path(self, owner: str, file_id: str, suffix: str) -> Path:
        if not _ID.fullmatch(file_id):
            raise _missing(file_id)
        return self._of(owner) / f"{file_id}{suffix}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, among all processes, so that two files together stay within the limits as well."""
        with (self._folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _require_room(self, owner: str, size: int) -> None:
        files = self.all_of(owner)
        if len(files) >= _MOST_FILES:
            raise PayloadTooLarge(f"you have {len(files)} files, and no more are kept; delete some")
        own = sum(file.bytes for file in files) + size
        if own > self._owner_bytes:
            raise PayloadTooLarge(
                f"with this one of {size} bytes your files would have {own}; at most {self._owner_bytes} are kept "
                "(T2I_BATCH_FILES_BYTES), so delete some"
            )
        every = sum(path.stat().st_size for path in self._folder.glob(f"*/*{_CONTENT}")) + size
        if every > self._all_bytes:
            raise PayloadTooLarge(
                f"with this file of {size} bytes the server would keep {every} of all callers, and it keeps "
                f"{self._all_bytes} (T2I_BATCH_ALL_FILES_BYTES); delete some of yours, or send it later"
            )

    def _tell(self, folder: Path, file: StoredFile) -> None:
        part = folder / f"{file.id}{_TOLD}{_PART}"
        part.write_text(json.dumps(asdict(file)))
        _sync(part)
        part.replace(part.with_suffix(""))
        _sync(folder)

    def _tidy(self) -> None:
        """Removes what has expired, and what nobody will ever finish: whoever could, would hold the lock."""
        now = self._clock()
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                match path.suffix:
                    case ".json":
                        file = _read(path)
                        if file is None or file.expires_at <= now:
                            path.unlink()
                            path.with_suffix(_CONTENT).unlink(missing_ok=True)
                    case ".data":
                        if not path.with_suffix(_TOLD).exists():
                            path.unlink()
                    case ".part":
                        path.unlink()
                    case ".gone":
                        # As old as the jobs that are kept, and so are the results that it hides.
                        if path.stat().st_mtime < now - self._max_age:
                            path.unlink()


def _missing(file_id: str) -> FileNotFound:
    return FileNotFound(f"there is no file {file_id[:80]!r} of yours")


def _read(path: Path) -> StoredFile | None:
    try:
        with storage():
            return StoredFile(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(path: Path, source: BinaryIO) -> None:
    try:
        with path.open("xb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    found = os.open(path, os.O_RDONLY)
    try:
        os.fsync(found)
    finally:
        os.close(found)


@contextlib.contextmanager
def storage() -> Iterator[None]:
    """Tells of a disk that is full or away as `Unavailable`; what is not there remains a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(
            f"the server's disk cannot be used now: {error.strerror or type(error).__name__}",
            reason=Unavailable.STORAGE,
            retry_after=_STORAGE_RETRY_SECONDS,
        ) from error
