"""What a person sees meanwhile, on standard error: words, and on a terminal a bar that grows."""

from __future__ import annotations

import shutil
from typing import TextIO

_BAR_WIDTH = 30
_ERASE = "\r\x1b[K"


class Screen:
    """Lines, and below them the bar. Not on a terminal there is no bar; when quiet there are only errors."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._stream = stream
        self._terminal = stream.isatty()
        self._filled, self._empty = "█░" if "utf" in (stream.encoding or "").lower() else "#-"
        self._has_bar = False

    def say(self, words: str) -> None:
        """A line of its own."""
        if not self.quiet:
            self._line(words)

    def fail(self, words: str) -> None:
        """An error, as one line whatever it holds."""
        self._line(f"text2image: {' '.join(words.split())}")

    def bar(self, done: int, total: int, words: str) -> None:
        """Shows `done` of `total` in place of the last bar."""
        if self._terminal:
            filled = _BAR_WIDTH * done // max(total, 1)
            self._passing(f"{self._filled * filled}{self._empty * (_BAR_WIDTH - filled)} {words}")

    def note(self, words: str) -> None:
        """What is being done just now: in the bar's place, or a line where there is none."""
        if self._terminal:
            self._passing(words)
        else:
            self.say(words)

    def clear(self) -> None:
        """Takes the bar away."""
        if self._has_bar:
            self._stream.write(_ERASE)
            self._stream.flush()
            self._has_bar = False

    def _passing(self, words: str) -> None:
        if not self.quiet:
            self._stream.write(f"{_ERASE}{words[: shutil.get_terminal_size().columns - 1]}")
            self._stream.flush()
            self._has_bar = True

    def _line(self, words: str) -> None:
        self.clear()
        self._stream.write(f"{words}\n")
        self._stream.flush()
