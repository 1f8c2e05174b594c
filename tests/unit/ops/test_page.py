"""The process of the page: started again when it ends, and ended with what started it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT, eventually
from text2image.core import extras
from text2image.core.settings import Settings
from text2image.ops import page
from text2image.ops.page import Page, command

# Writes its process id into a new file of the current folder, and ends when it is told to.
NOTE = "import os, sys, time; open(f'{sys.argv[1]}/{os.getpid()}', 'x'); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + NOTE


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[[str], Page]]:
    """Starts a page that is a script of the test's, given the test's folder."""
    started = []

    def start(script: str) -> Page:
        started.append(Page((sys.executable, "-c", script, str(tmp_path))))
        started[-1].start()
        return started[-1]

    yield start
    for kept in started:
        kept.stop()


def notes(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_page_that_ends_by_itself_is_started_again(
    keep: Callable[[str], Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "RESTART_PAUSE", 0.0)
    keep(NOTE.replace("time.sleep(600)", "0"))
    eventually(lambda: len(notes(tmp_path)) > 2, "it was started again")


@pytest.mark.parametrize("script", [NOTE, STUBBORN])
def test_a_page_that_is_stopped_stays_so(
    keep: Callable[[str], Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(page, "RESTART_PAUSE", 0.0)
    monkeypatch.setattr(page, "END_SECONDS", 1.0)
    kept = keep(script)
    eventually(lambda: notes(tmp_path), "it was started")
    kept.stop()
    (pid,) = notes(tmp_path)
    assert not lives(pid)


def test_the_page_goes_with_the_process_that_shows_it(tmp_path: Path) -> None:
    script = (
        "from text2image.page import Page;"
        f"Page((sys.executable, '-c', {NOTE!r}, {str(tmp_path)!r})).start();"
        f"[time.sleep(0.05) for _ in iter(lambda: any(Path({str(tmp_path)!r}).iterdir()), True)]"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys, time; from pathlib import Path; {script}"],
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    (pid,) = notes(tmp_path)
    assert not lives(pid)


def test_it_is_shown_where_the_settings_say() -> None:
    words = command(Settings(HOST="0.0.0.0", page_port=9000))
    assert words[words.index("--server.port") + 1] == "9000"
    assert words[words.index("--server.address") + 1] == "0.0.0.0"


def test_without_streamlit_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"requirements/page\.txt"):
        page.main()
