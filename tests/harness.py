"""A step loop outside of any thread, with everything that it emits kept by generation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Generic, TypeVar

from tests.doubles import NATIVE, Clock, TimedModel, make_request
from text2image.core.errors import Text2ImageError
from text2image.core.messages import Completed, GeneratedImage, Request, Share, StreamOptions
from text2image.engine.admission import Backlog
from text2image.engine.costs import StepCosts
from text2image.engine.loop import Outcome, StepLoop
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.contract import Model
from text2image.engine.sample import Generation

__all__ = ["NATIVE", "Harness", "LoopHarness"]

M = TypeVar("M", bound=Model)
C = TypeVar("C", bound=Callable[[], float])


class LoopHarness(Generic[M, C]):
    """Submits, ticks and remembers."""

    def __init__(
        self,
        model: M,
        costs: StepCosts,
        clock: C,
        max_seconds: float = 1e9,
        memory: MemoryGuard | None = None,
    ) -> None:
        self.model = model
        self.costs = costs
        self.clock = clock
        self.backlog = Backlog(costs, max_seconds)
        self.outcomes: dict[Generation, list[Outcome]] = defaultdict(list)
        self.predicted: dict[Generation, float] = {}
        self.loop = StepLoop(
            model,
            costs,
            self.backlog,
            clock=clock,
            emit=lambda generation, outcome: self.outcomes[generation].append(outcome),
            memory=memory,
        )

    def submit(
        self,
        request: Request | None = None,
        *,
        seconds: float = 1e6,
        options: StreamOptions | None = None,
        owner: str = "",
        weight: int = 1,
        background: bool = False,
    ) -> Generation:
        """Admits a request and hands it to the loop; raises what admission raises."""
        request = request or make_request()
        generation = Generation.create(
            request,
            options or StreamOptions(),
            plan=self.model.plan(request),
            now=self.clock(),
            deadline=self.clock() + seconds,
            share=Share(owner, weight, background),
        )
        self.predicted[generation] = self.backlog.admit(generation)
        self.loop.add(generation)
        return generation

    def finish(self, limit: int = 100_000) -> None:
        """Ticks until nothing is in flight."""
        for _ in range(limit):
            if self.loop.idle:
                return
            self.loop.tick()
        raise AssertionError("the loop did not come to rest")

    def ending(self, generation: Generation) -> Completed | Text2ImageError:
        """The one last outcome of a generation."""
        *before, last = self.outcomes[generation]
        assert not any(isinstance(outcome, Completed | Text2ImageError) for outcome in before)
        assert isinstance(last, Completed | Text2ImageError)
        return last

    def images(self, generation: Generation) -> list[GeneratedImage]:
        """A generation's pictures in the order of their index."""
        images = [out for out in self.outcomes[generation] if isinstance(out, GeneratedImage)]
        return sorted(images, key=lambda image: image.index)


class Harness(LoopHarness[TimedModel, Clock]):
    """The loop around the timed double, with the costs that a warm-up of it would measure."""

    def __init__(
        self,
        model: TimedModel | None = None,
        *,
        max_rows: int = 32,
        max_seconds: float = 1e9,
        memory: MemoryGuard | None = None,
    ) -> None:
        model = model or TimedModel()
        grid = [rows for rows in (1, 2, 4, 8, 16, 32, 64) if rows <= max_rows]
        points = {rows: model.overhead + rows * model.row_seconds for rows in grid}
        costs = StepCosts(
            NATIVE,
            points,
            max_rows=max_rows,
            decode_seconds=model.decode_time,
            encode_seconds=model.encode_time,
        )
        super().__init__(model, costs, model.clock, max_seconds, memory)
