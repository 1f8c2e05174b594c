"""The last of a picture's way: from its last step to its pixels, without stalling those who still step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from text2image.core.messages import Pixels
from text2image.engine.attempts import Attempts
from text2image.engine.background import Classes
from text2image.engine.costs import StepCosts
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.contract import DeviceLost, Model, Pending, pixels_of
from text2image.engine.sample import BatchKey, Sample

# While others step, encoding and decoding may each take this share of a step's time, or one chunk if that is more.
SHARE_BESIDE_STEPS = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """Pictures that the device has been given together."""

    pictures: list[tuple[Sample, Pixels | Pending]]
    started: float

    @property
    def ready(self) -> bool:
        return all(isinstance(each, Pixels) or each.ready() for _, each in self.pictures)


class Decoding:
    """Samples that have taken their last step, until their pictures are out.

    A device that decodes beside its steps has one chunk at a time, which is looked at after each step; any other is
    waited for.
    """

    def __init__(
        self,
        model: Model,
        costs: StepCosts,
        memory: MemoryGuard,
        attempt: Attempts,
        *,
        clock: Callable[[], float],
        blame: Callable[[Sample, Exception], None],
        decoded: Callable[[Sequence[tuple[Sample, Pixels]], float], None],
    ) -> None:
        """
        Args:
            blame: ends a sample whose picture cannot be had.
            decoded: takes the pictures of a chunk, and the seconds that it took.
        """
        self._model = model
        self._costs = costs
        self._memory = memory
        self._attempt = attempt
        self._clock = clock
        self._blame = blame
        self._decoded = decoded
        self._waiting: deque[Sample] = deque()
        self._underway: _Chunk | None = None
        # Seconds that what was begun since this was last set is predicted to take.
        self.predicted = 0.0

    def __len__(self) -> int:
        underway = self._underway.pictures if self._underway else []
        return len(self._waiting) + sum(not each.generation.ended for each, _ in underway)

    @property
    def first(self) -> Sample | None:
        """The sample that is decoded next; None if none waits."""
        return self._waiting[0] if self._waiting else None

    def add(self, sample: Sample) -> None:
        """Takes in a sample that is done."""
        self._waiting.append(sample)

    def discard(self, sample: Sample) -> None:
        """Forgets a sample that has ended otherwise; what the device draws of it already is thrown away."""
        if sample in self._waiting:
            self._waiting.remove(sample)

    def run(
        self, budget: float, beside: tuple[BatchKey, int] | None, most: int | None = None
    ) -> None:
        """Decodes in chunks until so many seconds are used up; at least one chunk, or what is under way.

        Args:
            beside: key and rows of the steps that go on meanwhile; None if there are none, and all is waited for.
            most: pictures in a chunk; None for as many as the model decodes together.
        """
        started = self._clock()
        while True:
            if self._underway and (beside is None or self._underway.ready):
                self._finish(self._underway, measured=False)
            if self._underway or not self._waiting:
                return
            self._begin(beside, most)
            if self._clock() - started >= budget:
                return

    def _begin(self, beside: tuple[BatchKey, int] | None, most: int | None) -> None:
        """Gives the device a chunk, and waits for it where it is not drawn beside the steps."""
        first = self._waiting[0]
        fit = self._memory.pictures(first.key, beside)
        limit = min(self._model.decode_limit(first), max(1, fit))
        limit = min(limit, most or limit)
        alike = [sample for sample in self._waiting if sample.key == first.key][:limit]
        for sample in alike:
            self._waiting.remove(sample)
        self.predicted += len(alike) * self._costs.decode_seconds(first.key)
        chunk = _Chunk([], self._clock())
        chunk.pictures.extend(self._attempt.all(alike, self._model.decode))
        if beside is None or not fit or all(isinstance(each, Pixels) for _, each in chunk.pictures):
            self._finish(chunk, measured=len(chunk.pictures) == len(alike))
        else:
            self._underway = chunk

    def _finish(self, chunk: _Chunk, *, measured: bool) -> None:
        """Hands a chunk's pictures out; `measured`: the time that it took tells what pictures cost."""
        self._underway = None
        pictures = []
        for sample, each in chunk.pictures:
            pixels = None if sample.generation.ended else self._pixels(sample, each)
            if pixels:
                pictures.append((sample, pixels))
        seconds = self._clock() - chunk.started
        if measured and chunk.pictures:
            key = chunk.pictures[0][0].key
            self._costs.observe_decode(key, len(chunk.pictures), seconds)
        self._decoded(pictures, seconds)

    def _pixels(self, sample: Sample, picture: Pixels | Pending) -> Pixels | None:
        try:
            return pixels_of(picture)
        except DeviceLost:
            raise
        except Exception as error:
            self._blame(sample, error)
            return None


class ClassDecoding:
    """A queue for each class, so that no interactive picture waits behind those of the background."""

    def __init__(
        self,
        classes: Classes,
        costs: StepCosts,
        make: Callable[[], Decoding],
        clock: Callable[[], float],
    ) -> None:
        """`make` makes one of the queues."""
        self._classes = classes
        self._costs = costs
        self._clock = clock
        self._interactive, self._background = make(), make()

    def __len__(self) -> int:
        return len(self._interactive) + len(self._background)

    def _of(self, sample: Sample) -> Decoding:
        return self._background if sample.background else self._interactive

    def add(self, sample: Sample) -> None:
        """Takes in a sample that is done."""
        self._of(sample).add(sample)

    def discard(self, sample: Sample) -> None:
        """Forgets a sample that has ended otherwise."""
        self._of(sample).discard(sample)

    def run(self, step_seconds: float, beside: tuple[BatchKey, int] | None) -> float:
        """Decodes after a step of so many seconds, as much as does not stall the next; the seconds that were foretold.

        Args:
            beside: key and rows of that step; None if there was none.
        """
        self._interactive.predicted = self._background.predicted = 0.0
        if len(self._classes.interactive):
            self._interactive.run(SHARE_BESIDE_STEPS * step_seconds, beside)
        else:
            self._interactive.run(float("inf"), None)
        if len(self._classes.interactive) or len(self._interactive):
            self._beside_interactive(beside)
        else:
            # What steps goes on; without steps a tick is as long as a chunk.
            self._background.run(
                SHARE_BESIDE_STEPS * step_seconds,
                beside if len(self._classes.background) else None,
                most=1 if self._classes.are_about else None,
            )
        return self._interactive.predicted + self._background.predicted

    def _beside_interactive(self, beside: tuple[BatchKey, int] | None) -> None:
        """A picture of the background, if it has saved up for it."""
        first = self._background.first
        if first and not self._classes.affords(self._costs.decode_seconds(first.key)):
            return
        started = self._clock()
        self._background.run(0.0, beside, most=1)
        self._classes.pay(self._clock() - started)
