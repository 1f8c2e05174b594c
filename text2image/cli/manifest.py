"""What a folder of a batch remembers of its pictures, so that the same command goes on where it was ended.

One line of JSON for each request, written when its pictures are there: whatever ends the command in between, a line
tells the truth, and what has none is drawn (again, to the same names).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

NAME = "manifest.jsonl"
DRAWN, FAILED = "drawn", "failed"


class FolderTaken(Exception):
    """Another command is at work in the folder; the text says so."""


class Manifest:
    """The manifest of one folder, which nobody else writes to meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Opens it, or begins one.

        Raises:
            FolderTaken: another command has it.
            OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise FolderTaken(f"another batch is being drawn to {folder}") from None
        self._files = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def files_of(self, key: str) -> list[str] | None:
        """Names of a request's pictures; None if they were not drawn, or are no longer all there."""
        names = self._files.get(key)
        if names is None or not all((self._folder / name).is_file() for name in names):
            return None
        return names

    def drawn(self, key: str, names: Sequence[str], told: Mapping[str, Any]) -> None:
        """Takes note of pictures that are there, and of what else is to be told of them."""
        self._write({"key": key, "status": DRAWN, "files": list(names), **told})
        self._files[key] = list(names)

    def failed(self, key: str, error: str, told: Mapping[str, Any]) -> None:
        """Takes note of a request that could not be drawn; it is drawn the next time."""
        self._write({"key": key, "status": FAILED, "error": error, **told})

    def _read(self) -> dict[str, list[str]]:
        content = (self._folder / NAME).read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            # The command was killed while it wrote the last line.
            os.ftruncate(self._file, len(whole))
        files: dict[str, list[str]] = {}
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                if record["status"] == DRAWN:
                    files[record["key"]] = [str(name) for name in record["files"]]
            except (ValueError, KeyError, TypeError):
                # Somebody's edit; what it was about is drawn again.
                continue
        return files

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        written = 0
        while written < len(line):
            written += os.write(self._file, line[written:])
