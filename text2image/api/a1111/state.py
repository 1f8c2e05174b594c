"""What the dialect remembers from one request to the next: what is being drawn, and which model callers have chosen.

It is kept in this process alone, and nobody sees anything of another caller.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from text2image.core.messages import ClientEvent, Picture, Pixels, Progress

# Callers whose choices are kept, and ids of drawings that are over.
_CALLERS, _ENDED = 1024, 256
# What is told of a drawing that has only begun, since 0 is taken for none, as A1111 has it.
_BEGUN = 0.01


@dataclass(slots=True, eq=False)
class Job:
    """A request that is being drawn, and how far it is.

    Attributes:
        owner: the caller's name.
        task_id: what its client calls it, if anything.
        count: its pictures.
        kind: what A1111 calls what it does.
        interrupted: somebody has ended it.
    """

    owner: str
    task_id: str
    count: int
    kind: str
    began: float = field(default_factory=time.monotonic)
    pictures: list[Picture] = field(default_factory=list)
    progress: dict[int, Progress] = field(default_factory=dict)
    preview: Pixels | None = None
    previews: int = 0
    interrupted: bool = False
    _end: Callable[[], object] = lambda: None

    def watch(self, event: ClientEvent) -> None:
        """Takes in what happens to it."""
        if isinstance(event, Picture):
            self.pictures.append(event)
            self.progress.pop(event.index, None)
        elif isinstance(event, Progress):
            self.progress[event.index] = event
            if event.preview:
                self.preview = event.preview
                self.previews += 1

    def ends_by(self, end: Callable[[], object]) -> None:
        """Says how to end it, which is done at once if somebody has wanted that already."""
        self._end = end
        if self.interrupted:
            end()

    def interrupt(self) -> None:
        self.interrupted = True
        self._end()

    @property
    def done(self) -> float:
        """The part of its steps that is taken, above 0."""
        parts = sum(each.step / max(1, each.steps) for each in self.progress.values())
        return min(1.0, max(_BEGUN, (len(self.pictures) + parts) / self.count))

    @property
    def seconds_left(self) -> float:
        """As many as it has taken, in proportion to what is left."""
        return (time.monotonic() - self.began) * (1 / self.done - 1)

    @property
    def step(self) -> tuple[int, int]:
        """The steps of the picture that is least far, and all of its steps."""
        if not self.progress:
            return 0, 0
        least = min(self.progress.values(), key=lambda each: each.step)
        return least.step, least.steps


class Jobs:
    """What is being drawn, by its owner, in the order of its coming."""

    def __init__(self) -> None:
        self._running: dict[str, list[Job]] = {}
        self._ended: deque[tuple[str, str]] = deque(maxlen=_ENDED)

    @contextmanager
    def running(self, job: Job) -> Iterator[Job]:
        """Has a job be known as long as it lasts."""
        jobs = self._running.setdefault(job.owner, [])
        jobs.append(job)
        try:
            yield job
        finally:
            jobs.remove(job)
            if not jobs:
                del self._running[job.owner]
            if job.task_id:
                self._ended.append((job.owner, job.task_id))

    def of(self, owner: str, task_id: str = "") -> list[Job]:
        """A caller's jobs, the oldest first; those of one id, if one is named."""
        jobs = self._running.get(owner, ())
        return [job for job in jobs if not task_id or job.task_id == task_id]

    def has_ended(self, owner: str, task_id: str) -> bool:
        """Whether a caller's job of this id was over a short while ago."""
        return (owner, task_id) in self._ended


class Choices:
    """The model that each caller has chosen for requests that name none, as A1111 does for all at once."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, str] = OrderedDict()

    def of(self, owner: str) -> str | None:
        return self._models.get(owner)

    def choose(self, owner: str, model: str) -> None:
        self._models[owner] = model
        self._models.move_to_end(owner)
        if len(self._models) > _CALLERS:
            self._models.popitem(last=False)


@dataclass(slots=True)
class State:
    """All of it."""

    jobs: Jobs = field(default_factory=Jobs)
    choices: Choices = field(default_factory=Choices)
