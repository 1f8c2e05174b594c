"""A real server for the tests: `bentoml serve` in processes of its own, on ports and in folders of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from text2image.client import Client
from text2image.core.errors import DeadlineExceeded
from text2image.core.messages import Status

ROOT = Path(__file__).resolve().parents[2]
# Generous: a start takes seconds on an idle machine, and tests may share theirs.
START_SECONDS = 240.0
WAIT_SECONDS = 120.0
# How often a server is started whose ports are of no matter, when another process takes one just before it does.
STARTS = 3
# Settings of all servers that are not told otherwise.
DEFAULTS: dict[str, str] = {}

T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], T], what: str, within: float = WAIT_SECONDS) -> T:
    """The first true value of `condition`; fails when there is none in time."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.05)


def is_ready(url: str) -> bool:
    """Whether a server without TLS is there and can draw; asking takes nearly nothing from its warm-up."""
    try:
        # The authorities that httpx would load in each call are nobody's here, and take 20 ms of a core.
        return httpx.get(f"{url}/readyz", verify=False, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def _is_setting(variable: str) -> bool:
    """Whether a variable would reach the server's settings from whoever runs the tests."""
    return variable.startswith("T2I_") or variable in {"HOST", "PORT", "GRPC_PORT"}


class PortTaken(AssertionError):
    """The server ended because somebody else listens on one of its ports."""


class Server:
    """One `bentoml serve`, of the gateway or of a runner alone; everything it writes lies under `folder`.

    A port that is left 0 is chosen anew at each start. A server on another `host` is started by the command that
    `launcher` makes of its own. A gateway that has `engine_of` another server draws with that one's runner and starts
    none: what is tested of it is the gateway alone, and a runner takes most of the time of a start.
    """

    def __init__(
        self,
        folder: Path,
        service: str = "Gateway",
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        host: str = "127.0.0.1",
        launcher: Callable[..., list[str]] = lambda *words: [*words],
        engine_of: Server | None = None,
        **settings: str,
    ) -> None:
        self.folder = folder
        self._host = host
        self._launcher = launcher
        self._service = service
        self._named_ports = (http_port, grpc_port)
        self.pictures = folder / "pictures"
        self._log = folder / "server.log"
        self._engine_of = engine_of or self
        if engine_of:
            settings = {"T2I_RUNNERS": engine_of.runner_address(), **settings}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not _is_setting(name)},
            "HOST": host,
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
            "T2I_RUNTIME_DIR": str(folder / "run"),
            "T2I_OUTPUT_DIR": str(self.pictures),
            "T2I_CACHE_DIR": str(folder / "cache"),
            "T2I_DATA_DIR": str(folder / "data"),
            **DEFAULTS,
            **settings,
        }

    def start(self) -> None:
        self.http_port, self.grpc_port = (port or free_port() for port in self._named_ports)
        ports = {"PORT": str(self.http_port), "GRPC_PORT": str(self.grpc_port)}
        (self.folder / "bentoml").mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._launcher(
                    sys.executable,
                    "-m",
                    "bentoml",
                    "serve",
                    f"service:{self._service}",
                    "--port",
                    str(self.http_port),
                ),
                cwd=ROOT,
                env=ports | self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_until_ready(self) -> None:
        """Starts and waits; again where a port that nobody named was taken in the meantime."""
        for left in reversed(range(STARTS)):
            self.start()
            try:
                return self.wait_until_ready()
            except PortTaken:
                if not left or all(self._named_ports):
                    raise
        return None

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                ended = PortTaken if "already in use" in self.log else AssertionError
                raise ended(f"the server ended by itself:\n{self.log}")
            return self.is_ready()

        eventually(ready, f"the server is ready:\n{self.log}", START_SECONDS)

    def is_ready(self) -> bool:
        return is_ready(self.url)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once all its processes are gone."""
        return self.process.wait(WAIT_SECONDS)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.terminate()
        family = self.processes()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            for process in family:
                process.kill()
            raise AssertionError(f"the server does not end:\n{self.log}") from None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.http_port}"

    @property
    def address(self) -> str:
        return f"{self._host}:{self.grpc_port}"

    def client(self) -> Client:
        return Client(self.address)

    def engine(self, runner: int = 0) -> Client:
        """A client of the runner itself: what it says of its state is never older than the question."""
        return Client(self._engine_of.runner_address(runner))

    def runner_address(self, number: int = 0) -> str:
        """Where a runner of its own answers."""
        return f"unix:{self.folder}/run/runner-{number}.sock"

    def wait_for(self, condition: Callable[[Status], bool], what: str, runner: int = 0) -> Status:
        """The first status of the engine that fulfils a condition, as WatchStatus reports it."""
        with self.engine(runner) as engine:
            try:
                for status in engine.watch(timeout=WAIT_SECONDS):
                    if condition(status):
                        return status
            except DeadlineExceeded:
                pass
        raise AssertionError(f"never: {what}")

    def metric(self, name: str) -> float:
        """The value of a metric by its name and labels, as /metrics writes them."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    def runner(self) -> psutil.Process:
        """The runner's process."""
        runners = self.runners()
        assert runners, "there is no runner"
        return runners[0]

    def runners(self) -> list[psutil.Process]:
        """The processes of the runners that are there, in the order of their sockets."""
        return self._workers("text2image-runner")

    def gateways(self) -> list[psutil.Process]:
        """The processes of the gateway that are there."""
        return self._workers("text2image-gateway")

    def _workers(self, service: str) -> list[psutil.Process]:
        found = {}
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if service in words:
                    found[int(words[words.index("--worker-id") + 1])] = process
        return [found[number] for number in sorted(found)]

    def memory(self) -> int:
        """Resident bytes of all its processes."""
        return sum(process.memory_info().rss for process in self.processes())

    def listening(self) -> set[tuple[str, int]]:
        """Addresses and ports at which any of its processes can be reached."""
        return {
            # grpc listens for IPv4 on a socket for both.
            (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
            for process in self.processes()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
        }

    def processes(self) -> list[psutil.Process]:
        """All that are there, the supervisor first."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """A server that is ready, and ended afterwards; its log is shown if anything fails."""
    try:
        server.start_until_ready()
        yield server
    except BaseException:
        print(server.log)
        raise
    finally:
        server.stop()
