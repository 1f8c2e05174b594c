"""A prompt that has what the list denies is found, however it is written, and one that has not is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text2image.core.settings import Settings
from text2image.gateway.denylist import DenyList, require_denylist

LINES = """# people
blood

red  Fox
/gun(s|man)?\\b/
c++
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "denied.txt"
    file.write_text(LINES)
    return file


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("a cat", None),
        ("", None),
        ("bloodhound, bloody", None),
        ("much blood", 2),
        ("BLOOD!", 2),
        ("(blood:1.3)", 2),
        ("bl(oo:1.2)d", 2),
        ("[bl]ood", 2),
        ("bl\u200bood", 2),
        ("\uff42\uff4c\uff4f\uff4f\uff44", 2),
        ("a red\n fox", 4),
        ("red, fox", None),
        ("a Shotgun", 5),
        ("gunpowder", None),
        ("in C++, please", 6),
        ("in c+", None),
    ],
)
def test_words_and_phrases_are_found_whole_and_patterns_anywhere(
    file: Path, prompt: str, line: int | None
) -> None:
    assert DenyList(file).line_of(prompt) == line


@given(st.text(), st.text("([{}])\\:1.2 \n"))
def test_any_prompt_can_be_looked_at(text: str, syntax: str) -> None:
    file = Path(__file__).with_name("test_denylist.py")
    denied = DenyList.__new__(DenyList)
    denied._path, denied._patterns, denied._told = file, [], ""
    denied._stamp = denied._look()
    assert denied.line_of(text + syntax) is None


def test_a_list_that_changes_is_read_again_and_a_bad_one_leaves_what_was(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    denied = DenyList(file)
    file.write_text("tree\n")
    assert (denied.line_of("blood"), denied.line_of("a tree")) == (None, 1)
    file.write_text("/(/\n")
    assert denied.line_of("a tree") == denied.line_of("a tree") == 1
    assert sum("line 1, '/(/', is no pattern" in line for line in caplog.messages) == 1
    file.unlink()
    assert denied.line_of("a tree") == 1
    file.write_text("cat\n")
    os.utime(file, (0, 0))
    assert (denied.line_of("a tree"), denied.line_of("cat")) == (None, 1)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"\xff\xfe", "no text in UTF-8"), (b"a\n/[/\n", "line 2, '/[/'")],
)
def test_what_is_no_list_is_told_in_one_line(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    file = tmp_path / "denied.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        require_denylist(Settings(prompt_denylist=file))
    text = str(ended.value)
    assert text.startswith(f"text2image: T2I_PROMPT_DENYLIST={file}: ")
    assert told in text
    assert "\n" not in text
