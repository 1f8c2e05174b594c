"""What a full runner need not be asked again for a moment.

Beyond capacity most requests are refused, and each that is asked of the runner takes time from the pictures that it
draws: its event loop shares a process, and often the cores, with the engine. So a refusal that lasts is remembered, and
whoever asks for the like of it meanwhile is refused here. No owner is refused on another's account.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from text2image.errors import Unavailable
from text2image.messages import GenerationRequest, Share


@dataclass(frozen=True, slots=True)
class Kind:
    """What requests have in common that a runner admits or refuses alike."""

    request: GenerationRequest
    owner: str
    patience: float

    @classmethod
    def of(cls, request: GenerationRequest, patience: float, share: Share) -> Kind:
        """The kind of a request that waits for at most `patience` seconds; what it shows is of no matter."""
        shape = replace(request, prompt="", negative_prompt="", seed=0)
        return cls(shape, share.owner, round(patience, 1))


class Refusals:
    """Refusals of one runner that last; `clock` is in seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lasting: dict[Kind, tuple[float, Unavailable]] = {}

    def __len__(self) -> int:
        return len(self._lasting)

    def keep(self, kind: Kind, refusal: Unavailable) -> None:
        """Remembers a refusal for as long as it lasts."""
        now = self._clock()
        self._lasting = {
            kind: (until, known) for kind, (until, known) in self._lasting.items() if until > now
        }
        if refusal.lasts > 0:
            self._lasting[kind] = (now + refusal.lasts, refusal)

    def check(self, kind: Kind) -> None:
        """Refuses what was refused a moment ago.

        Raises:
            Unavailable: in the words of that refusal.
        """
        until, refusal = self._lasting.get(kind, (0.0, None))
        if refusal is not None and self._clock() < until:
            raise Unavailable(
                refusal.message, reason=refusal.reason, retry_after=refusal.retry_after or 1.0
            )
