"""What a full runner need not be asked again for a moment.

Beyond capacity most requests are refused, and each that is asked of the runner takes time from the pictures that it
draws: its event loop shares a process, and often the cores, with the engine. So a refusal that lasts is remembered, and
whoever asks for the like of it meanwhile is refused here. No owner is refused on another's account. Where the wait
alone is too long, the like of it is anything that the owner asks for, so that not even the body has to be read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from text2image.core.errors import Unavailable
from text2image.core.hires import passes
from text2image.core.messages import Request, Share

# Seconds after a refusal has ended in which a crowd is let through one by one. In a crowd the next one comes at once.
ONE_BY_ONE = 0.02
# Seconds in which the one that is let through gets to the runner.
CLAIM = 0.1


def shape_of(request: Request) -> Request:
    """What a runner goes by when it admits or refuses: all of a request but what it shows."""
    first, _ = passes(request)
    controls = tuple(replace(each, image=None) for each in first.controls)
    return replace(first, prompt="", negative_prompt="", seed=0, image=None, controls=controls)


class Kind(NamedTuple):
    """What requests have in common that a runner admits or refuses alike; without a shape it is anything."""

    shape: Request | None
    owner: str
    patience: float
    background: bool = False

    @classmethod
    def of(cls, request: Request, patience: float, share: Share) -> Kind:
        """The kind of a request that waits for at most `patience` seconds."""
        return cls.shaped(shape_of(request), patience, share)

    @classmethod
    def shaped(cls, shape: Request | None, patience: float, share: Share) -> Kind:
        """The same for what has a shape, or for whatever an owner asks for."""
        return cls(shape, share.owner, round(patience, 1), share.background)


@dataclass(slots=True, eq=False)
class _Refusal:
    """One that lasts.

    Attributes:
        until: on the clock.
        again: makes the error anew, with how long it `lasts`: one that was raised holds on to all that its request had.
        probed: whether a request is on its way to find out if it still holds.
        claimed: until when one is on its way to be that request.
    """

    until: float
    again: Callable[..., Unavailable]
    probed: bool = False
    claimed: float = -math.inf


class Refusals:
    """Refusals of one runner that last; `clock` is in seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lasting: dict[Kind, _Refusal] = {}

    def __len__(self) -> int:
        return len(self._lasting)

    def keep(self, kind: Kind, refusal: Unavailable) -> None:
        """Remembers a refusal for as long as it lasts."""
        now = self._clock()
        self._lasting = {
            known: held
            for known, held in self._lasting.items()
            if held.probed or now < max(held.claimed, held.until + ONE_BY_ONE)
        }
        if refusal.lasts > 0:
            retry_after = refusal.retry_after or 0.0
            again = partial(
                Unavailable, refusal.message, reason=refusal.reason, retry_after=retry_after
            )
            self._lasting[kind] = _Refusal(now + refusal.lasts, again)
            if refusal.anything:
                self._lasting[kind._replace(shape=None)] = _Refusal(now + refusal.lasts, again)

    def check(self, kind: Kind, *, claim: bool = False) -> None:
        """As `find`.

        Raises:
            Unavailable: the refusal.
        """
        if refusal := self.find(kind, claim=claim):
            raise refusal

    def find(self, kind: Kind, *, claim: bool = False) -> Unavailable | None:
        """The refusal of what was refused a moment ago, or is being asked for once more just now; None of all else.

        Args:
            claim: whether the like of this request is to be refused from now on as if it were at the runner. Of a crowd
                that asks in the moment in which a refusal ends, one gets there. The error says how long it lasts then.
        """
        held = self._lasting.get(kind)
        if held is None:
            return None
        now = self._clock()
        if held.probed or now < held.until or (claim and now < held.claimed):
            return held.again(lasts=max(0.0, held.until - now) if claim else 0.0)
        if now >= max(held.claimed, held.until + ONE_BY_ONE):
            del self._lasting[kind]
        elif claim:
            held.claimed = now + CLAIM
        return None

    @contextmanager
    def probe(self, kind: Kind) -> Iterator[None]:
        """Has the like of a request stay refused until the runner has answered it; after that what it said counts.

        Otherwise all that arrives in the moment in which a refusal ends would be sent to the runner.
        """
        kinds = (kind, kind._replace(shape=None))
        probed = [held for each in kinds if (held := self._lasting.get(each))]
        for held in probed:
            held.probed = True
        try:
            yield
        finally:
            for held in probed:
                held.probed = False
                held.until = held.claimed = self._clock()
