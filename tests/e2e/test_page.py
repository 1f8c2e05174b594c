"""The page draws with a real server, and says in words what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from tests.e2e.harness import ROOT, Server, free_port
from text2image.settings import get_settings

PAGE = ROOT / "frontend" / "app.py"
WAIT_SECONDS = 60


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AppTest]:
    def open_on(grpc_port: int) -> AppTest:
        monkeypatch.setenv("HOST", "127.0.0.1")
        monkeypatch.setenv("GRPC_PORT", str(grpc_port))
        get_settings.cache_clear()
        return AppTest.from_file(str(PAGE), default_timeout=WAIT_SECONDS).run()

    return open_on


def test_words_become_a_picture(server: Server, open_page: Callable[[int], AppTest]) -> None:
    page = open_page(server.grpc_port)
    page.text_input[0].input("a cat in the snow")
    page.button[0].click().run()
    assert not page.exception
    assert not page.error
    (picture,) = page.session_state["pictures"]
    assert picture.png.startswith(b"\x89PNG")


def test_a_server_that_is_down_is_said_in_words(open_page: Callable[[int], AppTest]) -> None:
    page = open_page(free_port())
    assert not page.exception
    assert "again" in page.warning[0].value
