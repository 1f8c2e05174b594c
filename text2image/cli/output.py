"""Where pictures go: a folder, where each gets a name of its own, or the file that was named."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.messages import Picture
from text2image.gateway.store import Store

# Saves a picture and returns its path.
Save = Callable[[Picture], str]


def saver(output: str | None, title: str, n: int) -> Save:
    """What saves the `n` pictures of a request; made before they are drawn, so that no work is lost on a bad path.

    Args:
        output: a folder or a .png file; the current folder if None.
        title: what files in a folder are named after.

    Raises:
        InvalidRequest: the path is neither.
        OSError: it cannot be written.
    """
    path = Path(output or ".").expanduser()
    if path.is_dir() or (output or "").endswith(os.sep):
        _prepare(path)
        store = Store(path)
        return lambda picture: store.save(picture.png, title)
    if path.suffix.lower() != ".png":
        reason = (
            f"is {output!r}, and pictures are PNG: name a .png file, or a folder that is there, or "
            f"one to be made with {os.sep} at its end"
        )
        raise InvalidRequest(FieldViolation("--output", reason))
    _prepare(path.parent)

    def save(picture: Picture) -> str:
        place = path if n == 1 else path.with_stem(f"{path.stem}_{picture.index + 1}")
        picture.save(place)
        return str(place)

    return save


def save_request(
    store: Store, number: int, prompt: str, key: str, files: Sequence[tuple[bytes, str]]
) -> list[Path]:
    """Where the pictures of one request of many are; each appears whole, under a name that is its own each time.

    Args:
        number: its place among all, from 1.
        key: what it is known by.
        files: contents and suffixes.

    Raises:
        NotSaved: they cannot be written.
    """
    title = f"{number:05d} {prompt}"
    alone = len(files) == 1
    return [
        Path(store.save_once(content, title, key if alone else f"{key}_{index}", suffix))
        for index, (content, suffix) in enumerate(files, 1)
    ]


def _prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
