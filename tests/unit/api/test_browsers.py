"""Whom a page in a browser may call, told by the two headers that no page can forge."""

from __future__ import annotations

import json
from typing import Any

import pytest

from text2image.api.app import error_response
from text2image.api.browsers import BrowserGuard, is_foreign, is_known, known_hosts
from text2image.core.settings import Settings

LOOPBACK = "127.0.0.1"
SELF = "localhost:3000"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.:3000",
        "gateway.localhost:3000",
        "127.0.0.1:3000",
        "10.1.2.3",
        "[::1]:3000",
        "pictures.example:8443",
        "a.internal",
    ],
)
def test_names_of_this_machine_addresses_and_listed_names_are_known(host: str) -> None:
    assert is_known(host, {"localhost", "pictures.example", "*.internal"})


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evillocalhost",
        "internal",
        "evilinternal",
        "",
        "[::1",
        "\xff",
        "@localhost@evil.example",
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert not is_known(host, {"localhost", "*.internal"})


@pytest.mark.parametrize(
    ("fetch_site", "origin", "host"),
    [
        (None, None, SELF),
        (None, "http://localhost:3000", SELF),
        (None, "https://pictures.example", "pictures.example"),
        (None, "https://pictures.example", "pictures.example:443"),
        (None, "http://Pictures.example:8000", "pictures.example:8000"),
        # Behind a proxy that puts another host in the place of its own.
        ("same-origin", "https://pictures.example", "127.0.0.1:3000"),
        ("none", None, SELF),
    ],
)
def test_programs_and_pages_of_the_server_itself_are_not_foreign(
    fetch_site: str | None, origin: str | None, host: str
) -> None:
    assert not is_foreign(fetch_site, origin, host)


@pytest.mark.parametrize(
    ("fetch_site", "origin"),
    [
        (None, "http://evil.example"),
        (None, "http://localhost:8000"),
        (None, "http://localhost"),
        (None, "null"),
        (None, ""),
        (None, SELF),
        ("same-site", "http://localhost:8000"),
        ("cross-site", None),
        ("cross-site", "http://localhost:3000"),
        ("", None),
    ],
)
def test_pages_of_other_origins_are_foreign(fetch_site: str | None, origin: str | None) -> None:
    assert is_foreign(fetch_site, origin, SELF)


@pytest.mark.parametrize(
    ("listening", "settings"),
    [
        ("0.0.0.0", {}),
        ("::", {}),
        (LOOPBACK, {"keys_file": "keys.json"}),
        (LOOPBACK, {"tls_cert": "server.pem"}),
        (LOOPBACK, {"trusted_proxies": "127.0.0.1"}),
        (LOOPBACK, {"allowed_hosts": "*"}),
    ],
)
def test_a_server_that_a_rebound_name_gains_nothing_from_answers_to_all(
    listening: str, settings: dict[str, Any]
) -> None:
    assert is_known("gateway.default.svc", known_hosts(Settings(**settings), listening))


@pytest.mark.parametrize("listening", [LOOPBACK, "::1", "localhost"])
def test_a_server_that_trusts_its_machine_answers_to_what_is_named_alone(listening: str) -> None:
    hosts = known_hosts(Settings(allowed_hosts="Pictures.example", HOST="box"), listening)
    assert all(is_known(name, hosts) for name in ("localhost", "pictures.example", "box"))
    assert not is_known("evil.example", hosts)
    assert not is_known("evil.example", known_hosts(Settings(), listening))


def test_named_hosts_hold_wherever_the_server_listens() -> None:
    hosts = known_hosts(Settings(allowed_hosts="pictures.example", keys_file="k"), "0.0.0.0")
    assert not is_known("evil.example", hosts)
    assert is_known("10.0.0.7:3000", hosts)


@pytest.mark.parametrize("value", ["a:80", "http://a", "*a", "a,,b", "a b"])
def test_a_host_that_no_header_could_name_is_refused_at_the_start(value: str) -> None:
    with pytest.raises(ValueError, match="is no name of a host"):
        Settings(allowed_hosts=value)


async def asked(
    method: str, path: str = "/generate", cors: str | None = None, **headers: str
) -> tuple[int, Any]:
    """Status and body of what comes of a request with such headers; 200 and nothing where it comes through."""
    sent: list[Any] = []

    async def through(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    settings = Settings(cors_origins=cors)
    guard = BrowserGuard(through, settings, lambda: LOOPBACK, error_response)
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    await guard(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
    return sent[0]["status"], json.loads(sent[1]["body"]) if sent[1:] else None


EVIL = "http://evil.example"


async def test_a_refusal_says_which_setting_would_let_the_page_in() -> None:
    status, body = await asked("POST", host=SELF, origin=EVIL)
    assert (status, body["status_code"], body["reason"]) == (403, 403, "PERMISSION_DENIED")
    assert "http://evil.example" in body["message"]
    assert "T2I_CORS_ORIGINS" in body["message"]
    status, body = await asked("POST", "/v1/images/generations", host="evil.example")
    assert (status, body["error"]["type"]) == (403, "permission_error")
    assert "T2I_ALLOWED_HOSTS" in body["error"]["message"]


async def test_a_page_that_is_named_may_send_and_any_may_ask() -> None:
    for cors in (EVIL, f"https://a.example,{EVIL}", "*"):
        assert await asked("POST", cors=cors, host=SELF, origin=EVIL) == (200, None)
    for method in ("GET", "HEAD", "OPTIONS"):
        # What comes back is kept from the page by its browser.
        assert await asked(method, host=SELF, origin=EVIL) == (200, None)
    for method in ("POST", "PUT", "DELETE"):
        assert (await asked(method, host=SELF, origin=EVIL))[0] == 403


async def test_a_host_is_looked_at_whatever_the_page_may_do() -> None:
    assert (await asked("GET", cors="*", host="evil.example", origin=EVIL))[0] == 403
    assert await asked("GET") == (200, None), "HTTP/1.0 knows no hosts"
