"""Prompts that are not drawn: a file of words, phrases and patterns, read again when it changes.

A line is a word or a phrase, which stands for itself as a whole, in any case and however many spaces lie between; or a
regular expression between slashes, found anywhere. Empty lines, and what begins with `#`, are skipped.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from pathlib import Path

from text2image.core import prompt_syntax
from text2image.core.settings import Settings

logger = logging.getLogger(__name__)


class BadDenyList(Exception):
    """The file cannot be used; the text says which line is wrong, and how."""


class DenyList:
    """Looks for what is denied in prompts. A file that cannot be read any more leaves what was read of it before."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            BadDenyList: it cannot be used.
        """
        self._path = path
        self._told = ""
        self._stamp = self._look()
        self._patterns = _read(path)

    def line_of(self, prompt: str) -> int | None:
        """The number of a line that denies a prompt, counted from 1; None if none does.

        The prompt is looked at as it stands, and less its syntax: `(w:1.2)ord` is a word.
        """
        self._follow()
        read = "".join(part.text for part in prompt_syntax.parse(prompt))
        texts = {_normal(text) for text in (prompt, read)}
        for line, pattern in self._patterns:
            if any(pattern.search(text) for text in texts):
                return line
        return None

    def _follow(self) -> None:
        # Looking costs a microsecond, so what is denied is denied from then on.
        stamp = self._look()
        if stamp == self._stamp:
            return
        try:
            self._patterns = _read(self._path)
        except BadDenyList as error:
            if str(error) != self._told:
                self._told = str(error)
                logger.error("%s; going on with the lines from before", error)
        else:
            self._stamp, self._told = stamp, ""
            logger.info("%s now holds %d lines", self._path, len(self._patterns))

    def _look(self) -> tuple[int, ...] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        # The second time cannot be set back by whoever writes.
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


def denylist_of(settings: Settings) -> DenyList | None:
    """What the settings deny prompts, or None.

    Raises:
        BadDenyList: the file cannot be used.
    """
    return DenyList(settings.prompt_denylist) if settings.prompt_denylist else None


def require_denylist(settings: Settings) -> None:
    """Does nothing if there is no file, or one that can be used.

    Raises:
        SystemExit: with one line that says what is wrong with it.
    """
    try:
        denylist_of(settings)
    except BadDenyList as error:
        raise SystemExit(f"text2image: {error}") from None


def _read(path: Path) -> list[tuple[int, re.Pattern[str]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadDenyList(f"T2I_PROMPT_DENYLIST={path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BadDenyList(f"T2I_PROMPT_DENYLIST={path}: is no text in UTF-8") from None
    patterns = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            patterns.append((number, _pattern(text)))
        except (re.error, OverflowError, RecursionError) as error:
            what = f"line {number}, {text[:80]!r}, is no pattern: {error}"
            raise BadDenyList(f"T2I_PROMPT_DENYLIST={path}: {what}") from None
    return patterns


def _pattern(text: str) -> re.Pattern[str]:
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        return re.compile(text[1:-1], re.IGNORECASE)
    words = r"\s+".join(map(re.escape, _normal(text).split()))
    # Where a word begins or ends with something else than a letter, there is no boundary to find.
    return re.compile(rf"(?<!\w){words}(?!\w)")


def _normal(text: str) -> str:
    """Letters that look alike by compatibility, as full-width ones, and invisible ones among them, made the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in folded if unicodedata.category(char) != "Cf")
