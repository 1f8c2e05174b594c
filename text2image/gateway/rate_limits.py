"""The books on what callers spend and how many of their requests run: one in this process, one in Redis for several.

A limit is a promise: in any window of its length no more is spent than its quota. So spendings are kept by slices of
the window, and a slice counts until all of it is older than the window. Either book takes an entry as a whole or not
at all, in constant time, and gives back what was not needed. Times are whole milliseconds of the book's own clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from redis.exceptions import ResponseError

from text2image.core.limits import Allowance, RateLimit
from text2image.gateway.shared import OutOfReach, SharedState

logger = logging.getLogger(__name__)

SLICES = 60
# How long a request that runs is counted in Redis after its gateway has last said so, in seconds.
HOLD_SECONDS = 15.0
# How many callers are remembered before those who have nothing on the book are looked for.
SWEEP_FROM = 1024
_PREFIX = "text2image:caller:"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be booked: a request's work in pixel-steps, and that it runs."""

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
class Page:
    """What a book answers: whether it took the entry, and where the caller stands with it or without."""

    booked: bool
    running: int
    spendings: tuple[Spending, ...]
    now: int


def _slice_of(now: int, limit: RateLimit) -> int:
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
        current = _slice_of(now, RateLimit(1, period))
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

    def book(self, entry: Entry) -> Page:
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
                slices, index = account.slices[limit.period], _slice_of(now, limit)
                slices[index] = slices.get(index, 0) + entry.work
        spendings = self._spendings(account, entry, now)
        return Page(fits, len(account.running), spendings, now)

    def look(self, entry: Entry) -> tuple[Spending, ...]:
        """Where a caller stands; nothing is booked."""
        account = self._accounts.get(entry.caller, _Account())
        return self._spendings(account, entry, self._clock())

    def release(self, entry: Entry, page: Page, *, refund: bool) -> None:
        """Ends what `book` answered with a page: it runs no more, and with `refund` it has cost nothing."""
        account = self._accounts[entry.caller]
        account.running.discard(entry.id)
        for limit in entry.allowance.limits if refund else ():
            slices, index = account.slices.get(limit.period, {}), _slice_of(page.now, limit)
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
        """Forgets callers with nothing on the book, so rarely that it costs each entry little."""
        if len(self._accounts) < self._sweep_at:
            return
        for caller in [name for name, account in self._accounts.items() if account.is_empty(now)]:
            del self._accounts[caller]
        self._sweep_at = max(SWEEP_FROM, 2 * len(self._accounts))


# Each script first takes something away: those that do may also add, in a Redis that is full.

# KEYS: who runs, then a hash of slices for each limit. ARGV: work, id ("" only looks), cap (0 for none),
# milliseconds to hold, then quota and window in milliseconds for each limit.
# Answers now, whether it was booked, how many ran before, and the slices of each limit as they were before.
_BOOK = f"""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local work, id, cap, hold = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local running = redis.call('ZCARD', KEYS[1])
local fits = id ~= '' and (cap == 0 or running < cap)
local answer = {{now, 0, running}}
for i = 2, #KEYS do
  local quota, window = tonumber(ARGV[1 + 2 * i]), tonumber(ARGV[2 + 2 * i])
  local current = math.floor(now * {SLICES} / window)
  local found, counted, spent = redis.call('HGETALL', KEYS[i]), {{}}, 0
  for j = 1, #found, 2 do
    local age = current - found[j]
    if age < 0 or age > {SLICES} then
      redis.call('HDEL', KEYS[i], found[j])
    else
      spent = spent + found[j + 1]
      counted[#counted + 1] = found[j]
      counted[#counted + 1] = found[j + 1]
    end
  end
  fits = fits and spent + work <= quota
  answer[#answer + 1] = counted
end
if fits then
  answer[2] = 1
  for i = 2, #KEYS do
    local window = tonumber(ARGV[2 + 2 * i])
    redis.call('HINCRBY', KEYS[i], math.floor(now * {SLICES} / window), work)
    redis.call('PEXPIRE', KEYS[i], 2 * window)
  end
  if cap > 0 then
    redis.call('ZADD', KEYS[1], now + hold, id)
    redis.call('PEXPIRE', KEYS[1], hold)
  end
end
return answer
"""

# KEYS as above. ARGV: id, work to give back, then the slice of each limit that it was booked in.
_RELEASE = """
redis.call('ZREM', KEYS[1], ARGV[1])
for i = 2, #ARGV - 1 do
  if redis.call('HEXISTS', KEYS[i], ARGV[i + 1]) == 1 then
    if redis.call('HINCRBY', KEYS[i], ARGV[i + 1], -ARGV[2]) <= 0 then
      redis.call('HDEL', KEYS[i], ARGV[i + 1])
    end
  end
end
"""

# KEYS: who runs, for each id. ARGV: milliseconds to hold, then the ids.
_HOLD = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  redis.call('ZADD', KEYS[i], now + ARGV[1], ARGV[i + 1])
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
"""


class RedisStore:
    """In Redis, by Redis' clock. What runs is counted there as long as this process lives, and `hold` seconds more."""

    def __init__(self, state: SharedState, hold: float) -> None:
        self._state = state
        self._hold = hold
        self._running: dict[str, str] = {}
        self._holding: asyncio.Task[None] | None = None
        # A hold that comes after the release would count what runs no more.
        self._in_turn = asyncio.Lock()
        self._told = False

    async def book(self, entry: Entry) -> Page:
        """Takes an entry if it fits into all of its caller's limits, wherever they were spent.

        Raises:
            OutOfReach: Redis does not answer, or takes no entries. If the entry's running is capped, it is told once
                it does.
        """
        try:
            page = await self._ask(entry, entry.id)
        except OutOfReach:
            self._hold_on(entry)
            raise
        if page.booked:
            self._told = False
            self._hold_on(entry)
        return page

    def _hold_on(self, entry: Entry) -> None:
        """Counts an entry as running until it is released; one that is refused never is."""
        if entry.allowance.max_concurrent is None:
            return
        self._running[entry.id] = _keys(entry)[0]
        if self._holding is None or self._holding.done():
            self._holding = asyncio.create_task(self._keep_holding())

    async def look(self, entry: Entry) -> tuple[Spending, ...]:
        """Where a caller stands; nothing is booked.

        Raises:
            OutOfReach: Redis does not answer, or not with what it should.
        """
        return (await self._ask(entry, "")).spendings

    async def _ask(self, entry: Entry, id_: str) -> Page:
        cap = entry.allowance.max_concurrent or 0
        limits = entry.allowance.limits
        windows = [number for limit in limits for number in (limit.quota, limit.seconds * 1000)]
        now, booked, running, *found = await self._run(
            _BOOK, _keys(entry), entry.work, id_, cap, round(self._hold * 1000), *windows
        )
        spendings = []
        for limit, flat in zip(limits, found, strict=True):
            numbers = [int(number) for number in flat]
            slices = dict(zip(numbers[::2], numbers[1::2], strict=True))
            if booked:
                index = _slice_of(now, limit)
                slices[index] = slices.get(index, 0) + entry.work
            spendings.append(Spending(limit, slices, now))
        return Page(bool(booked), running + booked, tuple(spendings), now)

    async def release(self, entry: Entry, page: Page | None, *, refund: bool) -> None:
        """Ends what was booked, as far as Redis can be told; `page` is None where it did not answer then."""
        self._running.pop(entry.id, None)
        slices = [_slice_of(page.now, limit) for limit in entry.allowance.limits] if page else []
        given_back = slices if refund else []
        if not given_back and entry.allowance.max_concurrent is None:
            return
        async with self._in_turn:
            with contextlib.suppress(OutOfReach):
                await self._run(_RELEASE, _keys(entry), entry.id, entry.work, *given_back)

    async def close(self) -> None:
        if self._holding:
            self._holding.cancel()
            await asyncio.wait({self._holding})

    async def _keep_holding(self) -> None:
        while self._running:
            await asyncio.sleep(self._hold / 3)
            async with self._in_turn:
                running = dict(self._running)
                with contextlib.suppress(OutOfReach):
                    await self._run(
                        _HOLD, list(running.values()), round(self._hold * 1000), *running
                    )

    async def _run(self, script: str, keys: list[str], *arguments: str | int) -> Any:
        try:
            return await self._state.ask(
                lambda redis: cast(Any, redis.eval(script, len(keys), *keys, *map(str, arguments)))
            )
        except ResponseError as error:
            # A copy that takes no writes, for one: as good as away for the books, and no reason to wait with asking.
            if not self._told:
                self._told = True
                logger.warning("limits are not shared: Redis does not keep the books: %s", error)
            raise OutOfReach from None


def _keys(entry: Entry) -> list[str]:
    """Who runs, then the slices of each limit."""
    stem = f"{_PREFIX}{entry.caller}:"
    periods = [limit.period for limit in entry.allowance.limits]
    return [stem + name for name in ("running", *periods)]
