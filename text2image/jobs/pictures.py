"""The files of jobs' pictures. Their names hold the attempt, so that two who draw the same never write to one file."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from text2image.core.formats import Encoding
from text2image.core.messages import Picture
from text2image.jobs.records import PictureFile


class PictureFolder:
    """A folder for each job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, job_id: str, place: int, attempt: int, file: PictureFile) -> Path:
        suffix = Path(file.name).suffix
        return self._folder / job_id / f"{place}-{attempt}-{file.index}{suffix}"

    def write(
        self, job_id: str, place: int, attempt: int, pictures: list[Picture], encoding: Encoding
    ) -> tuple[PictureFile, ...]:
        """Writes an item's pictures and removes those of earlier attempts; they are on the disk when this returns.

        Raises:
            OSError: they could not be written; nothing of them is left.
        """
        folder = self._folder / job_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = tuple(_file_of(place, picture, encoding) for picture in pictures)
        try:
            for picture, file in zip(pictures, files, strict=True):
                _write(self.path(job_id, place, attempt, file), picture.file)
            _sync(folder)
        except BaseException:
            self.remove_attempt(job_id, place, attempt)
            raise
        # Before the result is kept, since nobody would come back for them if this process died right after that.
        self.remove_earlier(job_id, place, attempt)
        return files

    def remove_attempt(self, job_id: str, place: int, attempt: int) -> None:
        """Removes what one attempt has written."""
        self._remove(job_id, place, lambda other: other == attempt)

    def remove_earlier(self, job_id: str, place: int, attempt: int) -> None:
        """Removes what attempts before this one have written; none of them can be kept any more."""
        if attempt > 1:
            self._remove(job_id, place, lambda other: other < attempt)

    def _remove(self, job_id: str, place: int, of: Callable[[int], bool]) -> None:
        # What cannot be removed now goes with its job.
        with contextlib.suppress(OSError):
            for path in (self._folder / job_id).glob(f"{place}-*"):
                if of(int(path.name.split("-")[1])):
                    path.unlink()

    def remove_job(self, job_id: str) -> None:
        """Removes all pictures of a job.

        Raises:
            OSError: some are left.
        """
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder / job_id)


def _file_of(place: int, picture: Picture, encoding: Encoding) -> PictureFile:
    return PictureFile(
        index=picture.index,
        name=f"{place:05d}-{picture.index}{encoding.format.suffix}",
        media_type=encoding.format.media_type,
        size=len(picture.file),
        seed=picture.seed,
        width=picture.width,
        height=picture.height,
    )


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
