"""Saving pictures: names that tell what is in them, each written once and whole, nothing outside the folder."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Protocol

from text2image.gateway.retention import Retention

logger = logging.getLogger(__name__)

SLUG_BYTES = 80
NAMELESS = "picture"
# Words that tell pictures apart badly.
_SMALL_WORDS = frozenset(
    (
        "a",
        "an",
        "and",
        "at",
        "by",
        "for",
        "from",
        "in",
        "into",
        "of",
        "on",
        "or",
        "the",
        "to",
        "with",
    )
)


class NotSaved(Exception):
    """The picture could not be saved; the text says why, in the system's words."""


class Storage(Protocol):
    """Saves pictures in one place, PNG where no other suffix is named. Blocking: call it off the event loop."""

    def save(self, file: bytes, title: str, suffix: str = ".png") -> str:
        """Writes a picture under a name made of `title` and the time, and returns where it is.

        Raises:
            NotSaved: it cannot be written.
        """
        ...

    def save_once(self, file: bytes, title: str, mark: str, suffix: str = ".png") -> str:
        """Writes a picture under a name made of `title` and `mark`, which is its own alone, and returns where it is.

        Raises:
            NotSaved: it cannot be written.
        """
        ...

    def path_of(self, title: str, mark: str, suffix: str = ".png") -> str:
        """Where `save_once` writes."""
        ...

    def holds(self, path: str, file: bytes) -> bool:
        """Whether a picture that was saved there is still there."""
        ...


class Store:
    """Saves pictures in one folder of this machine."""

    def __init__(self, folder: Path, retention: Retention | None = None) -> None:
        self._folder = folder
        self._retention = retention or Retention(folder)

    def save(self, file: bytes, title: str, suffix: str = ".png") -> str:
        """Writes a picture under a name made of `title` and the time, and returns its path.

        Raises:
            NotSaved: the folder cannot be written, or the disk is full.
        """
        with self._saving(), _draft(self._folder, file) as draft:
            path = _publish(draft, self._folder, stamped(title), suffix)
            self._retention.saved(len(file))
        return str(path)

    def save_once(self, file: bytes, title: str, mark: str, suffix: str = ".png") -> str:
        """Writes a picture under a name made of `title` and `mark`, which is its own alone, and returns its path.

        What lies there by another content is replaced, so there is never more than this one file.

        Raises:
            NotSaved: the folder cannot be written, or the disk is full.
        """
        path = self.path_of(title, mark, suffix)
        with self._saving(), _draft(self._folder, file) as draft:
            draft.replace(path)
            self._retention.saved(len(file))
        return path

    def path_of(self, title: str, mark: str, suffix: str = ".png") -> str:
        """Where `save_once` writes."""
        return str(self._folder / marked(title, mark, suffix))

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            # The error's own text may name the file, and with it words of the prompt.
            reason = error.strerror or type(error).__name__
            logger.warning("a picture could not be saved in %s: %s", self._folder, reason)
            raise NotSaved(reason) from error

    def holds(self, path: str, file: bytes) -> bool:
        """Whether a file that was saved is still there, and still this picture."""
        saved = Path(path)
        try:
            return saved.parent == self._folder and saved.read_bytes() == file
        except OSError:
            return False


def slug(title: str) -> str:
    """The words of a title, lower case, joined by underscores, at most `SLUG_BYTES` long as UTF-8.

    Only letters, marks and digits are left, so it holds nothing that a file system takes for a path.
    """
    text = unicodedata.normalize("NFKC", title).lower()
    words = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in text)
    kept = ""
    for word in (word for word in words.split() if word not in _SMALL_WORDS):
        longer = f"{kept}_{word}" if kept else word
        if len(longer.encode()) > SLUG_BYTES:
            kept = kept or word.encode()[:SLUG_BYTES].decode(errors="ignore")
            break
        kept = longer
    return kept or NAMELESS


def stamped(title: str) -> str:
    """What the name of a picture drawn now begins with."""
    return f"{slug(title)}_{datetime.now():%Y%m%d_%H%M%S}"


def marked(title: str, mark: str, suffix: str = ".png") -> str:
    """The file name of the one picture with this mark."""
    return f"{slug(title)}_{mark}{suffix}"


@contextlib.contextmanager
def _draft(folder: Path, file: bytes) -> Iterator[Path]:
    """A whole file of the picture, to be given its name."""
    draft = folder / f".{secrets.token_hex(8)}.part"
    try:
        draft.write_bytes(file)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _publish(draft: Path, folder: Path, stem: str, suffix: str) -> Path:
    for name in _names(stem, suffix):
        path = folder / name
        try:
            # A link appears whole or not at all, and unlike a rename never takes the place of another file.
            os.link(draft, path)
        except FileExistsError:
            continue
        except OSError:
            # This file system has no hard links; a long random name is as good as never taken.
            path = folder / f"{stem}_{secrets.token_hex(8)}{suffix}"
            draft.replace(path)
        return path
    raise AssertionError("names do not end")


def _names(stem: str, suffix: str) -> Iterator[str]:
    yield f"{stem}{suffix}"
    while True:
        yield f"{stem}_{secrets.token_hex(4)}{suffix}"
