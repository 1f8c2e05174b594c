"""Three runners and two gateways on a host each, behind proxies, and clients that keep them busy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

import httpx

from tests import debian
from tests.cluster.hosts import Host
from tests.e2e.harness import ROOT, Server, eventually, free_port
from tests.e2e.test_pictures import image_of
from text2image.client import Client
from text2image.core.errors import Cancelled, Unavailable
from text2image.core.messages import Picture, Queued, Status

DEPLOY = ROOT / "deploy"
PORT = 50061
HTTP_PORT, GRPC_PORT = 3000, 50051
STEPS = (5, 10, 20)
# So long a request may take, whatever is broken on its way.
PATIENCE = 60.0
CLIENTS = 8
# Seconds; haproxy.cfg has a gateway asked each second, and takes it for leaving at its second no.
NOTICE = "6"
# Not everybody's PATH has the commands of administrators.
# What a client may see when the gateway that it is connected to is gone, or the proxy has noticed that.
_BROKEN = (httpx.TransportError, Unavailable, Cancelled)
_BAD_GATEWAY = (502, 504)


class Runner:
    """A runner process with a model that only takes time."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.host = host
        self._folder = folder
        self._folder.mkdir(parents=True)

    @property
    def address(self) -> str:
        return f"{self.host.address}:{PORT}"

    def start(self) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("T2I_")},
            "T2I_RUNNER_LISTEN": self.address,
            "T2I_RUNTIME_DIR": str(self._folder / "run"),
        }
        with (self._folder / "runner.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.host.command(sys.executable, "-m", "tests.cluster.runner"),
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals) -> int:
        """The exit status, once it is gone."""
        self.send(number)
        return self.process.wait(PATIENCE)

    def status(self) -> Status:
        """What its engine says, past any network."""
        with Client(f"unix:{self._folder}/run/runner-0.sock") as client:
            return client.status()

    @property
    def log(self) -> str:
        return (self._folder / "runner.log").read_text(errors="replace")


class Clients:
    """Threads that ask for one picture after another, over HTTP and gRPC in turn, and look at what they get.

    One whose connection breaks, or who is told to try elsewhere, asks again, as any client should. That is written down
    in `repeats`, by the transport, and in `lost` too if the request had been admitted, or may have been. Whatever else
    goes wrong is in `failures`.
    """

    def __init__(self, url: str, address: str) -> None:
        self._url = url
        self._address = address
        self._seeds = count()
        self._ending = threading.Event()
        self.drawn = 0
        self.repeats: list[str] = []
        self.lost: list[str] = []
        self.failures: list[str] = []

    def work(self, number: int) -> None:
        """Draws until `end`."""
        while not self._ending.is_set():
            seed = next(self._seeds)
            try:
                self._insist(seed, STEPS[seed % len(STEPS)], over_http=bool(number % 2))
                self.drawn += 1
            except Exception as error:
                self.failures.append(f"{seed}: {error!r}")

    def end(self) -> None:
        self._ending.set()

    def draws_more(self, pictures: int) -> None:
        """Returns when so many more pictures are drawn."""
        goal = self.drawn + pictures
        eventually(lambda: self.drawn >= goal, f"{pictures} more pictures; {self.failures}")

    def _insist(self, seed: int, steps: int, *, over_http: bool) -> None:
        draw = self._over_http if over_http else self._over_grpc
        for _ in range(20):
            try:
                png = draw(seed, steps)
            except _BROKEN as error:
                self.repeats.append(f"{'http' if over_http else 'grpc'} {seed}: {error!r}")
                self._ending.wait(0.5)
                continue
            # What the double draws tells from which seed, and in how many steps.
            assert image_of(png).getpixel((0, 0)) == (seed % 256, steps, 0)
            return
        raise AssertionError("not drawn in many attempts")

    def _over_http(self, seed: int, steps: int) -> bytes:
        asked = {"text": "a cat", "seed": seed, "steps": steps}
        try:
            answer = httpx.post(f"{self._url}/generate", json=asked, timeout=PATIENCE)
        except httpx.ReadError as error:
            self.lost.append(f"{seed}: {error!r}")
            raise
        if answer.status_code in _BAD_GATEWAY:
            self.lost.append(f"{seed}: {answer.status_code}")
        if answer.status_code in _BAD_GATEWAY or answer.status_code == 503:
            raise Unavailable(answer.text, reason=Unavailable.NO_RUNNER, retry_after=1)
        assert answer.status_code == 200, answer.text
        return b64decode(answer.json()["image_base64"])

    def _over_grpc(self, seed: int, steps: int) -> bytes:
        admitted = False
        pictures = []
        with Client(self._address) as client:
            try:
                for event in client.stream("a cat", seed=seed, steps=steps, timeout=PATIENCE):
                    admitted = admitted or isinstance(event, Queued)
                    if isinstance(event, Picture):
                        pictures.append(event)
            except _BROKEN as error:
                if admitted:
                    self.lost.append(f"{seed}: {error!r}")
                raise
        (picture,) = pictures
        return picture.png


class Cluster:
    """All of it. `serving` starts it."""

    def __init__(self, folder: Path, runners: Sequence[Host], gateways: Sequence[Host]) -> None:
        self.runners = [Runner(folder / host.name, host) for host in runners]
        self.gateway_hosts = list(gateways)
        # The last one gives notice before it leaves, for longer than the proxy takes to see it.
        notices = ["0"] * (len(gateways) - 1) + [NOTICE]
        self.gateways = [
            self._gateway(folder / host.name, host, notice)
            for host, notice in zip(gateways, notices, strict=True)
        ]
        self._folder = folder
        # Of each proxy, for HTTP and for gRPC.
        self._ports = {name: (free_port(), free_port()) for name in ("haproxy", "nginx")}

    def _gateway(self, folder: Path, host: Host, notice: str) -> Server:
        return Server(
            folder,
            http_port=HTTP_PORT,
            grpc_port=GRPC_PORT,
            host=host.address,
            launcher=host.command,
            T2I_RUNNERS=",".join(runner.address for runner in self.runners),
            T2I_CACHE_BYTES="0",
            T2I_SAVE_IMAGES="0",
            T2I_DRAIN_NOTICE=notice,
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Runs it for the length of the block; the logs are shown if anything fails."""
        with ExitStack() as ending:
            for runner in self.runners:
                runner.start()
                ending.callback(self._end, runner)
            for gateway in self.gateways:
                gateway.start()
                ending.callback(gateway.stop)
            try:
                for gateway in self.gateways:
                    gateway.wait_until_ready()
                self.complete()
                # Not before: it takes a server to be there until it finds it is not.
                self._start_haproxy(ending)
                self._start_nginx(ending)
                yield
            except BaseException:
                for log in self._folder.glob("*.log"):
                    print(log.read_text()[-5000:])
                for each in (*self.runners, *self.gateways):
                    print(each.log[-5000:])
                raise

    @contextmanager
    def busy(self, proxy: str = "haproxy") -> Iterator[Clients]:
        """Clients that ask through a proxy until the end of the block; none of them may fail."""
        http, grpc = self._ports[proxy]
        clients = Clients(f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}")
        with ThreadPoolExecutor(CLIENTS) as pool:
            for number in range(CLIENTS):
                pool.submit(clients.work, number)
            try:
                clients.draws_more(CLIENTS)
                yield clients
                clients.draws_more(CLIENTS)
            finally:
                clients.end()
        assert clients.failures == []

    def ready(self) -> list[float]:
        """How many runners each gateway counts that can be asked."""
        counts = []
        for gateway in self.gateways:
            with suppress(httpx.TransportError):
                counts.append(gateway.metric("text2image_runners_ready"))
        return counts

    def complete(self) -> None:
        """Returns when every gateway has every runner."""
        everyone = [len(self.runners)] * len(self.gateways)
        eventually(lambda: self.ready() == everyone, "every gateway has every runner")

    def admitted(self) -> list[int]:
        """Requests that each runner has taken since it began."""
        return [runner.status().counters.admitted for runner in self.runners]

    @staticmethod
    def _end(runner: Runner) -> None:
        if runner.process.poll() is None:
            runner.process.kill()
            runner.process.wait(PATIENCE)

    def _start_haproxy(self, ending: ExitStack) -> None:
        http, grpc = self._ports["haproxy"]
        one, two = (host.address for host in self.gateway_hosts)
        addresses = {
            "HTTP_BIND": f"127.0.0.1:{http}",
            "GRPC_BIND": f"127.0.0.1:{grpc}",
            "GATEWAY_1": one,
            "GATEWAY_2": two,
            "HTTP_PORT": str(HTTP_PORT),
            "GRPC_PORT": str(GRPC_PORT),
        }
        self._start_proxy("haproxy", ending, "-f", str(DEPLOY / "haproxy.cfg"), **addresses)

    def _start_nginx(self, ending: ExitStack) -> None:
        http, grpc = self._ports["nginx"]
        one, two = (host.address for host in self.gateway_hosts)
        text = (DEPLOY / "nginx.conf").read_text()
        for said, here in (
            ("listen 80", f"listen 127.0.0.1:{http}"),
            ("listen 50051", f"listen 127.0.0.1:{grpc}"),
            ("gateway-1:", f"{one}:"),
            ("gateway-2:", f"{two}:"),
        ):
            assert said in text
            text = text.replace(said, here)
        config = self._folder / "nginx.conf"
        config.write_text(text)
        own = f"daemon off; pid {self._folder}/nginx.pid;"
        self._start_proxy("nginx", ending, "-c", str(config), "-g", own)

    def _start_proxy(self, name: str, ending: ExitStack, *options: str, **variables: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            proxy = subprocess.Popen(
                [debian.command(name), *options],
                env={**os.environ, **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ending.callback(proxy.wait, PATIENCE)
        ending.callback(proxy.terminate)
        eventually(lambda: all(map(_is_open, self._ports[name])), f"{name} listens")


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
