"""The page's own part: where it finds its server, and what it tells besides the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.samples import MODEL
from text2image import client
from text2image.gateway import metadata
from text2image.messages import ClientEvent, Completed, ModelInfo, Picture, Pixels, Timings
from text2image.settings import get_settings

PAGE = Path(__file__).resolve().parents[2] / "frontend" / "app.py"


class ScriptedClient:
    """A server that draws one black pixel and reads little of any prompt."""

    addresses: list[str] = []  # noqa: RUF012 - one for all, as the page makes its own

    def __init__(self, address: str) -> None:
        self.addresses.append(address)

    def model(self) -> ModelInfo:
        return MODEL

    def stream(self, prompt: str, **_: object) -> Iterator[ClientEvent]:
        png = metadata.encode(Pixels(1, 1, bytes(3)))
        yield Picture(
            index=0, seed=1, width=1, height=1, png=png, path="", timings=Timings(0, 0, 0)
        )
        yield Completed(prompt.partition(" ")[2])


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    monkeypatch.setattr(client, "Client", ScriptedClient)
    monkeypatch.setenv("HOST", "::1")
    monkeypatch.setenv("GRPC_PORT", "50123")
    get_settings.cache_clear()
    yield AppTest.from_file(str(PAGE), default_timeout=60).run()
    get_settings.cache_clear()


def test_a_server_on_ipv6_is_found(page: AppTest) -> None:
    assert not page.exception
    assert ScriptedClient.addresses == ["[::1]:50123"]


@pytest.mark.parametrize(("text", "told"), [("fox", []), ("fox zebra", ["zebra"])])
def test_words_that_were_left_out_are_told(page: AppTest, text: str, told: list[str]) -> None:
    page.text_input[0].input(text)
    page.button[0].click().run()
    assert not page.exception
    assert page.session_state["pictures"]
    assert [info.value.rpartition(": ")[2] for info in page.info] == told
