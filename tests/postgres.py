"""A real PostgreSQL for the tests: Debian's, on a free port, with its data in a folder of the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import debian
from tests.e2e.harness import eventually, free_port

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
# It does not run as root.
_USER = "postgres" if os.geteuid() == 0 else None


class PostgresServer:
    """One server, which syncs nothing to the disk; `restart` serves at the same URL again with all that it had."""

    def __init__(self) -> None:
        if not _PROGRAMS:
            debian.without("postgresql")
        self._programs = _PROGRAMS[-1]
        # Its user can enter no folder of pytest's.
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._port = 0

    @property
    def url(self) -> str:
        return f"postgresql://tests@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Makes an empty database and starts."""
        if _USER:
            shutil.chown(self._folder, _USER)
        subprocess.run(
            [
                self._programs / "initdb",
                "-D",
                self._data,
                "-U",
                "tests",
                "-A",
                "trust",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            user=_USER,
            cwd="/",
        )
        self._port = free_port()
        self.restart()

    def restart(self) -> None:
        """Starts where it was before, and waits until it answers."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "fsync": "off",
            "unix_socket_directories": "",
            "max_connections": "20",
            "shared_buffers": "8MB",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                user=_USER,
                cwd="/",
                start_new_session=True,
            )
        eventually(self._answers, "PostgreSQL answers")

    def stop(self) -> None:
        """Ends it and all connections at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def remove(self) -> None:
        """Leaves nothing of it."""
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _answers(self) -> bool:
        ready = [self._programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self._port)]
        assert self.process.poll() is None, (self._folder / "postgres.log").read_text()
        return subprocess.run(ready, capture_output=True, check=False).returncode == 0


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL that answers, ended afterwards."""
    server = PostgresServer()
    server.start()
    try:
        yield server
    finally:
        server.remove()
