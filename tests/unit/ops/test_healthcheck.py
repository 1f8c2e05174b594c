"""The container's health check: ready or not, over TLS too, and why not."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.certificates import Files
from text2image.core.settings import Settings
from text2image.ops.healthcheck import trouble, url_of


class Answering(HTTPServer):
    """Answers each GET with a status that the test sets, and remembers what was asked for."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_ready_server_is_well(server: Answering) -> None:
    assert trouble(Settings(HOST="0.0.0.0", PORT=server.server_port)) == ""
    assert server.asked == ["/readyz"]


def test_one_that_is_not_ready_is_not(server: Answering) -> None:
    server.status = 503
    assert trouble(Settings(PORT=server.server_port)).endswith("/readyz answers 503")


def test_one_that_is_not_there_is_named(server: Answering) -> None:
    port = server.server_port
    server.server_close()
    assert f"127.0.0.1:{port}" in trouble(Settings(PORT=port))


def test_over_mutual_tls_it_shows_the_certificate_of_the_environment(
    server: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(files.ca))
    context.load_cert_chain(files.certificate, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    settings = Settings(PORT=server.server_port, tls_cert=files.certificate)
    assert "https://127.0.0.1" in trouble(settings)
    monkeypatch.setenv("T2I_TLS_CLIENT_CERT", str(files.certificate))
    monkeypatch.setenv("T2I_TLS_CLIENT_KEY", str(files.key))
    assert trouble(settings) == ""


def test_the_page_has_a_health_of_its_own(server: Answering) -> None:
    assert trouble(Settings(page_port=server.server_port), "page") == ""
    assert server.asked == ["/_stcore/health"]
    assert ":8501/" in url_of(Settings(), "page")
