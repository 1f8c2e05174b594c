"""What can be read can be asked for in any of the ways that clients have."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.harness import Server

READABLE = ["/", "/livez", "/readyz", "/metrics", "/v1/models", "/v1/models/embedded", "/docs.json"]
READABLE += ["/sdapi/v1/options", "/sdapi/v1/sd-models", "/sdapi/v1/progress"]
DRAWING = {
    "/generate": {"text": "a cat", "steps": 1},
    "/v1/images/generations": {"prompt": "a cat", "steps": 1},
    "/sdapi/v1/txt2img": {"prompt": "a cat", "steps": 1},
}


@pytest.mark.parametrize("path", READABLE)
def test_what_can_be_read_can_be_asked_about(server: Server, path: str) -> None:
    with httpx.Client(base_url=server.url) as client:
        got, head = client.get(path), client.head(path)
        assert head.status_code == got.status_code == 200
        assert head.content == b""
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
        # The connection goes on where it should, and is not taken for cut off.
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", [path for path in READABLE if path != "/"])
def test_a_slash_behind_a_path_changes_nothing(server: Server, path: str) -> None:
    assert httpx.get(f"{server.url}{path}/").status_code == 200


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/generate", "/generate/"),
        ("/generate", "/v1/generate"),
        ("/v1/images/generations", "/v1/images/generations/"),
        ("/v1/images/generations", "/images/generations"),
        ("/sdapi/v1/txt2img", "/sdapi/v1/txt2img/"),
    ],
)
def test_pictures_are_drawn_with_the_version_in_the_path_and_without(
    server: Server, path: str, asked: str
) -> None:
    answer = httpx.post(f"{server.url}{asked}", json=DRAWING[path], timeout=60)
    assert answer.status_code == 200, answer.text
    assert httpx.get(f"{server.url}{asked}").status_code == 405


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_a_model_is_found_by_its_name(server: Server, prefix: str) -> None:
    (listed,) = httpx.get(f"{server.url}{prefix}/models").json()["data"]
    assert httpx.get(f"{server.url}{prefix}/models/{listed['id']}").json() == listed
    for unknown in ("dall-e-3", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a%2Fb", "a%0Ab"):
        answer = httpx.get(f"{server.url}{prefix}/models/{unknown}")
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["message"].endswith("is not served here; 'embedded' is")
        assert (error["type"], error["param"]) == ("invalid_request_error", "model")
        assert error["code"] == "model_not_found"


@pytest.mark.parametrize(
    "path", ["/generate/%0A", "/v1/a%0Ab", "/v1/images/generations/%0A", "/sdapi/%0A"]
)
def test_a_line_break_makes_no_path_of_another_server(server: Server, path: str) -> None:
    answer = httpx.post(f"{server.url}{path}", json={})
    assert answer.status_code == 404
    assert "there is nothing at" in answer.text
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/embedded"])
def test_what_can_only_be_read_says_so(server: Server, path: str) -> None:
    answer = httpx.post(f"{server.url}{path}", json={})
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD"
