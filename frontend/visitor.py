"""One visitor: the drawing under way, the pictures so far, the key, and what they were told last.

It knows nothing of Streamlit; the page keeps one in each session, so it ends with the tab.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from frontend.drawing import Drawing
from frontend.history import History, Piece
from frontend.orders import Order
from frontend.server import Server
from frontend.starts import Start
from frontend.words import Notice, Remedy, Tone, notice_of, sentence
from text2image.core.errors import Text2ImageError
from text2image.core.messages import Completed, Input, ModelInfo


@dataclass(frozen=True, slots=True)
class Told:
    """A notice, the order that it is about, and from when on that may be asked for again."""

    notice: Notice
    order: Order | None
    retry_at: float

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.retry_at - time.monotonic())


@dataclass(slots=True)
class Visitor:
    """`is_present` tells whether their page is still open; `shown` are the pictures on the stage.

    `model` is the one that they draw with, `start` the picture that they begin from, and `refused` why another one
    was not taken; `control_pictures` and `refused_controls` are the same of each ControlNet. `job` is the id of
    the one that they look at, and `refused_batch` why no other was made of what they asked for.
    """

    server: Server
    is_present: Callable[[], bool]
    history: History = field(default_factory=History)
    drawing: Drawing | None = None
    shown: list[Piece] = field(default_factory=list)
    told: Told | None = None
    completed: Completed = field(default_factory=Completed)
    api_key: str | None = None
    models: list[ModelInfo] = field(default_factory=list)
    model: ModelInfo | None = None
    start: Start | None = None
    refused: Notice | None = None
    control_pictures: dict[str, bytes] = field(default_factory=dict)
    refused_controls: dict[str, Notice] = field(default_factory=dict)
    job: str = ""
    refused_batch: Notice | None = None

    @property
    def takes_pictures(self) -> bool:
        """Whether their model begins from pictures."""
        return self.model is not None and Input.IMAGE in self.model.inputs

    def ask_models(self) -> None:
        """Learns what the server serves; while it does not say, what it served last holds."""
        try:
            self.models = self.server.models(self.api_key)
        except Text2ImageError as error:
            if not self.told:
                self.tell(error)
        else:
            # What only kept the page from its model is over.
            if self.told and self.told.order is None:
                self.told = None

    def draw(self, order: Order) -> None:
        """Begins a drawing; one that is under way gives way, and what it has finished is kept."""
        if self.drawing is not None:
            self.drawing.cancel()
            self._keep(self.drawing)
        self.told = None
        self.completed = Completed()
        client = self.server.connect(self.api_key)
        self.drawing = Drawing(order, client, self.is_present).start()

    def settle(self) -> None:
        """Takes over what a drawing brought, once it has ended."""
        if self.drawing is None or not self.drawing.has_ended:
            return
        drawing, self.drawing = self.drawing, None
        self._keep(drawing)
        view = drawing.view
        self.completed = view.completed
        if view.error:
            self.tell(view.error, drawing.order)

    def show(self, piece: Piece) -> None:
        """Puts one of their pictures on the stage."""
        self.shown = [piece]
        self.told = None
        self.completed = Completed()

    def unmask(self) -> None:
        """Leaves no part of their picture marked."""
        if self.start:
            self.start = replace(self.start, mask=None)

    def tell(self, error: Text2ImageError, order: Order | None = None) -> None:
        """Shows an error until the next drawing; `order` is what can be asked for again."""
        notice = notice_of(error, has_key=bool(self.api_key))
        self.told = Told(notice, order, time.monotonic() + notice.retry_after)

    def use_key(self, key: str, order: Order | None = None) -> None:
        """Shows this key from now on, and draws the order that was refused without it."""
        try:
            self.server.connect(key).close()
        except ValueError as error:
            notice = Notice(Tone.WARNING, "That is no API key", sentence(str(error)), Remedy.KEY)
            self.told = Told(notice, order, retry_at=0.0)
            return
        self.api_key = key
        self.told = None
        if order:
            self.draw(order)

    def forget(self) -> None:
        """Empties the gallery and the stage."""
        self.history.clear()
        self.shown = []

    def _keep(self, drawing: Drawing) -> None:
        pictures = drawing.view.pictures
        if pictures:
            self.shown = self.history.add(drawing.order, pictures)
