"""Rate limits in a Redis that several gateways share: what callers spend, and how many of their requests run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, cast

from redis.exceptions import ResponseError

from text2image.gateway.rate_limits import SLICES, Decision, Entry, Spending, slice_of
from text2image.gateway.shared import OutOfReach
from text2image.gateway.shared.state import SharedState

logger = logging.getLogger(__name__)

# How long a request that runs is counted after its gateway has last said so, in seconds.
HOLD_SECONDS = 15.0
_PREFIX = "text2image:caller:"

# Each script first takes something away: those that do may also add, in a Redis that is full.

# KEYS: who runs, then a hash of slices for each limit. ARGV: work, id ("" only looks), cap (0 for none),
# milliseconds to hold, then quota and window in milliseconds for each limit.
# Answers now, whether it was allowed, how many ran before, and the slices of each limit as they were before.
_RESERVE = f"""
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

# KEYS as above. ARGV: id, work to give back, then the slice of each limit that it was allowed in.
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

    def __init__(self, state: SharedState, hold: float = HOLD_SECONDS) -> None:
        self._state = state
        self._hold = hold
        self._running: dict[str, str] = {}
        self._holding: asyncio.Task[None] | None = None
        # A hold that comes after the release would count what runs no more.
        self._in_turn = asyncio.Lock()
        self._told = False

    async def reserve(self, entry: Entry) -> Decision:
        """Takes an entry if it fits into all of its caller's limits, wherever they were spent.

        Raises:
            OutOfReach: Redis does not answer, or takes no entries. If the entry's running is capped, it is told once
                it does.
        """
        try:
            decision = await self._ask(entry, entry.id)
        except OutOfReach:
            self._hold_on(entry)
            raise
        if decision.allowed:
            self._told = False
            self._hold_on(entry)
        return decision

    def _hold_on(self, entry: Entry) -> None:
        """Counts an entry as running until it is released; one that is refused never is."""
        if entry.allowance.max_concurrent is None:
            return
        self._running[entry.id] = _keys(entry)[0]
        if self._holding is None or self._holding.done():
            self._holding = asyncio.create_task(self._keep_holding())

    async def look(self, entry: Entry) -> tuple[Spending, ...]:
        """Where a caller stands; nothing is allowed.

        Raises:
            OutOfReach: Redis does not answer, or not with what it should.
        """
        return (await self._ask(entry, "")).spendings

    async def _ask(self, entry: Entry, id_: str) -> Decision:
        cap = entry.allowance.max_concurrent or 0
        limits = entry.allowance.limits
        windows = [number for limit in limits for number in (limit.quota, limit.seconds * 1000)]
        now, allowed, running, *found = await self._run(
            _RESERVE, _keys(entry), entry.work, id_, cap, round(self._hold * 1000), *windows
        )
        spendings = []
        for limit, flat in zip(limits, found, strict=True):
            numbers = [int(number) for number in flat]
            slices = dict(zip(numbers[::2], numbers[1::2], strict=True))
            if allowed:
                index = slice_of(now, limit)
                slices[index] = slices.get(index, 0) + entry.work
            spendings.append(Spending(limit, slices, now))
        return Decision(bool(allowed), running + allowed, tuple(spendings), now)

    async def release(self, entry: Entry, decision: Decision | None, *, refund: bool) -> None:
        """Ends what was allowed, as far as Redis can be told; `decision` is None where it did not answer then."""
        self._running.pop(entry.id, None)
        slices = (
            [slice_of(decision.now, limit) for limit in entry.allowance.limits] if decision else []
        )
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
            # A copy that takes no writes, for one: as good as away, and no reason to wait with asking.
            if not self._told:
                self._told = True
                logger.warning("limits are not shared: Redis takes no entries: %s", error)
            raise OutOfReach from None


def _keys(entry: Entry) -> list[str]:
    """Who runs, then the slices of each limit."""
    stem = f"{_PREFIX}{entry.caller}:"
    periods = [limit.period for limit in entry.allowance.limits]
    return [stem + name for name in ("running", *periods)]
