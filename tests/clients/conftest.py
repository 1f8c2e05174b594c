"""A server for all clients: each knows one that is called as OpenAI's models are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import ALIASES
from tests.e2e.harness import Server, serving


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"T2I_MODEL_ALIASES": ALIASES, "T2I_DEFAULT_STEPS": "2"}
    with serving(Server(tmp_path_factory.mktemp("clients_server"), **settings)) as running:
        yield running
