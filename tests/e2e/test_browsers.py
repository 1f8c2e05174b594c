"""A page in somebody's browser can use the server if it is the server's own or is named, and in no other case."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.harness import Server, serving
from tests.web import call, framed

ORIGIN = "https://pictures.example"
EVIL = "http://evil.example"
# What openai's clients for Python and JavaScript, and Vercel's ai-sdk, send besides.
OFFICIAL = (
    "authorization,content-type,idempotency-key,openai-beta,openai-organization,openai-project,traceparent,user-agent,"
    "x-api-key,x-request-timeout,x-stainless-arch,x-stainless-async,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-read-timeout,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)
PATHS = {
    "/generate": {"text": "a cat", "steps": 1},
    "/v1/images/generations": {"prompt": "a cat", "steps": 1},
}


@pytest.fixture(scope="module")
def open_server(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that all pages may use, under a name of its own too."""
    opened = Server(
        tmp_path_factory.mktemp("open"),
        engine_of=server,
        T2I_CORS_ORIGINS="*",
        T2I_ALLOWED_HOSTS="pictures.example",
    )
    with serving(opened):
        yield opened


@pytest.mark.parametrize("path", PATHS)
def test_a_page_may_send_what_official_clients_send(open_server: Server, path: str) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": OFFICIAL,
    }
    answer = httpx.options(f"{open_server.url}{path}", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] in {"*", ORIGIN}
    allowed = answer.headers["Access-Control-Allow-Headers"].lower()
    assert set(OFFICIAL.split(",")) <= {name.strip() for name in allowed.split(",")}


def test_a_page_that_may_speaks_grpc_web(open_server: Server) -> None:
    url = f"{open_server.url}/text2image.v1.ImageGeneration/GetModel"
    sent = "content-type,grpc-timeout,x-api-key,x-grpc-web,x-user-agent"
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": sent,
    }
    answer = httpx.options(url, headers=asked)
    assert answer.status_code == 200
    allowed = answer.headers["Access-Control-Allow-Headers"].lower()
    assert set(sent.split(",")) <= {name.strip() for name in allowed.split(",")}
    headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}
    http, model = call(open_server.url, "GetModel", framed(b""), **headers)
    assert model.status == 0
    assert http.headers["Access-Control-Allow-Origin"] in {"*", ORIGIN}


@pytest.mark.parametrize("path", PATHS)
def test_a_page_that_may_draws(open_server: Server, path: str) -> None:
    headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site", "Host": "pictures.example"}
    url = f"{open_server.url}{path}"
    answer = httpx.post(url, json=PATHS[path], headers=headers, timeout=60)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] in {"*", ORIGIN}


@pytest.mark.parametrize("path", PATHS)
def test_the_servers_own_page_draws(server: Server, path: str) -> None:
    for headers in (
        {"Origin": server.url},
        {"Origin": f"http://localhost:{server.http_port}", "Sec-Fetch-Site": "same-origin"},
    ):
        url = f"{server.url}{path}"
        answer = httpx.post(url, json=PATHS[path], headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", None])
@pytest.mark.parametrize("path", PATHS)
def test_json_is_read_as_json_alone(server: Server, path: str, kind: str | None) -> None:
    """Browsers send the other kinds for any page, without asking first."""
    headers = {} if kind is None else {"Content-Type": kind}
    answer = httpx.post(f"{server.url}{path}", content=b'{"text": "a cat"}', headers=headers)
    assert answer.status_code == 415
    assert "Content-Type: application/json" in message_of(answer)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"]
)
def test_every_kind_of_json_is_read(server: Server, kind: str) -> None:
    url, headers = f"{server.url}/generate", {"Content-Type": kind}
    assert httpx.post(url, content=b"{}", headers=headers).status_code == 400


@pytest.mark.parametrize("path", [*PATHS, "/nowhere", "/v1/models"])
def test_a_page_of_another_origin_changes_nothing(server: Server, path: str) -> None:
    for headers in (
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{server.http_port + 1}", "Sec-Fetch-Site": "same-site"},
    ):
        body = PATHS.get(path, {})
        answer = httpx.post(f"{server.url}{path}", json=body, headers=headers)
        assert answer.status_code == 403
        assert "T2I_CORS_ORIGINS" in message_of(answer)


@pytest.mark.parametrize("path", [*PATHS, "/", "/readyz", "/metrics", "/v1/models", "/docs.json"])
def test_a_name_that_was_rebound_to_this_machine_is_not_served(server: Server, path: str) -> None:
    method = "POST" if path in PATHS else "GET"
    host = {"Host": f"evil.example:{server.http_port}"}
    answer = httpx.request(method, f"{server.url}{path}", json=PATHS.get(path), headers=host)
    assert answer.status_code == 403
    assert "T2I_ALLOWED_HOSTS" in message_of(answer)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("host", ["localhost", "10.244.1.17:3000", "[::1]:3000", "x.localhost"])
def test_names_of_this_machine_and_addresses_are_served(server: Server, host: str) -> None:
    """Probes of Kubernetes call a pod by its address."""
    for path in ("/readyz", "/v1/models"):
        assert httpx.get(f"{server.url}{path}", headers={"Host": host}).status_code == 200


def message_of(answer: httpx.Response) -> str:
    """What either dialect tells people."""
    body = answer.json()
    return str(body["error"]["message"] if "error" in body else body["message"])
