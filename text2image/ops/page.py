"""The page as a process: beside the server where T2I_PAGE_PORT is set, alone by `python -m text2image.page`.

Beside the server it is started again whenever it ends by itself, and ends with the server.
"""

from __future__ import annotations

import atexit
import logging
import os
import subprocess  # nosec B404
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread

from text2image.core.extras import require_extra
from text2image.core.lifecycle import end_with_parent
from text2image.core.settings import Settings, get_settings

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
# Where it listens when it is started alone and no port is set.
DEFAULT_PORT = 8501
# Seconds before a page that ended is started again, and that one which is told to end may take.
RESTART_PAUSE = 1.0
END_SECONDS = 5.0
_ALONE = (sys.executable, "-m", "text2image.page")


class Page:
    """Keeps a process of the page running until it is stopped, at the latest when this process ends."""

    def __init__(self, command: Sequence[str] = _ALONE) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = Event()
        self._thread = Thread(target=self._keep, name="page", daemon=True)

    def start(self) -> None:
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Returns when the page has ended."""
        self._stopping.set()
        if self._process:
            self._process.terminate()
        self._thread.join(END_SECONDS)
        if self._process and self._thread.is_alive():
            self._process.kill()
            self._thread.join(END_SECONDS)

    def _keep(self) -> None:
        while not self._stopping.is_set():
            # In a session of its own: Ctrl-C is for the server, which ends the page after what it has admitted. The
            # command is made here, and no shell reads it.
            self._process = subprocess.Popen(  # nosec B603
                self._command, env=_environment(), start_new_session=True
            )
            if self._stopping.is_set():
                # It was started while `stop` looked for one.
                self._process.terminate()
            self._process.wait()
            if not self._stopping.wait(RESTART_PAUSE):
                logger.warning("the page ended by itself, and is started again")


def command(settings: Settings) -> list[str]:
    """What shows the page."""
    return [
        *(sys.executable, "-m", "streamlit", "run", str(ROOT / "frontend" / "app.py")),
        *("--server.address", settings.host),
        *("--server.port", str(settings.page_port or DEFAULT_PORT)),
        *("--server.headless", "true"),
    ]


def main() -> None:
    """Becomes the page."""
    require_extra("page", "the page")
    end_with_parent()
    words = command(get_settings())
    os.execve(words[0], words, _environment())  # nosec B606


def _environment() -> dict[str, str]:
    """Finds this package wherever it is started, which Streamlit's own path does not."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


if __name__ == "__main__":
    main()
