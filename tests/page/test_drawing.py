"""A drawing goes on without its page, can be looked at and stopped from outside, and outlives nobody's interest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from frontend.drawing import Drawing
from frontend.orders import Order
from frontend.starts import Start
from tests.e2e.harness import eventually
from tests.page.harness import ScriptedClient, drawn
from text2image.core.errors import Cancelled, Internal, Text2ImageError, Unavailable
from text2image.core.messages import ClientEvent, Pixels, Progress, Queued

ORDER = Order(
    text="a fox",
    context="",
    negative_prompt="",
    width=64,
    height=64,
    steps=2,
    guidance_scale=5.0,
    sampler="euler",
    n=1,
    seed=None,
)
JOIN_SECONDS = 30


class HeldClient(ScriptedClient):
    """Draws one step and then waits, as a call does that is queued, until its connection is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._closing = threading.Event()
        self.answer = self._hold

    def close(self) -> None:
        super().close()
        self._closing.set()

    def _hold(self, prompt: str, **fields: object) -> Iterator[ClientEvent]:
        yield Queued(9.0)
        yield Progress(0, 1, 2, Pixels(1, 1, bytes(3)))
        assert self._closing.wait(JOIN_SECONDS)
        raise Cancelled("CANCELLED: Channel closed!")


def start(client: ScriptedClient, is_watched: Callable[[], bool] = lambda: True) -> Drawing:
    return Drawing(ORDER, client, is_watched, gone_seconds=0.1).start()  # type: ignore[arg-type]


def test_a_finished_drawing_has_its_pictures_and_closed_its_connection() -> None:
    client = ScriptedClient()
    client.answer = lambda *_, **__: iter(drawn(truncated="zebra"))
    drawing = start(client)
    assert drawing.join(JOIN_SECONDS)
    view = drawing.view
    assert [picture.seed for picture in view.pictures] == [1]
    assert (view.steps_done, view.steps, view.completed.truncated) == (2, 2, "zebra")
    assert view.error is None
    assert client.closed == 1


def test_progress_is_seen_while_it_draws() -> None:
    client = HeldClient()
    drawing = start(client)
    eventually(lambda: drawing.view.steps_done == 1, "the first step is seen")
    view = drawing.view
    assert not drawing.has_ended
    assert view.predicted_seconds == 9.0
    assert view.tiles[0].preview == Pixels(1, 1, bytes(3))
    drawing.cancel()
    assert drawing.join(JOIN_SECONDS)


@pytest.mark.parametrize(
    ("order", "steps"),
    [
        (replace(ORDER, steps=20, start=Start(64, 64, b""), strength=0.6), 12),
        (replace(ORDER, steps=20, start=Start(64, 64, b""), strength=0.01), 1),
        (replace(ORDER, steps=20, hires_scale=2.0, hires_strength=0.5), 30),
        (replace(ORDER, steps=20, hires_scale=2.0, hires_strength=0.5, hires_steps=8), 24),
        (replace(ORDER, steps=20, hires_strength=0.5, hires_steps=8, strength=0.6), 20),
        # A flow takes the step whole that a strength reaches into.
        (replace(ORDER, sampler="flow euler", steps=5, start=Start(64, 64, b""), strength=0.5), 3),
        (replace(ORDER, sampler="Flow Heun", steps=5, hires_scale=2.0, hires_strength=0.5), 8),
        (replace(ORDER, sampler="a later one", steps=5, start=Start(64, 64, b""), strength=0.5), 2),
    ],
)
def test_the_steps_of_all_passes_are_waited_for(order: Order, steps: int) -> None:
    assert Drawing(order, HeldClient()).view.steps == steps  # type: ignore[arg-type]


def test_cancelling_ends_a_call_that_waits() -> None:
    client = HeldClient()
    drawing = start(client)
    eventually(lambda: drawing.view.steps_done == 1, "it waits for its second step")
    drawing.cancel()
    assert drawing.join(JOIN_SECONDS)
    assert isinstance(drawing.view.error, Cancelled)
    assert client.closed


def test_a_drawing_that_nobody_watches_is_cancelled() -> None:
    present = threading.Event()
    present.set()
    drawing = start(HeldClient(), present.is_set)
    eventually(lambda: drawing.view.steps_done == 1, "it draws")
    assert not drawing.join(0.3)
    present.clear()
    assert drawing.join(JOIN_SECONDS)
    assert isinstance(drawing.view.error, Cancelled)


def test_no_thread_is_left_behind() -> None:
    drawings = [start(ScriptedClient()) for _ in range(5)]
    assert all(drawing.join(JOIN_SECONDS) for drawing in drawings)
    eventually(
        lambda: not any("drawing" in thread.name for thread in threading.enumerate()),
        "the drawings' threads have ended",
    )


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (Unavailable("full", reason=Unavailable.FULL, retry_after=3), Unavailable),
        (RuntimeError("a bug"), Internal),
    ],
)
def test_what_goes_wrong_is_kept_for_the_page(
    raised: Exception, kind: type[Text2ImageError]
) -> None:
    def fail(*_: object, **__: object) -> Iterator[ClientEvent]:
        raise raised

    client = ScriptedClient()
    client.answer = fail
    drawing = start(client)
    assert drawing.join(JOIN_SECONDS)
    assert isinstance(drawing.view.error, kind)
    assert client.closed == 1
