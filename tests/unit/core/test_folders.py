"""The sockets' folder is this user's alone, or the server does not start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from text2image.core.folders import FolderInUse, claim_folder, own_folder, private_folder
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


@contextmanager
def other_server(chosen: Path | None = None) -> Iterator[Path]:
    """Another process that has claimed a folder, which it names; it is killed in the end."""
    program = (
        "import sys; from pathlib import Path; from text2image.core.folders import claim_folder\n"
        "print(claim_folder(*map(Path, sys.argv[1:])), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *([chosen] if chosen else [])],
        env={**os.environ, "TMPDIR": tempfile.gettempdir()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


def test_each_server_has_a_folder_of_its_own(temporary: Path) -> None:
    with other_server() as one, other_server() as other:
        folders = {claim_folder(), claim_folder(), one, other}
        assert len(folders) == 4
        for folder in folders:
            assert mode(folder) == 0o700
            assert folder.parent == own_folder()


def test_what_a_killed_server_has_left_goes_with_the_next_start(temporary: Path) -> None:
    with other_server() as living:
        with other_server() as killed:
            (killed / "metrics").mkdir()
            (killed / "metrics" / "counter_1.db").touch()
        assert killed.exists()
        claim_folder()
        assert not killed.exists()
        assert living.exists()


def test_a_chosen_folder_is_one_servers_alone(tmp_path: Path) -> None:
    with other_server(tmp_path / "run"), pytest.raises(FolderInUse, match=str(tmp_path / "run")):
        claim_folder(tmp_path / "run")
    assert claim_folder(tmp_path / "run") == tmp_path / "run"
