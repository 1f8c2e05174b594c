"""Which gateway draws what, so that identical requests at several gateways share one drawing through the cache.

Whoever draws holds a lease in the cache's Redis and renews it while it draws; the others wait for its end and then find
the pictures in the cache. A gateway that dies lets its lease run out, and the next in line draws. Without Redis' answer
everybody draws: a lease saves work, and nothing hangs on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from redis.exceptions import ResponseError

from text2image.gateway.shared import OutOfReach, SharedState

logger = logging.getLogger(__name__)

# Seconds that a lease lasts after its holder was last heard of, and between two looks of those who wait for it.
LEASE_SECONDS = 6.0
LOOK_SECONDS = 0.1
_PREFIX = "text2image:drawing:"

# KEYS: the lease. ARGV: its holder, and milliseconds that it is to last, 0 to give it up.
_IF_HELD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

T = TypeVar("T")


class Leases:
    """The leases of this gateway; `seconds` is how long one outlasts its holder's last word."""

    def __init__(self, shared: SharedState, seconds: float = LEASE_SECONDS) -> None:
        self._shared = shared
        self._milliseconds = round(seconds * 1000)

    @contextlib.asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[bool]:
        """Holds the lease on a drawing while the block runs; the value tells whether another one held it until now."""
        key = _PREFIX + hashlib.sha256(name.encode()).hexdigest()
        holder = secrets.token_hex(16)
        waited = False
        while await self._is_taken(key, holder):
            waited = True
            await asyncio.sleep(LOOK_SECONDS)
        renewing = asyncio.create_task(self._renew(key, holder))
        try:
            yield waited
        finally:
            renewing.cancel()
            # To its end, whoever leaves meanwhile: others wait for it.
            await asyncio.shield(asyncio.ensure_future(self._extend(key, holder, 0)))

    async def _is_taken(self, key: str, holder: str) -> bool:
        async def take(redis: Any) -> bool:
            return bool(await redis.set(key, holder, nx=True, px=self._milliseconds))

        return await self._ask(take) is False

    async def _renew(self, key: str, holder: str) -> None:
        while True:
            await asyncio.sleep(self._milliseconds / 3000)
            await self._extend(key, holder, self._milliseconds)

    async def _extend(self, key: str, holder: str, milliseconds: int) -> None:
        await self._ask(lambda redis: redis.eval(_IF_HELD, 1, key, holder, str(milliseconds)))

    async def _ask(self, question: Callable[[Any], Awaitable[T]]) -> T | None:
        try:
            return await self._shared.ask(question)
        except (OutOfReach, ResponseError):
            return None
