"""Both ports speak to whom they should and to nobody else, and browsers and logs are told no more than they need."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

from tests.certificates import Files
from tests.e2e.harness import Server, eventually, serving
from tests.e2e.test_bad_input import GENERATE_IMAGE
from text2image.client import AsyncClient, Client
from text2image.core.errors import Unavailable
from text2image.net import text2image_pb2
from text2image.v1 import image_generation_pb2 as v1

GENERATE = "/text2image.v1.ImageGeneration/Generate"
ORIGIN = "https://pictures.example"
# A certificate is refused at once; what waits for longer has not been refused.
SECONDS = 20.0


class SecureServer(Server):
    """A server with a certificate, which asks for its clients' own if `authority` has to sign them."""

    def __init__(self, folder: Path, authority: Path | None = None, **settings: Any) -> None:
        self.files = Files(folder / "server-tls")
        self.shown: tuple[str, str] | None = None
        if authority:
            settings["T2I_TLS_CLIENT_CA"] = str(authority)
        super().__init__(
            folder,
            T2I_TLS_CERT=str(self.files.certificate),
            T2I_TLS_KEY=str(self.files.key),
            **settings,
        )

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.http_port}"

    def http(self) -> httpx.Client:
        """A client that trusts the server and shows what it should."""
        return httpx.Client(base_url=self.url, verify=self.trusting(), timeout=60)

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.files.ca)
        if self.shown:
            context.load_cert_chain(*self.shown)
        return context

    def is_ready(self) -> bool:
        try:
            with self.http() as client:
                return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def client(self) -> Client:
        return Client(self.address, ca=self.files.ca, certificate=self.shown)


@pytest.fixture(scope="module")
def secure(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    secured = SecureServer(
        tmp_path_factory.mktemp("tls"),
        engine_of=server,
        T2I_CORS_ORIGINS=f"https://elsewhere.example,{ORIGIN}",
        T2I_LOG_PROMPTS="1",
    )
    with serving(secured):
        yield secured


@pytest.fixture(scope="module")
def strict(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    """A server that asks its clients for certificates."""
    folder = tmp_path_factory.mktemp("mtls")
    client = Files(folder / "client-tls")
    secured = SecureServer(folder, authority=client.ca, engine_of=server)
    secured.shown = (str(client.certificate), str(client.key))
    with serving(secured):
        yield secured


async def test_pictures_come_over_tls(secure: SecureServer) -> None:
    with secure.http() as http:
        assert http.post("/generate", json={"text": "a cat", "steps": 1}).status_code == 200
    with secure.client() as client:
        assert client.generate("a cat", steps=1)
    async with AsyncClient(secure.address, ca=secure.files.ca.read_bytes()) as client:
        assert await client.generate("a cat", steps=1)


def test_the_environment_tells_a_client_whom_to_trust(
    secure: SecureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_TLS_CA", str(secure.files.ca))
    with Client(secure.address) as client:
        assert client.model()
    monkeypatch.setenv("T2I_TLS_CA", "system")
    assert_unreachable(Client(secure.address))


def test_plain_connections_are_refused(secure: SecureServer) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{secure.http_port}/readyz", timeout=SECONDS)
    assert_unreachable(Client(secure.address, ca=False))


def test_a_server_of_another_authority_is_not_trusted(secure: SecureServer, tmp_path: Path) -> None:
    stranger = Files(tmp_path).ca
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{secure.url}/readyz", verify=ssl.create_default_context(cafile=stranger))
    assert_unreachable(Client(secure.address, ca=stranger))


@pytest.mark.parametrize("port", ["http_port", "grpc_port"])
def test_old_versions_of_tls_are_refused(secure: SecureServer, port: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(secure.files.ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.set_ciphers("ALL:@SECLEVEL=0")

    def version() -> str | None:
        with (
            socket.create_connection(("127.0.0.1", getattr(secure, port)), SECONDS) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as secured,
        ):
            return secured.version()

    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert version() == "TLSv1.2"
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError) as refused:
        version()
    # It is the server that hangs up, with a word or without.
    assert refused.value.reason in {"TLSV1_ALERT_PROTOCOL_VERSION", "UNEXPECTED_EOF_WHILE_READING"}


def test_a_renewed_certificate_is_shown_by_grpc_and_a_broken_one_is_not(
    secure: SecureServer,
) -> None:
    old = secure.files.ca.read_bytes()
    working = secure.files.certificate.read_bytes()
    secure.files.certificate.write_text("cut off in the mid")
    assert_trusted(secure, old)
    assert "the certificate was not renewed" in secure.log
    secure.files.certificate.write_bytes(working)
    assert_trusted(secure, old)
    try:
        secure.files.issue(trustme.CA())
        assert_trusted(secure, secure.files.ca.read_bytes())
        assert_unreachable(Client(secure.address, ca=old))
    finally:
        # HTTP still shows the old one.
        secure.files.ca.write_bytes(old + secure.files.ca.read_bytes())
    assert secure.is_ready()


def test_who_shows_a_signed_certificate_is_served(strict: SecureServer) -> None:
    with strict.http() as http:
        assert http.post("/generate", json={"text": "a cat", "steps": 1}).status_code == 200
    with strict.client() as client:
        assert client.generate("a cat", steps=1)


def test_who_shows_no_certificate_or_a_strangers_is_refused(
    strict: SecureServer, tmp_path: Path
) -> None:
    stranger = Files(tmp_path)
    for shown in (None, (str(stranger.certificate), str(stranger.key))):
        context = ssl.create_default_context(cafile=strict.files.ca)
        if shown:
            context.load_cert_chain(*shown)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{strict.url}/readyz", verify=context, timeout=SECONDS)
        assert_unreachable(Client(strict.address, ca=strict.files.ca, certificate=shown))


def test_a_bad_certificate_is_one_clear_line_and_an_error_at_once(tmp_path: Path) -> None:
    server = SecureServer(tmp_path)
    server.files.key.unlink()
    server.start()
    assert server.wait() != 0
    (line,) = server.log.strip().splitlines()
    assert f"T2I_TLS_KEY={server.files.key}: No such file" in line


def test_browsers_are_told_to_stay_with_tls(secure: SecureServer, server: Server) -> None:
    with secure.http() as http:
        assert "max-age=" in http.get("/v1/models").headers["Strict-Transport-Security"]
    plain = httpx.get(f"{server.url}/v1/models")
    assert "Strict-Transport-Security" not in plain.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/generate"),
        ("POST", "/v1/images/generations"),
        ("GET", "/v1/models"),
        ("GET", "/generate/nowhere"),
        ("GET", "/nowhere"),
        ("GET", "/metrics"),
        ("GET", "/readyz"),
    ],
)
def test_answers_say_that_nothing_in_them_is_to_be_run_or_kept(
    server: Server, method: str, path: str
) -> None:
    headers = httpx.request(method, f"{server.url}{path}").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Content-Security-Policy"].startswith("default-src 'none';")
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers


def test_the_page_that_shows_the_api_may_run_its_own_scripts_only(server: Server) -> None:
    page = httpx.get(f"{server.url}/")
    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self';" in policy
    assert "script-src" not in policy
    assert httpx.get(f"{server.url}/docs.json").json()["paths"]
    assert httpx.get(f"{server.url}/static_content/swagger-ui.css").status_code == 200


def preflight(url: str, origin: str, verify: ssl.SSLContext | bool) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,authorization,x-request-timeout",
    }
    return httpx.options(f"{url}/generate", headers=headers, verify=verify)


def test_only_pages_of_named_origins_may_call(secure: SecureServer, server: Server) -> None:
    trusted = secure.trusting()
    allowed = preflight(secure.url, ORIGIN, trusted)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
    with secure.http() as http:
        answer = http.get("/v1/models", headers={"Origin": ORIGIN})
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
    for refused in (
        preflight(secure.url, "https://evil.example", trusted),
        preflight(server.url, ORIGIN, True),
        httpx.get(f"{server.url}/v1/models", headers={"Origin": ORIGIN}),
    ):
        assert "Access-Control-Allow-Origin" not in refused.headers


def ask_everywhere(http: httpx.Client, channel: grpc.Channel, word: str) -> None:
    """Has prompts with a word drawn over every transport, refused in every way, and given up."""
    small = {"steps": 1, "width": 64, "height": 64}
    for body, headers in (
        (json.dumps({"text": f"rest {word}", "negative_prompt": word, **small}), {}),
        (json.dumps({"text": f"{word} " * 500, **small}), {}),
        (json.dumps({"text": word, "steps": 0}), {}),
        (json.dumps({"text": word, word: word}), {}),
        (json.dumps({"text": [word]}), {}),
        (json.dumps({"text": f"{word}\ud800"}), {}),
        (f'{{"text": "{word}', {}),
        (json.dumps({"text": word, "steps": 150}), {"X-Request-Timeout": "0.05"}),
        (json.dumps({"text": word}), {"X-Request-Timeout": word}),
        (word * (1 << 20), {}),
    ):
        headers = {"Content-Type": "application/json", **headers}
        http.post("/generate", content=body, headers=headers)
        openai = body.replace('"text"', '"prompt"').replace("rest", "openai")
        openai = openai.replace('"width": 64, "height": 64', '"size": "64x64"')
        streamed = openai.replace("{", '{"stream": true, ', 1)
        for dialect in (openai, streamed):
            http.post("/v1/images/generations", content=dialect, headers=headers)
    http.get("/generate", params={"text": word})
    unary = channel.unary_unary(GENERATE_IMAGE, request_serializer=bytes)
    stream = channel.unary_stream(GENERATE, request_serializer=bytes)
    for request in (
        {"text": f"seed {word}", **small},
        {"text": word, "context": word, "steps": 0},
        {"text": word, "sampler": word},
    ):
        data = text2image_pb2.ImageRequest(**request).SerializeToString()
        unary(data, timeout=60)
        unary(data + b"\xff", timeout=60)
    for request in ({"prompt": f"v1 {word}", **small}, {"prompt": word, "n": 99}):
        data = v1.GenerateRequest(**request).SerializeToString()
        for sent in (data, data + b"\xff"):
            with contextlib.suppress(grpc.RpcError):
                list(stream(sent, timeout=60))
    dear = v1.GenerateRequest(prompt=word, **{**small, "steps": 150})
    given_up = stream(dear.SerializeToString(), timeout=60)
    with contextlib.suppress(grpc.RpcError):
        next(given_up)
    given_up.cancel()


def test_prompts_are_not_written_to_the_log(server: Server) -> None:
    with (
        httpx.Client(base_url=server.url, timeout=60) as http,
        grpc.insecure_channel(server.address) as channel,
    ):
        ask_everywhere(http, channel, "zebrafish")
        http.get("/the-last-of-them")
    eventually(lambda: "the-last-of-them" in server.log, "all is logged")
    assert "zebrafish" not in server.log


def test_prompts_are_written_to_the_log_where_that_is_wanted(secure: SecureServer) -> None:
    trusted = grpc.ssl_channel_credentials(secure.files.ca.read_bytes())
    with secure.http() as http, grpc.secure_channel(secure.address, trusted) as channel:
        ask_everywhere(http, channel, "zebrafish")
    for transport in ("rest", "openai", "seed", "v1"):
        told = f"'{transport} zebrafish'"
        eventually(lambda told=told: told in secure.log, f"{told} is logged")


def assert_trusted(server: SecureServer, ca: bytes) -> None:
    with Client(server.address, ca=ca) as client:
        assert client.model()


def assert_unreachable(client: Client) -> None:
    """The connection fails, and not for want of time."""
    with client, pytest.raises(Unavailable) as refused:
        client.model(timeout=SECONDS)
    assert refused.value.reason == Unavailable.NO_RUNNER
