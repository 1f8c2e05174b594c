"""Files: named for what is in them, unique, whole, inside the folder; and a full disk is no catastrophe."""

from __future__ import annotations

import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text2image.gateway.store import NAMELESS, SLUG_BYTES, NotSaved, Store, slug


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("cyberpunk a futuristic city at night", "cyberpunk_futuristic_city_night"),
        ("  A Dragon's lair!", "dragon_s_lair"),
        ("../../etc/passwd", "etc_passwd"),
        ("ein schöner Fuchs", "ein_schöner_fuchs"),
        ("夜の街", "夜の街"),
        ("", NAMELESS),
        ("🦊🦊", NAMELESS),
        ("the", NAMELESS),
        ("x" * 500, "x" * SLUG_BYTES),
    ],
)
def test_names_tell_what_is_in_a_file(title: str, expected: str) -> None:
    assert slug(title) == expected


@given(st.text())
def test_a_name_is_never_a_path_and_never_too_long(title: str) -> None:
    name = slug(title)
    assert name
    assert len(name.encode()) <= SLUG_BYTES
    assert not set(name) & set("/\\.:\0\n ")


def test_the_name_ends_in_the_time(tmp_path: Path) -> None:
    path = Path(Store(tmp_path / "new" / "folder").save(b"png", "a fox"))
    assert path.parent == tmp_path / "new" / "folder"
    assert re.fullmatch(r"fox_\d{8}_\d{6}\.png", path.name)
    assert path.read_bytes() == b"png"


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no links"])
def test_names_are_unique_under_concurrency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path)
    contents = [str(number).encode() for number in range(200)]
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda content: store.save(content, "same"), contents))
    assert len(set(paths)) == len(contents)
    assert [Path(path).read_bytes() for path in paths] == contents
    assert sorted(map(str, tmp_path.iterdir())) == sorted(paths)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(NotSaved, match="No space left"):
        Store(tmp_path).save(b"png", "a fox")
    with pytest.raises(NotSaved, match="No space left"):
        Store(tmp_path).save_once(b"png", "a fox", "0123")
    assert not list(tmp_path.iterdir())


def test_a_mark_is_one_file_with_its_latest_picture(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for content in (b"cut", b"whole", b"whole"):
        path = store.save_once(content, "a fox", "0123")
        assert path == store.path_of("a fox", "0123") == str(tmp_path / "fox_0123.png")
        assert store.holds(path, content)
    assert [str(file) for file in tmp_path.iterdir()] == [path]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotSaved):
        Store(tmp_path / "file" / "folder").save(b"png", "a fox")
