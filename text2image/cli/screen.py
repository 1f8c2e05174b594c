"""What a person sees meanwhile, on standard error: words, and on a terminal a bar that grows."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_BAR_WIDTH = 30


class Screen:
    """Lines, and below them the bar. Not on a terminal there is no bar; when quiet there are only errors."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = Console(
            file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._progress = Progress(
            BarColumn(_BAR_WIDTH),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
            # The paths of pictures go to standard output as they are.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar = self._progress.add_task("")

    def say(self, words: str) -> None:
        """A line of its own."""
        if not self.quiet:
            self._line(words)

    def fail(self, words: str) -> None:
        """An error, as one line whatever it holds."""
        self._line(f"text2image: {' '.join(words.split())}")

    def bar(self, done: int, total: int, words: str) -> None:
        """Shows `done` of `total` in place of the last bar."""
        self._show(words, done, total)

    def note(self, words: str) -> None:
        """What is being done just now: in the bar's place, or a line where there is none."""
        if self._console.is_terminal:
            self._show(words, 0, None)
        else:
            self.say(words)

    def clear(self) -> None:
        """Takes the bar away."""
        if self._progress.live.is_started:
            self._progress.stop()

    def _show(self, words: str, done: int, total: int | None) -> None:
        if self._console.is_terminal and not self.quiet:
            self._progress.update(self._bar, completed=done, total=total, description=words)
            self._progress.start()
            self._progress.refresh()

    def _line(self, words: str) -> None:
        self.clear()
        self._console.print(words)
