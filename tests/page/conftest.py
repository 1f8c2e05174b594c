"""A server, the page, and a browser for all tests of the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from streamlit.testing.v1 import AppTest

from frontend import server as servers
from tests.e2e.harness import Server, free_port, serving
from tests.page.harness import PAGE, ScriptedClient, chromium, streamlit
from text2image.core.keys import ApiKey, KeysFile, hash_of
from text2image.core.settings import get_settings

# Generous, since tests may share their machine; every wait ends as soon as its condition holds.
PATIENCE = 120_000
KEY = "t2i_of-the-page"
# Screenshots are shown to people; a test's pictures need no more than a background of the right colour.
FOR_DOCUMENTS = "UPDATE_SCREENSHOTS" in os.environ
STEPS = {} if FOR_DOCUMENTS else {"T2I_DEFAULT_STEPS": "6"}
DESKTOP = {"viewport": {"width": 1280, "height": 920}}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ScriptedClient:
    scripted = ScriptedClient()
    monkeypatch.setattr(servers, "Client", scripted)
    return scripted


@pytest.fixture
def open_page(
    monkeypatch: pytest.MonkeyPatch, client: ScriptedClient
) -> Iterator[Callable[..., AppTest]]:
    """Opens the page, with settings as keywords."""

    def open_with(**variables: str) -> AppTest:
        for name, value in {"HOST": "127.0.0.1", "GRPC_PORT": "50051", **variables}.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        return AppTest.from_file(str(PAGE), default_timeout=60).run()

    yield open_with
    get_settings.cache_clear()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Asks for a key, draws one picture at a time, and lets nobody wait. Started again, it has the same ports."""
    folder = tmp_path_factory.mktemp("page_server")
    keys = KeysFile(folder / "keys.json")
    keys.add(ApiKey(name="page", sha256=hash_of(KEY), created=datetime.now(UTC)))
    ports = {"http_port": free_port(), "grpc_port": free_port()}
    settings = {
        "T2I_KEYS_FILE": str(keys.path),
        "T2I_MAX_BATCH_ROWS": "2",
        "T2I_MAX_BACKLOG_SECONDS": "0.5",
        # Whatever it measures of itself beside a browser, nothing takes too long.
        "T2I_REQUEST_TIMEOUT": "1e6",
        "T2I_THREADS": "1",
        **STEPS,
    }
    with serving(Server(folder, **ports, **settings)) as running:
        yield running


@pytest.fixture(scope="package")
def address(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is; it has a key of its own."""
    variables = {"T2I_SERVER": server.address, "T2I_API_KEY": KEY}
    with streamlit(tmp_path_factory.mktemp("page"), **variables) as url:
        yield url


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    # Not for the session: asyncio tests cannot run beside it in the same thread.
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE)
        # Chromium's sandbox does not work for root, as whom CI runs.
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens the page as a new visitor, with the browser's traits as keywords."""
    contexts = []

    def open_page(url: str = address, **traits: Any) -> Page:
        context = browser.new_context(**{**DESKTOP, **traits})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(visit: Callable[..., Page]) -> Page:
    """The page on a desktop."""
    return visit()
