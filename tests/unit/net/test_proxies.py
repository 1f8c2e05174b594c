"""A proxy in the environment is in nobody's way on this machine or between gateways and runners, and else is named."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from tests.collector import collecting
from tests.e2e.harness import free_port
from tests.samples import MODEL
from tests.unit.gateway.scripted import ScriptedRunner
from text2image.client import AsyncClient, Client
from text2image.core.errors import DeadlineExceeded, Unavailable
from text2image.core.messages import State
from text2image.core.settings import Settings
from text2image.gateway.runner_link import RunnerLink
from text2image.net.proxies import channel_options, proxy_hint
from text2image.observe import tracing
from text2image.ops.healthcheck import trouble

# Of a network that is nobody's (RFC 5737).
ELSEWHERE = "192.0.2.1:50051"


class Proxy(ThreadingHTTPServer):
    """Refuses whatever it is asked, and counts that."""

    daemon_threads = True

    def __init__(self) -> None:
        proxy = self
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def refuse(self) -> None:
                proxy.asked.append(f"{self.command} {self.path}")
                self.send_error(403)

            do_CONNECT = do_GET = do_POST = refuse  # noqa: N815 - as the base class wants them

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{proxy.server_port}")
        yield proxy
        proxy.shutdown()
        thread.join()


class TcpRunner(ScriptedRunner):
    """One on a port of this machine."""

    def __init__(self) -> None:
        super().__init__(Path("unused"))
        self.port = free_port()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _listen(self, server: grpc.aio.Server) -> None:
        server.add_insecure_port(self.address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_clients_reach_a_server_on_their_own_machine(proxy: Proxy, host: str) -> None:
    runner = TcpRunner()
    await runner.start()
    with Client(f"{host}:{runner.port}") as client:
        assert await asyncio.to_thread(client.model) == MODEL
    async with AsyncClient(f"{host}:{runner.port}") as other:
        assert await other.generate("a fox") is not None
    await runner.die()
    assert proxy.asked == []


async def test_a_client_that_a_proxy_keeps_from_its_server_says_so(proxy: Proxy) -> None:
    with Client(ELSEWHERE) as client, pytest.raises((Unavailable, DeadlineExceeded)) as refused:
        await asyncio.to_thread(client.model, timeout=20)
    assert proxy.asked == [f"CONNECT {ELSEWHERE}"]
    assert "http_proxy=http://***@127.0.0.1" in refused.value.message
    assert "no_proxy=192.0.2.1" in refused.value.message
    assert "secret" not in str(refused.value)


async def test_a_gateway_reaches_its_runners_without_it(proxy: Proxy) -> None:
    runner = TcpRunner()
    await runner.start()
    changed = asyncio.Event()
    links = [RunnerLink("near", runner.address, changed.set)]
    links.append(RunnerLink("far", ELSEWHERE, changed.set))
    for link in links:
        link.start()
    async with asyncio.timeout(30):
        while [link.status.state for link in links] != [State.READY, State.FAILED]:
            await changed.wait()
            changed.clear()
    for link in links:
        await link.close()
    await runner.die()
    assert proxy.asked == []


def test_a_container_is_as_healthy_as_its_server(proxy: Proxy) -> None:
    """It asks the proxy's own port, which answers so to whoever comes."""
    told = trouble(Settings(PORT=proxy.server_port))
    assert told.endswith("/readyz answers 403")
    assert proxy.asked == ["GET /readyz"]


async def test_traces_reach_a_collector_on_the_same_machine(proxy: Proxy) -> None:
    with collecting() as collector:
        export = tracing.set_up(collector.endpoint, "text2image-gateway")
        assert export
        trace_id = tracing.begin({})
        with tracing.request("rest"):
            pass
        await export.close()
        assert [span.name for span in collector.trace(trace_id)] == ["rest"]
    assert proxy.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "localhost",
        "localhost:50051",
        "127.0.0.1:50051",
        "127.1.2.3:1",
        "[::1]:50051",
        "::1",
        "dns:///localhost:50051",
        "dns:localhost:50051",
        "ipv4:127.0.0.1:50051",
        "ipv6:[::1]:50051",
        "unix:/run/runner-0.sock",
        "unix-abstract:name",
    ],
)
def test_what_is_local_is_told_however_it_is_written(address: str) -> None:
    assert channel_options(address)
    assert proxy_hint(address) == ""


@pytest.mark.parametrize(
    "address",
    ["gpu-1:50051", "10.0.0.7:50051", "[2001:db8::1]:50051", "dns:///localhost.example:1"],
)
def test_what_is_not_is_named_without_a_port(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert channel_options(address) == []
    host = proxy_hint(address).rpartition("no_proxy=")[2].rstrip(")")
    assert host in address
    assert host.isprintable()
    assert ":5" not in host
    monkeypatch.setenv("no_proxy", f"example.org,{host}")
    assert proxy_hint(address) == ""


def test_without_a_proxy_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy")
    assert proxy_hint(ELSEWHERE) == ""
