"""The page as its visitors have it: a real `streamlit run`, and a client without a server behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Locator, Page
from streamlit.testing.v1 import AppTest

from frontend.visitor import Visitor
from tests import debian
from tests.e2e.harness import ROOT, eventually, free_port
from tests.samples import MODEL
from text2image.client import Client
from text2image.core.errors import Text2ImageError, Unauthenticated
from text2image.core.messages import (
    ClientEvent,
    Completed,
    ModelInfo,
    Picture,
    Pixels,
    Progress,
    Queued,
    Status,
    Timings,
)
from text2image.gateway import metadata

PAGE = ROOT / "frontend" / "app.py"


def picture_of(seed: int = 1, index: int = 0, *, cached: bool = False) -> Picture:
    """One black pixel."""
    png = metadata.encode(Pixels(1, 1, bytes(3)))
    timings = Timings(0.25, 0.5, 0.25)
    return Picture(
        index=index,
        seed=seed,
        width=1,
        height=1,
        png=png,
        path="",
        timings=timings,
        cached=cached,
    )


def drawn(steps: int = 2, n: int = 1, truncated: str = "") -> list[ClientEvent]:
    """The events of a request that goes well, with seeds 1 and up."""
    events: list[ClientEvent] = [Queued(1.5)]
    events += [Progress(i, step, steps) for step in range(1, steps + 1) for i in range(n)]
    return [*events, *(picture_of(1 + i, i) for i in range(n)), Completed(truncated)]


class ScriptedClient:
    """A client of a server whose answers the test has written; it remembers what it was asked.

    Attributes:
        answer: gives the events of a request, or raises; it is called with the prompt and the fields.
        refusal: what every call is refused with, if anything.
        key: what must be shown, if anything.
        closed: how many connections were closed.
    """

    def __init__(self) -> None:
        self.answer: Callable[..., Iterator[ClientEvent]] = lambda *_, **__: iter(drawn())
        self.refusal: Text2ImageError | None = None
        self.key: str | None = None
        self.served: ModelInfo = MODEL
        self.others: list[ModelInfo] = []
        self.state: Status | None = None
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.connections: list[tuple[str, str | None]] = []
        self.closed = 0

    def __call__(self, address: str, *, api_key: str | None = None) -> ScriptedClient:
        # What cannot be a key is refused as ever.
        Client(address, api_key=api_key).close()
        self.connections.append((address, api_key))
        return self

    def __enter__(self) -> ScriptedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed += 1

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        self._check()
        return [self.served, *self.others]

    def status(self, *, timeout: float | None = None) -> Status:
        if self.state is None:
            assert self.refusal
            raise self.refusal
        return self.state

    def stream(
        self, prompt: str, *, preview_every: int, **fields: object
    ) -> Generator[ClientEvent, None, None]:
        self._check()
        self.asked.append((prompt, fields))
        yield from self.answer(prompt, **fields)

    def _check(self) -> None:
        if self.refusal:
            raise self.refusal
        if self.key and self.key != self.connections[-1][1]:
            raise Unauthenticated("this API key is unknown")


def visitor_of(page: AppTest) -> Visitor:
    visitor = page.session_state["visitor"]
    assert isinstance(visitor, Visitor)
    return visitor


def settle(page: AppTest) -> AppTest:
    """Runs the page as its browser would, until nothing is being drawn."""
    eventually(lambda: page.run() and visitor_of(page).drawing is None, "the drawing has ended")
    assert not page.exception
    return page


def draw(page: AppTest, text: str = "a fox") -> AppTest:
    page.text_input(key="text").input(text)
    page.button(key="draw").click().run()
    return settle(page)


def words(page: AppTest) -> str:
    shown = (*page.subheader, *page.markdown, *page.caption, *page.info)
    return "\n".join(element.value for element in shown)


def press(page: AppTest, label: str) -> AppTest:
    """Presses the first button that is called so."""
    next(button for button in page.button if button.label.startswith(label)).click().run()
    return settle(page)


@contextmanager
def streamlit(folder: Path, **variables: str) -> Iterator[str]:
    """The address of a `streamlit run` of the page, ended afterwards. Nothing may fail in it unseen."""
    port = free_port()
    log = folder / "page.log"
    known = ("T2I_", "STREAMLIT_")  # what the page would listen to
    environment = {name: text for name, text in os.environ.items() if not name.startswith(known)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "streamlit", "run", str(PAGE)),
                *("--server.port", str(port), "--server.address", "127.0.0.1"),
                *("--server.headless", "true"),
            ],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT), **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _is_up(url, process), f"the page is served:\n{log.read_text()}")
        yield url
        assert "Traceback" not in log.read_text()
    except BaseException:
        print(log.read_text())
        raise
    finally:
        process.terminate()
        process.wait(30)


def _is_up(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the page ended by itself"
    try:
        return httpx.get(f"{url}/_stcore/health").status_code == 200
    except httpx.TransportError:
        return False


def ask(page: Page, prompt: str) -> None:
    """Types a prompt and presses Enter."""
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.keyboard.press("Enter")


def result(page: Page) -> Locator:
    """The pictures on the stage, once they are finished."""
    return page.locator(".st-key-result").get_by_role("img")


def gallery(page: Page) -> Locator:
    """All pictures of this visitor."""
    return page.locator(".st-key-gallery").get_by_role("img")


def chromium() -> str:
    """Where Debian's browser is."""
    return debian.command("chromium")
