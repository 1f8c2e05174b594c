"""A real Redis for the tests: Debian's `redis-server` on a free port, which keeps nothing when it ends."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests import debian
from tests.e2e.harness import PortTaken, eventually, free_port

# Ports are tried anew when another process takes one first.
STARTS = 3


class RedisServer:
    """One `redis-server`; what it writes lies under `folder`. `restart` serves at the same URL again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def connection(self) -> Redis:
        """A blocking client of this server."""
        return Redis.from_url(self.url, socket_timeout=10)

    def start(self) -> None:
        """Starts at a port that nobody uses and waits until it answers."""
        for left in reversed(range(STARTS)):
            self._port = free_port()
            try:
                return self.restart()
            except PortTaken:
                if not left:
                    raise
        return None

    def restart(self) -> None:
        """Starts where it was before, empty, and waits until it answers."""
        program = debian.command("redis-server")
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {
            "--port": str(self._port),
            "--bind": "127.0.0.1",
            "--save": "",
            "--appendonly": "no",
            "--dir": str(self._folder),
        }
        with (self._folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, *(word for option in options.items() for word in option)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(self._answers, "Redis answers")

    def kill(self) -> None:
        """Ends it without a word to its clients."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)
        self.process.wait(30)

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise PortTaken((self._folder / "redis.log").read_text(errors="replace"))
        try:
            with self.connection as connection:
                return bool(connection.ping())
        except RedisError:
            return False


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A Redis that answers, ended afterwards."""
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
