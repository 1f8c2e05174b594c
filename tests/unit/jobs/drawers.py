"""Draws items of jobs without a model: one-pixel pictures, or what a test wants to happen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from text2image.core.messages import Picture, RequestParams, Timings
from text2image.jobs.claims import Claim
from text2image.jobs.worker import Drawn

TIMINGS = Timings(0.0, 0.0, 0.0)


def drawn(item: Claim, content: bytes = b"PNG") -> Drawn:
    """What an item becomes: as many pictures as it asks for, numbered by its seed."""
    seed = item.params.seed or 0
    pictures = [
        Picture(
            index=index,
            seed=seed + index,
            width=1,
            height=1,
            png=content,
            path="",
            timings=TIMINGS,
        )
        for index in range(item.params.n or 1)
    ]
    return Drawn(pictures, "drawn")


async def at_once(item: Claim) -> Drawn:
    return drawn(item)


class TestDrawer:
    """Draws by a function; `begun` are the claims that it was given."""

    __test__ = False

    def __init__(
        self, draw: Callable[[Claim], Awaitable[Drawn]] = at_once, places: int = 4
    ) -> None:
        self._draw = draw
        self._places = places
        self.begun: list[Claim] = []

    async def draw(self, item: Claim) -> Drawn:
        self.begun.append(item)
        return await self._draw(item)

    def places(self) -> int:
        return self._places

    def cap(self, owner: str) -> int | None:
        return None

    def work(self, params: RequestParams) -> int | None:
        return 1_000_000
