"""A request in flight and the samples that it asked for. Plain Python: what tensors there are is the model's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from text2image.core.messages import Request, Share, StreamOptions


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of one group may share a forward pass. Sides are in latent pixels."""

    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width


@dataclass(slots=True, eq=False)
class Sample:
    """One picture in flight. Compared by identity: two equal requests are still two samples.

    Attributes:
        rows: rows that it takes in a forward pass.
        step: steps taken, of `steps`.
        state: embeddings, latents, scheduler and generator; None until it is prepared.
        started_at, encoded_at, denoised_at: seconds on the loop's clock; None until then.
        previewed_at: when its last preview was drawn.
    """

    generation: Generation
    index: int
    group: Group
    rows: int
    step: int = 0
    state: Any = None
    started_at: float | None = None
    encoded_at: float | None = None
    denoised_at: float | None = None
    previewed_at: float = float("-inf")

    @property
    def steps(self) -> int:
        return self.generation.request.steps

    @property
    def remaining(self) -> int:
        """Steps left."""
        return self.steps - self.step

    @property
    def owner(self) -> str:
        """Whose work it is."""
        return self.generation.share.owner

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
        truncated: the end of the prompt that the text encoder did not read.
        previewed_at: when the last preview of any of its pictures was drawn.
    """

    request: Request
    options: StreamOptions
    admitted_at: float
    deadline: float
    share: Share = field(default_factory=Share)
    samples: list[Sample] = field(default_factory=list)
    pending: int = 0
    dropped: int = 0
    truncated: str = ""
    ended: bool = False
    previewed_at: float = float("-inf")

    @classmethod
    def create(
        cls,
        request: Request,
        options: StreamOptions,
        *,
        group: Group,
        rows: int,
        now: float,
        deadline: float,
        share: Share | None = None,
    ) -> Generation:
        """A generation with its n samples, none of them prepared."""
        generation = cls(
            request,
            options,
            admitted_at=now,
            deadline=deadline,
            share=share or Share(),
            pending=request.n,
        )
        generation.samples = [Sample(generation, index, group, rows) for index in range(request.n)]
        return generation
