"""What one section has measured so far, on disk, so that it is there when the section is cut off."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Record:
    """Figures of one section, and what went wrong in parts of it."""

    def __init__(self, path: Path) -> None:
        self.figures: dict[str, Any] = {}
        self.errors: dict[str, str] = {}
        self._path = path

    def save(self) -> None:
        """Writes all that is there; nobody sees half a file."""
        written = self._path.with_suffix(".new")
        written.write_text(json.dumps({"figures": self.figures, "errors": self.errors}))
        written.replace(self._path)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part whose failure is noted, and keeps no other from being measured."""
        try:
            yield
        except Exception as error:
            self.errors[name] = f"{type(error).__name__}: {error}"[:500]
            traceback.print_exc()
        finally:
            self.save()


def read(path: Path) -> dict[str, Any]:
    """What a section has left: `figures` and `errors`."""
    found: dict[str, Any] = {"figures": {}, "errors": {}}
    if path.exists():
        found |= json.loads(path.read_text())
    return found
