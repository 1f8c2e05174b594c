"""A request in flight, its plan and its samples. Plain Python: what tensors there are is the model's."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from text2image.core.messages import Request, Share, StreamOptions


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Samples with equal keys may share a forward pass.

    Attributes:
        value: the family's own; nobody else looks into it.
        size: what one row takes, in time and memory, against a row of the model's other keys, in any unit: latent
            pixels, for instance. It foretells the cost of a key that was never measured.
        model: whose it is, by its name in the catalogue. The engine sets it; families leave it open.
    """

    value: Hashable
    size: float = 1.0
    model: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What each sample of a request will take of the device.

    Attributes:
        key: of its first pass.
        rows: most rows that it takes in a forward pass; they bound memory.
        passes: forward passes until it is done, or the best guess: samplers that evaluate the network twice a step take
            more than the request has steps, pictures that begin from another one fewer.
        load: time that one row takes against a plain one of the same key, as a mean over the passes.
        encoding: about the time that encoding its prompts takes against short ones.
    """

    key: BatchKey
    rows: int
    passes: int
    load: float = 1.0
    encoding: float = 1.0


@dataclass(slots=True, eq=False)
class Sample:
    """One picture in flight. Compared by identity: two equal requests are still two samples.

    Attributes:
        key, rows, load: of its next pass. Planned at first, set anew by the model when it has started or advanced the
            sample.
        passes: forward passes planned.
        encoding: as planned.
        step: forward passes taken.
        done: whether it needs no more of them, which the model alone decides.
        state: the model's own; None until its prompt is encoded.
        started_at, encoded_at, denoised_at: seconds on the loop's clock; None until then.
        reported, previewed: the last step that was told of, and the last with a preview.
        reported_at: when that was.
    """

    generation: Generation
    index: int
    key: BatchKey
    rows: int
    passes: int
    load: float = 1.0
    encoding: float = 1.0
    step: int = 0
    done: bool = False
    state: Any = None
    started_at: float | None = None
    encoded_at: float | None = None
    denoised_at: float | None = None
    reported: int = 0
    previewed: int = 0
    reported_at: float = float("-inf")

    @property
    def work(self) -> float:
        """What its next pass takes, in plain rows of its key."""
        return self.rows * self.load

    @property
    def remaining(self) -> int:
        """Passes left, as far as is known."""
        return 0 if self.done else max(1, self.passes - self.step)

    @property
    def steps(self) -> int:
        """Steps that are taken of those that the request asked for."""
        return self.generation.request.steps_drawn

    def steps_after(self, passes: int) -> int:
        """The steps that so many passes amount to; never the last one, which only `done` can tell."""
        return min(self.steps - 1, self.steps * passes // self.passes)

    @property
    def owner(self) -> str:
        """Whose work it is."""
        return self.generation.share.owner

    @property
    def background(self) -> bool:
        """Whether it has what interactive samples leave."""
        return self.generation.share.background

    @property
    def seed(self) -> int:
        return self.generation.request.seed_of(self.index)


@dataclass(slots=True, eq=False)
class Generation:
    """An admitted request: it ends once, in pictures, an error or its cancellation.

    Attributes:
        admitted_at, deadline: seconds on the loop's clock.
        pending: pictures not yet out.
        dropped: pictures that came up too late to be finished in time.
        unread: the ends of its prompts that no text encoder read.
        reported_at: when the last step of any of its pictures was told of that was not a picture's last.
    """

    request: Request
    options: StreamOptions
    admitted_at: float
    deadline: float
    share: Share = field(default_factory=Share)
    samples: list[Sample] = field(default_factory=list)
    pending: int = 0
    dropped: int = 0
    unread: tuple[str, str] = ("", "")
    ended: bool = False
    reported_at: float = float("-inf")

    @classmethod
    def create(
        cls,
        request: Request,
        options: StreamOptions,
        *,
        plan: Plan,
        now: float,
        deadline: float,
        share: Share | None = None,
    ) -> Generation:
        """A generation with its n samples, none of them started."""
        generation = cls(
            request,
            options,
            admitted_at=now,
            deadline=deadline,
            share=share or Share(),
            pending=request.n,
        )
        generation.samples = [
            Sample(generation, index, plan.key, plan.rows, plan.passes, plan.load, plan.encoding)
            for index in range(request.n)
        ]
        return generation
