"""A request's events between the engine and who reads them, bounded however slowly that is."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from text2image.core.errors import DeadlineExceeded
from text2image.core.messages import Progress
from text2image.engine.loop import Outcome

# Reports of progress that are kept for each picture: who reads at all hardly falls behind by more steps than these,
# and who does wants the newest.
PROGRESS_KEPT = 4


class OutcomeStream:
    """Outcomes in their order, for one reader in the same event loop; old progress that nobody has read is dropped."""

    def __init__(self) -> None:
        self._outcomes: deque[Outcome] = deque()
        self._filled = asyncio.Event()

    @property
    def newest(self) -> Outcome | None:
        """What was put last, if it is still unread."""
        return self._outcomes[-1] if self._outcomes else None

    def put(self, outcome: Outcome) -> None:
        """Adds an outcome; a report of progress may push the oldest one of its picture out."""
        if isinstance(outcome, Progress):
            kept = [each for each in self._outcomes if _is_progress_of(each, outcome.index)]
            if len(kept) >= PROGRESS_KEPT:
                self._outcomes.remove(kept[0])
        self._outcomes.append(outcome)
        self._filled.set()

    async def get(self) -> Outcome:
        """The oldest outcome, as soon as there is one."""
        while not self._outcomes:
            self._filled.clear()
            await self._filled.wait()
        return self._outcomes.popleft()


def _is_progress_of(outcome: Outcome, index: int) -> bool:
    return isinstance(outcome, Progress) and outcome.index == index


async def before(deadline: float, changed: asyncio.Event, name: str) -> None:
    """Waits for a change of the model of this name, which is not loaded.

    Raises:
        DeadlineExceeded: there was none in time.
    """
    left = deadline - time.monotonic()
    try:
        # `wait_for` would lose a cancellation that comes together with the change.
        async with asyncio.timeout(None if left == math.inf else left):
            await changed.wait()
    except TimeoutError:
        raise DeadlineExceeded(
            f"the model {name} was not loaded within the time that the request allows"
        ) from None
