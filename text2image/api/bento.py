"""What is ours in the HTTP server that BentoML brings along."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bentoml import serving
from bentoml._internal.server.http import traffic
from bentoml._internal.utils import circus
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http import auto

# Seconds between the supervisor's looks at its workers, as BentoML has them.
WATCH_SECONDS = 10


def patch(
    protocol: type[asyncio.Protocol],
    metrics_folder: Callable[[], Path],
    send_timeout: float,
) -> None:
    """Puts ours in place of BentoML's, before it starts or builds anything.

    Args:
        protocol: what each HTTP connection speaks, in place of uvicorn's own.
        metrics_folder: called once by a supervisor that starts, makes a folder in one that is this server's alone.
        send_timeout: seconds after which a client that takes nothing of its answer is cut off.
    """
    supervisor = Supervisor(metrics_folder, send_timeout)
    serving.ensure_prometheus_dir = supervisor.prepare_metrics
    circus.create_standalone_arbiter = supervisor.create_arbiter
    traffic.TimeoutMiddleware = Timeout
    auto.AutoHTTPProtocol = protocol
    logging.getLogger("bentoml.access").addFilter(OneLine())


class Supervisor:
    """How BentoML's supervisor shares files with its workers, and is told what to do: in a private folder alone.

    BentoML's own empties one folder of metrics for all servers of a user, whenever one of them starts. And it takes
    orders at two ports of the machine from anybody on it, among them to run any program in this user's name.
    """

    def __init__(self, metrics_folder: Callable[[], Path], send_timeout: float) -> None:
        self._make_folder = metrics_folder
        self._send_timeout = send_timeout
        self._folder: Path | None = None

    def prepare_metrics(self) -> str:
        """Makes the folder of the metrics; the first thing that a supervisor does."""
        self._folder = self._make_folder()
        return str(self._folder)

    def create_arbiter(self, watchers: list[Any], *, threaded: bool = False, **options: Any) -> Any:
        """The arbiter, which is ordered about through a socket that only this user can open."""
        assert self._folder, "a supervisor prepares its metrics first"
        kind = circus.ThreadedArbiter if threaded else circus.Arbiter
        options.setdefault("check_delay", WATCH_SECONDS)
        for listener in options.get("sockets", ()):
            bound_sending(listener, self._send_timeout)
        return kind(
            watchers,
            endpoint=f"ipc://{self._folder.parent / 'orders'}",
            pubsub_endpoint=f"ipc://{self._folder.parent / 'events'}",
            **options,
        )


def bound_sending(listener: socket.socket, seconds: float) -> None:
    """Has the system cut off whoever comes by this socket and takes nothing of an answer for so long.

    uvicorn waits for ever: each answer that nobody reads would be held until its client goes. Other systems than Linux
    know no such limit.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT") and listener.family != socket.AF_UNIX:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


class Timeout:
    """Answers 504 where no response has begun in time.

    BentoML's own leaves its timer running after the response, and with it all that belonged to the request: with a
    timeout of minutes, a busy server would hold hundreds of megabytes of requests that are over.
    """

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self._app = app
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            limit.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout(
                self._timeout if scope["type"] in ("http", "websocket") else None
            ) as limit:
                await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if not limit.expired():
                raise
            told = {"error": f"Not able to process the request in {self._timeout} seconds"}
            await JSONResponse(told, 504)(scope, receive, send)


class OneLine(logging.Filter):
    """Writes what cannot be printed as an escape, lest a path with a line break in it forge a line of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if not text.isprintable():
            record.msg = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
            record.args = ()
        return True
