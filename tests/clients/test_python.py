"""Libraries and proxies in Python draw with this server as with OpenAI's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.clients.harness import HERE, PYTHON, environment, kind_of, printed
from tests.e2e.harness import START_SECONDS, Server, eventually, free_port

pytestmark = pytest.mark.clients
SCRIPTS = HERE / "python"


def test_litellm_as_a_library(server: Server) -> None:
    got = printed(server, PYTHON / "python", SCRIPTS / "litellm_library.py")
    assert [kind_of(picture) for picture in got["pictures"]] == [("PNG", (64, 64))] * 2
    assert got["tokens"] == 8
    (url,) = got["urls"]
    assert kind_of(httpx.get(url).content) == ("PNG", (64, 64))


def test_langchain(server: Server) -> None:
    got = printed(server, PYTHON / "python", SCRIPTS / "langchain_tool.py")
    kinds = [kind_of(httpx.get(url).content) for url in got["urls"]]
    assert kinds == [("PNG", (64, 64))] * 2


@pytest.fixture
def proxy(server: Server, tmp_path: Path) -> Iterator[str]:
    """LiteLLM's proxy before the server."""
    params = {"model": "openai/embedded", "api_base": f"{server.url}/v1", "api_key": "none"}
    model = {
        "model_name": "pictures",
        "litellm_params": params,
        "model_info": {"mode": "image_generation"},
    }
    config = tmp_path / "config.yaml"
    # JSON is YAML too.
    config.write_text(json.dumps({"model_list": [model]}))
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(
            [PYTHON / "litellm", "--config", config, "--host", "127.0.0.1", "--port", str(port)],
            env=environment(server),
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def ready() -> bool:
        assert running.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/liveliness").status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(ready, "LiteLLM's proxy serves", START_SECONDS)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        running.terminate()
        running.wait(60)


@pytest.mark.timeout(600)
def test_litellm_as_a_proxy(proxy: str) -> None:
    with OpenAI(base_url=proxy, api_key="none", max_retries=0) as client:
        answer = client.images.generate(model="pictures", prompt="a fox", size="64x64", n=2)
        assert [kind_of(entry.b64_json or "") for entry in answer.data or ()] == [
            ("PNG", (64, 64))
        ] * 2
        assert answer.usage
        assert answer.usage.output_tokens == 8
