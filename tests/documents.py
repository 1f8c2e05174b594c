"""The documents as tests read them: their text, and the blocks of code in it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# What a reader of the product reads, the README first.
DOCUMENTS = [
    README,
    *sorted(ROOT.glob("docs/**/*.md")),
    ROOT / "deploy" / "README.md",
    ROOT / "examples" / "README.md",
]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_NO_ANCHOR = re.compile(r"[^\w\- ]")
_INLINE = re.compile(r"`([^`\n]+)`")


def blocks(document: Path, language: str, start: str = "") -> list[str]:
    """The blocks of a language that hold `start`, of which there must be one."""
    found = [text for kind, text in _BLOCK.findall(document.read_text()) if kind == language]
    found = [text for text in found if start in text]
    assert found, f"{document.relative_to(ROOT)} has no {language} block with {start!r}"
    return found


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return _BLOCK.sub("", document.read_text())


def code(document: Path) -> list[str]:
    """All code of a document, in blocks and in lines."""
    inline = _INLINE.findall(prose(document))
    return [*inline, *(text for _, text in _BLOCK.findall(document.read_text()))]


def anchors(document: Path) -> set[str]:
    """What a link into a document may name, as GitHub makes it of the headings."""
    titles = (title.lower() for title in _HEADING.findall(prose(document)))
    return {_NO_ANCHOR.sub("", title).replace(" ", "-") for title in titles}


def run(command: list[str], folder: Path) -> str:
    """The standard output of a document's command, typed in a folder, that must succeed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
