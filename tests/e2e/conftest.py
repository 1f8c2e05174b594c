"""One server for all tests that leave it as they found it, and a way to start others."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.e2e.harness import Server, serving
from tests.e2e.nets import make_net
from tests.upscalers import make_upscaler
from text2image.client import Client

# Where clients that are told nothing look for the server.
KNOWN_HTTP_PORT, KNOWN_GRPC_PORT = 3000, 50051
# What clients call models that know OpenAI's alone.
ALIASES = "gpt-image-1=embedded,dall-e-2=embedded"
# What the shared server's prompts may name, and what the embedded model's text encoder takes.
EMBEDDING, EMBEDDED_WIDTH = "zz-film", 192
# What it signs webhooks by.
WEBHOOK_SECRET = f"whsec_{b64encode(bytes(32)).decode()}"
# And what its pictures may be steered by.
NET = "edges"
# What enlarges them.
UPSCALER = "Sharp"


@pytest.fixture
def hub_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's client asks no server at all, not even a near one, where the hub is not to be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shared server. No request of any test may end in an internal error.

    It remembers no picture, so that what two tests ask for alike is drawn for each. It knows one word by a file,
    one ControlNet and one upscaler, and has found others that are broken.
    """
    words = tmp_path_factory.mktemp("embeddings")
    numbers = np.random.default_rng(0).normal(size=(2, EMBEDDED_WIDTH))
    save_file({"emb_params": numbers.astype(np.float32)}, words / f"{EMBEDDING}.safetensors")
    (words / "broken.safetensors").write_bytes(bytes(100))
    nets = tmp_path_factory.mktemp("nets")
    make_net(nets / NET)
    (nets / "broken.safetensors").write_bytes(bytes(100))
    upscalers = tmp_path_factory.mktemp("upscalers")
    make_upscaler(upscalers / f"{UPSCALER}.pth")
    (upscalers / "broken.safetensors").write_bytes(bytes(100))
    settings = {
        "T2I_CACHE_BYTES": "0",
        "T2I_CONTROLNETS": str(nets),
        "T2I_EMBEDDINGS": str(words),
        "T2I_MODEL_ALIASES": ALIASES,
        "T2I_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "T2I_WEBHOOK_ALLOW_PRIVATE": "1",
        "T2I_WEBHOOK_DELAY": "0.2",
        "T2I_UPSCALERS": str(upscalers),
    }
    with _shared(Server(tmp_path_factory.mktemp("server"), **settings)) as running:
        yield running


@pytest.fixture(scope="session")
def known_server(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for clients whose addresses are written down."""
    folder = tmp_path_factory.mktemp("known_server")
    ports = {"http_port": KNOWN_HTTP_PORT, "grpc_port": KNOWN_GRPC_PORT}
    with _shared(Server(folder, **ports, engine_of=server, T2I_CACHE_BYTES="0")) as running:
        yield running


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of the test's own, with settings as keywords."""
    with ExitStack() as servers:
        yield lambda **settings: servers.enter_context(serving(Server(tmp_path, **settings)))


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@contextmanager
def _shared(server: Server) -> Iterator[Server]:
    with serving(server):
        yield server
        metrics = httpx.get(f"{server.url}/metrics").text
    assert 'code="INTERNAL"' not in metrics, server.log
