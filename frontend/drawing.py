"""One drawing under way: a thread that reads the server's stream, and what the page can ask of it meanwhile.

A page's script runs for a moment and ends; the drawing goes on without it, until it is finished, cancelled, or its
visitor has gone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from frontend.orders import Order
from text2image.client import Client
from text2image.core.errors import Cancelled, Internal, Text2ImageError
from text2image.core.messages import (
    ClientEvent,
    Completed,
    Loading,
    Picture,
    Pixels,
    Progress,
    Queued,
)

logger = logging.getLogger(__name__)

# A phone that looks at something else for a moment loses its connection and comes back.
GONE_SECONDS = 5.0
# How often it is looked whether the visitor is still there.
_LOOK_SECONDS = 1.0
# Previews of a drawing; each is a small picture to send and to show.
_PREVIEWS = 16


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a drawing: its newest preview until it is finished."""

    step: int
    steps: int
    preview: Pixels | None = None
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A drawing at one moment.

    `predicted_seconds` is None until the server has admitted it, `loading` says what its model waits for until then.
    """

    tiles: tuple[Tile, ...]
    predicted_seconds: float | None
    seconds: float
    completed: Completed
    error: Text2ImageError | None
    loading: str = ""

    @property
    def steps_done(self) -> int:
        return sum(tile.step for tile in self.tiles)

    @property
    def steps(self) -> int:
        """Of all pictures together."""
        return sum(tile.steps for tile in self.tiles)

    @property
    def pictures(self) -> list[Picture]:
        """What is finished, in the order of the pictures' index."""
        return [tile.picture for tile in self.tiles if tile.picture]


class Drawing:
    """Draws an order in threads of its own. All methods are safe to call from any thread."""

    def __init__(
        self,
        order: Order,
        client: Client,
        is_watched: Callable[[], bool] = lambda: True,
        gone_seconds: float = GONE_SECONDS,
    ) -> None:
        """Takes the client over: closing it is what ends a call that waits.

        `is_watched` tells whether the visitor is there; the drawing is cancelled `gone_seconds` after they went.
        """
        self.order = order
        self._client = client
        self._is_watched = is_watched
        self._gone_seconds = gone_seconds
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._cancelled = False
        self._began = time.monotonic()
        waiting = (Tile(0, order.steps_taken),) * order.n
        self._view = View(
            waiting, predicted_seconds=None, seconds=0.0, completed=Completed(), error=None
        )

    def start(self) -> Self:
        for work in (self._draw, self._watch):
            threading.Thread(target=work, name=f"drawing {work.__name__}", daemon=True).start()
        return self

    @property
    def view(self) -> View:
        with self._lock:
            if self.has_ended:
                return self._view
            return replace(self._view, seconds=self._elapsed())

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def cancel(self) -> None:
        """Ends the work on the server too; finished pictures stay."""
        if not self.has_ended:
            self._cancelled = True
            self._client.close()

    def join(self, seconds: float) -> bool:
        """Waits for the end; whether it came in time."""
        return self._ended.wait(seconds)

    def _draw(self) -> None:
        error: Text2ImageError | None = None
        try:
            every = max(1, self.order.steps_taken // _PREVIEWS)
            events = self._client.stream(
                self.order.prompt, preview_every=every, **self.order.fields
            )
            for event in events:
                self._note(event)
        except Text2ImageError as failure:
            error = failure
        except Exception:
            error = fault = Internal()
            # A call on a closed connection fails in more than one way.
            if not self._cancelled:
                logger.exception("a drawing failed; id %s", fault.error_id)
        finally:
            self._client.close()
            self._end(Cancelled("cancelled") if error and self._cancelled else error)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _end(self, error: Text2ImageError | None) -> None:
        with self._lock:
            self._view = replace(self._view, seconds=self._elapsed(), error=error)
            self._ended.set()

    def _note(self, event: ClientEvent) -> None:
        with self._lock:
            match event:
                case Loading(detail=detail):
                    self._view = replace(self._view, loading=detail)
                case Queued(predicted_seconds=seconds):
                    # It is told of the time from now on.
                    total = seconds + (self._elapsed() if self._view.loading else 0.0)
                    self._view = replace(self._view, predicted_seconds=total)
                case Progress(index=index, step=step, steps=steps, preview=preview):
                    shown = preview or self._view.tiles[index].preview
                    self._put(index, Tile(step, steps, shown))
                case Picture(index=index):
                    steps = self._view.tiles[index].steps
                    self._put(index, Tile(steps, steps, picture=event))
                case Completed():
                    self._view = replace(self._view, completed=event)

    def _put(self, index: int, tile: Tile) -> None:
        tiles = self._view.tiles
        self._view = replace(self._view, tiles=(*tiles[:index], tile, *tiles[index + 1 :]))

    def _watch(self) -> None:
        """Cancels when the visitor has been away for too long."""
        last_seen = time.monotonic()
        while not self._ended.wait(min(_LOOK_SECONDS, self._gone_seconds)):
            if self._is_watched():
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen >= self._gone_seconds:
                logger.info("nobody waits for a drawing any more")
                return self.cancel()
        return None
