"""A folder's manifest tells the truth whatever has ended the command that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from text2image.cli.manifest import NAME, FolderTaken, Manifest
from text2image.cli.tasks import tasks_of
from text2image.core.tables import Row


def test_what_was_drawn_is_known_and_what_failed_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    with Manifest(tmp_path) as manifest:
        manifest.drawn("one", ["a.png"], {"seeds": [1]})
        manifest.failed("two", "no", {})
        assert manifest.files_of("one") == ["a.png"]
    with Manifest(tmp_path) as manifest:
        assert manifest.files_of("one") == ["a.png"]
        assert manifest.files_of("two") is None


def test_pictures_that_are_gone_are_not_there(tmp_path: Path) -> None:
    with Manifest(tmp_path) as manifest:
        manifest.drawn("one", ["a.png"], {})
        assert manifest.files_of("one") is None


def test_a_line_that_was_cut_off_at_any_byte_is_as_if_it_had_not_been_begun(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    with Manifest(tmp_path) as manifest:
        manifest.drawn("one", ["a.png"], {"seeds": [1]})
    first = (tmp_path / NAME).read_bytes()
    with Manifest(tmp_path) as manifest:
        manifest.drawn("two", ["a.png"], {"seeds": [2]})
    whole = (tmp_path / NAME).read_bytes()
    for end in range(len(first), len(whole)):
        (tmp_path / NAME).write_bytes(whole[:end])
        with Manifest(tmp_path) as manifest:
            assert manifest.files_of("one")
            assert manifest.files_of("two") is None
            manifest.drawn("two", ["a.png"], {"seeds": [2]})
        assert (tmp_path / NAME).read_bytes() == whole


def test_two_commands_do_not_draw_to_one_folder(tmp_path: Path) -> None:
    with Manifest(tmp_path), pytest.raises(FolderTaken, match="another batch"):
        Manifest(tmp_path)
    Manifest(tmp_path).__exit__()


def test_a_request_keeps_its_key_when_others_come_before_it() -> None:
    fox, cat = Row(1, {"prompt": "a fox"}), Row(2, {"prompt": "a cat", "seed": 1})
    (alone,) = tasks_of([cat])
    _, behind = tasks_of([fox, cat])
    assert alone.key == behind.key
    # The same twice is two requests.
    one, other = tasks_of([fox, fox])
    assert one.key != other.key
