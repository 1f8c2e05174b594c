"""Rate limits: what callers spend and how many of their requests run, as this process knows it.

A limit is a promise: in any window of its length no more is spent than its quota. So spendings are kept by slices of
the window, and a slice counts until all of it is older than the window. A store takes an entry as a whole or not
at all, in constant time, and gives back what was not needed. Times are whole milliseconds of the store's own clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from text2image.core.limits import Allowance, RateLimit

SLICES = 60
# How many callers are remembered before idle ones are looked for.
SWEEP_FROM = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be reserved: a request's work in pixel-steps, and that it runs."""

    id: str
    caller: str
    work: int
    allowance: Allowance


@dataclass(frozen=True, slots=True)
class Spending:
    """What counts against a limit at one moment: pixel-steps by slice."""

    limit: RateLimit
    slices: Mapping[int, int]
    now: int

    @property
    def left(self) -> int:
        """Pixel-steps that may still be spent."""
        return max(0, self.limit.quota - sum(self.slices.values()))

    def fits(self, work: int) -> bool:
        return sum(self.slices.values()) + work <= self.limit.quota

    def seconds_until(self, work: int) -> float:
        """Seconds until so much may be spent if nobody spends anything meanwhile; `work` is at most the quota."""
        spent = sum(self.slices.values())
        wait = 0
        for index in sorted(self.slices):
            if spent + work <= self.limit.quota:
                break
            spent -= self.slices[index]
            wait = _end_of(index, self.limit) - self.now
        return wait / 1000

    @property
    def seconds_until_more(self) -> float:
        """Seconds until something of what was spent comes back."""
        return (_end_of(min(self.slices), self.limit) - self.now) / 1000 if self.slices else 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What a store answers: whether the entry is allowed, and where the caller stands with it or without."""

    allowed: bool
    running: int
    spendings: tuple[Spending, ...]
    now: int


def slice_of(now: int, limit: RateLimit) -> int:
    return now * SLICES // (limit.seconds * 1000)


def _end_of(index: int, limit: RateLimit) -> int:
    """When the last spending of a slice is older than the window."""
    return -(-(index + SLICES + 1) * limit.seconds * 1000 // SLICES)


def _milliseconds() -> int:
    return time.monotonic_ns() // 1_000_000


@dataclass(slots=True)
class _Account:
    slices: dict[str, dict[int, int]] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)

    def forget(self, period: str, now: int) -> None:
        """Drops the slices that count no more."""
        slices = self.slices.get(period, {})
        current = slice_of(now, RateLimit(1, period))
        for index in [index for index in slices if index < current - SLICES]:
            del slices[index]

    def is_empty(self, now: int) -> bool:
        for period in self.slices:
            self.forget(period, now)
        return not self.running and not any(self.slices.values())


class LocalStore:
    """In this process's memory; `clock` is in milliseconds and never goes back."""

    def __init__(self, clock: Callable[[], int] = _milliseconds) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._sweep_at = SWEEP_FROM

    def __len__(self) -> int:
        return len(self._accounts)

    def reserve(self, entry: Entry) -> Decision:
        """Takes an entry if it fits into all of its caller's limits."""
        now = self._clock()
        self._sweep(now)
        account = self._accounts.setdefault(entry.caller, _Account())
        cap = entry.allowance.max_concurrent
        fits = (cap is None or len(account.running) < cap) and all(
            spending.fits(entry.work) for spending in self._spendings(account, entry, now)
        )
        if fits:
            account.running.add(entry.id)
            for limit in entry.allowance.limits:
                slices, index = account.slices[limit.period], slice_of(now, limit)
                slices[index] = slices.get(index, 0) + entry.work
        spendings = self._spendings(account, entry, now)
        return Decision(fits, len(account.running), spendings, now)

    def look(self, entry: Entry) -> tuple[Spending, ...]:
        """Where a caller stands; nothing is allowed."""
        account = self._accounts.get(entry.caller, _Account())
        return self._spendings(account, entry, self._clock())

    def release(self, entry: Entry, decision: Decision, *, refund: bool) -> None:
        """Ends what `reserve` answered with a decision: it runs no more, and with `refund` it has cost nothing."""
        account = self._accounts[entry.caller]
        account.running.discard(entry.id)
        for limit in entry.allowance.limits if refund else ():
            slices, index = account.slices.get(limit.period, {}), slice_of(decision.now, limit)
            if index in slices:
                slices[index] -= entry.work
                if slices[index] <= 0:
                    del slices[index]

    def _spendings(self, account: _Account, entry: Entry, now: int) -> tuple[Spending, ...]:
        spendings = []
        for limit in entry.allowance.limits:
            account.forget(limit.period, now)
            slices = account.slices.setdefault(limit.period, {})
            spendings.append(Spending(limit, dict(slices), now))
        return tuple(spendings)

    def _sweep(self, now: int) -> None:
        """Forgets callers without spendings or running requests, so rarely that it costs each entry little."""
        if len(self._accounts) < self._sweep_at:
            return
        for caller in [name for name, account in self._accounts.items() if account.is_empty(now)]:
            del self._accounts[caller]
        self._sweep_at = max(SWEEP_FROM, 2 * len(self._accounts))
