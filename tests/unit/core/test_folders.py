"""The sockets' folder is this user's alone, or the server does not start."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from text2image.core.folders import own_folder, private_folder
from text2image.core.settings import Settings


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


def test_both_levels_of_the_default_are_made_for_this_user_alone(temporary: Path) -> None:
    folder = Settings(GRPC_PORT=1).socket_of(0).parent
    assert folder.parent.parent == temporary
    before = mode(temporary)
    for _ in range(2):
        private_folder(folder)
        assert [mode(folder), mode(folder.parent), mode(temporary)] == [0o700, 0o700, before]


def test_a_chosen_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    private_folder(tmp_path / "var" / "run")
    assert mode(tmp_path / "var" / "run") == 0o700


def link(folder: Path) -> None:
    target = folder.with_name("target")
    target.mkdir(0o700)
    folder.symlink_to(target)


BAD: dict[str, Callable[[Path], object]] = {
    "a link": link,
    "a link to nothing": lambda folder: folder.symlink_to("nothing"),
    "a file": lambda folder: folder.touch(0o600),
    "open to all": lambda folder: (folder.mkdir(), folder.chmod(0o777)),
    "open to readers": lambda folder: (folder.mkdir(), folder.chmod(0o755)),
}


@pytest.mark.parametrize("level", ["outer", "inner", "chosen"])
@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_a_folder_that_others_could_use_is_refused(
    temporary: Path, make: Callable[[Path], object], level: str
) -> None:
    folder = temporary / "chosen" if level == "chosen" else own_folder() / "50051"
    bad = folder.parent if level == "outer" else folder
    bad.parent.mkdir(mode=0o700, exist_ok=True)
    make(bad)
    with pytest.raises(PermissionError, match="T2I_RUNTIME_DIR") as raised:
        private_folder(folder)
    assert str(bad) in str(raised.value)


def test_a_folder_of_another_user_is_refused(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = temporary / "run"
    private_folder(folder)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(PermissionError, match="belongs to another user; set T2I_RUNTIME_DIR"):
        private_folder(folder)
