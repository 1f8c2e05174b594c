"""How long saved pictures are kept: all, or the newest within a size or an age; and a word before the disk is full.

Nothing is removed but what a server of ours wrote: by its name, and by the parameters inside.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from text2image.gateway import metadata

logger = logging.getLogger(__name__)

# How full the folder is after room was made, so that not every picture makes it anew.
FULL_AGAIN = 0.95
# Seconds after which the folder is looked through all the same: other gateways may save there too.
LOOK_SECONDS = 60.0
# Shares of the disk that are free when it is told that it is nearly full, and when that is over.
NEARLY_FULL, ROOMY = 0.05, 0.07
# As `store.stamped` and `store.marked` make them.
_NAME = re.compile(r".+_(\d{8}_\d{6}(_[0-9a-f]{8,16})?|[0-9a-f]{12})\.(png|jpg|webp)")
_OURS = "Version: text2image "


@dataclass(frozen=True, slots=True, order=True)
class _Saved:
    at: float
    size: int
    path: Path


class Retention:
    """Keeps one folder within its bounds. Safe to use from several threads."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int | None = None,
        max_age: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            max_bytes: of all pictures together; None for no bound.
            max_age: seconds since a picture was saved; None for no bound.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._clock = clock
        self._lock = threading.Lock()
        self._total = 0
        self._looked_at = float("-inf")
        self._warned = False

    def saved(self, size: int) -> None:
        """Takes note of a picture of so many bytes, and removes the oldest where there is too much."""
        try:
            self._keep_within(size)
        except OSError as error:
            # The picture is saved all the same.
            logger.warning("%s could not be tidied: %s", self._folder, error.strerror)

    def _keep_within(self, size: int) -> None:
        self._watch_disk()
        if self._max_bytes is None and self._max_age is None:
            return
        with self._lock:
            self._total += size
            too_much = self._max_bytes is not None and self._total > self._max_bytes
            if too_much or self._clock() - self._looked_at >= LOOK_SECONDS:
                self._looked_at = self._clock()
                self._total = self._tidy()

    def _tidy(self) -> int:
        """Removes what is too old, and the oldest of what is too much; returns the bytes that stay."""
        pictures = sorted(self._pictures())
        total = sum(picture.size for picture in pictures)
        room = total
        if self._max_bytes is not None and total > self._max_bytes:
            room = int(self._max_bytes * FULL_AGAIN)
        too_old = float("-inf") if self._max_age is None else self._clock() - self._max_age
        newest = pictures[-1:]
        for picture in pictures:
            if picture in newest or (total <= room and picture.at >= too_old):
                break
            if _is_ours(picture.path):
                picture.path.unlink(missing_ok=True)
                total -= picture.size
        return total

    def _pictures(self) -> list[_Saved]:
        """What is named like a picture of ours, whoever saved it."""
        found = []
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.name):
                # Another gateway may have removed it.
                with contextlib.suppress(FileNotFoundError):
                    told = path.lstat()
                    found.append(_Saved(told.st_mtime, told.st_size, path))
        return found

    def _watch_disk(self) -> None:
        """Warns once that the disk is nearly full, and again only after there was room."""
        disk = shutil.disk_usage(self._folder)
        free = disk.free / disk.total
        if free < NEARLY_FULL and not self._warned:
            self._warned = True
            logger.warning(
                "the disk of %s is nearly full: %d MiB are free; "
                "T2I_SAVE_MAX_BYTES and T2I_SAVE_MAX_AGE bound what is kept",
                self._folder,
                disk.free >> 20,
            )
        elif free > ROOMY:
            self._warned = False


def _is_ours(path: Path) -> bool:
    """Whether the file says that a server of ours drew it."""
    try:
        return _OURS in metadata.read(path)
    except ValueError:
        return False
