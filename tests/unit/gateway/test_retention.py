"""Saved pictures are kept for ever, or within a bound: the oldest go first, and nothing else in the folder does."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.samples import MODEL, REQUEST
from text2image.core.formats import Encoding, FileFormat
from text2image.core.messages import Pixels
from text2image.core.settings import Settings
from text2image.gateway import metadata
from text2image.gateway.encoding import convert
from text2image.gateway.remote_store import store_of
from text2image.gateway.retention import LOOK_SECONDS, Retention
from text2image.gateway.store import Store

PNG = metadata.encode(Pixels(8, 8, bytes(192)), metadata.describe(REQUEST, 7, MODEL))
SIZE = len(PNG)
Usage = namedtuple("Usage", "total used free")


class Folder:
    """Pictures saved one second after the other, on a clock of the test's."""

    def __init__(self, path: Path, **bounds: float) -> None:
        self.now = 1e9
        self.path = path
        self._store = Store(path, Retention(path, clock=lambda: self.now, **bounds))  # type: ignore[arg-type]

    def save(self) -> Path:
        self.now += 1
        path = Path(self._store.save(PNG, f"fox {self.now:.0f}"))
        os.utime(path, (self.now, self.now))
        return path

    def total(self) -> int:
        return sum(path.stat().st_size for path in self.path.glob("*.png"))


def test_without_a_bound_everything_is_kept(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert all(path.exists() for path in [folder.save() for _ in range(50)])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 40))
def test_the_folder_never_holds_more_than_its_bound_and_the_oldest_go_first(
    room: int, count: int
) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(Path(path), max_bytes=room * SIZE)
        saved = []
        for _ in range(count):
            saved.append(folder.save())
            assert folder.total() <= room * SIZE
        kept = [path.exists() for path in saved]
        assert kept == sorted(kept), "what is kept is the newest"
        assert kept[-1]


def test_what_is_too_old_is_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path, max_age=100)
    old = folder.save()
    folder.now += LOOK_SECONDS
    young = folder.save()
    folder.now += LOOK_SECONDS
    newest = folder.save()
    assert [path.exists() for path in (old, young, newest)] == [False, True, True]


def test_what_others_put_there_is_left_alone(tmp_path: Path) -> None:
    foreign = {
        "holiday.png": b"\x89PNG a holiday",
        "holiday_20240101_120000.png": b"\x89PNG named as ours are",
        "notes.txt": b"notes",
        "mine.png": PNG,
    }
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (1, 1))
    folder = Folder(tmp_path, max_bytes=2 * SIZE, max_age=10)
    for _ in range(20):
        folder.save()
    for name, content in foreign.items():
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("form", FileFormat)
def test_pictures_of_every_form_are_ours(tmp_path: Path, form: FileFormat) -> None:
    store = Store(tmp_path, Retention(tmp_path, max_bytes=1))
    file = convert(PNG, Encoding(form))
    first = Path(store.save(file, "one", form.suffix))
    os.utime(first, (1, 1))
    last = Path(store.save(file, "two", form.suffix))
    assert [path.exists() for path in (first, last)] == [False, True]


def test_several_gateways_keep_one_folder_within_its_bound(tmp_path: Path) -> None:
    """Each looks through it now and then, and so finds what the others have saved."""
    one, other = (Folder(tmp_path, max_bytes=8 * SIZE) for _ in range(2))
    for _ in range(10):
        one.save()
        other.save()
    one.now = other.now = one.now + LOOK_SECONDS
    one.save()
    assert one.total() <= 8 * SIZE


def test_a_disk_that_is_nearly_full_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    folder = Folder(tmp_path)
    for free, told in ((50, 0), (4, 1), (3, 1), (6, 1), (20, 1), (2, 2)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(100, 0, free))
        folder.save()
        assert caplog.text.count("nearly full") == told


def test_a_bucket_has_rules_of_its_own() -> None:
    with pytest.raises(SystemExit, match="lifecycle"):
        store_of(Settings(output_dir="memory://pictures", save_max_bytes=1 << 30))
