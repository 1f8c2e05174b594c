"""Which gateway draws what, so that identical requests at several gateways share one drawing through the cache.

The gateway that draws holds a lock in the cache's Redis and extends it while it draws; the others wait for its end and
then find the pictures in the cache. The lock of a gateway that dies runs out, and the next one draws. Without Redis'
answer everybody draws: a lock saves work, and nothing hangs on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.exceptions import LockError, ResponseError

from text2image.gateway.shared import OutOfReach
from text2image.gateway.shared.state import SharedState

# Seconds that a lock lasts after its holder was last heard of, and between two looks of those who wait for it.
LOCK_SECONDS = 6.0
LOOK_SECONDS = 0.1
_PREFIX = "text2image:drawing:"


class DrawingLocks:
    """The locks of this gateway; `seconds` is how long one outlasts its holder's last word."""

    def __init__(self, shared: SharedState, seconds: float = LOCK_SECONDS) -> None:
        self._shared = shared
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[bool]:
        """Holds the lock on a drawing while the block runs; the value tells whether another one held it until now."""
        key = _PREFIX + hashlib.sha256(name.encode()).hexdigest()
        lock: Lock | None = None
        waited = False

        async def acquire(redis: Redis) -> bool:
            nonlocal lock
            lock = Lock(redis, key, timeout=self._seconds, thread_local=False)
            return bool(await lock.acquire(blocking=False))

        while await self._ask(acquire) is False:
            waited = True
            await asyncio.sleep(LOOK_SECONDS)
        extending = asyncio.create_task(self._extend(lock)) if lock else None
        try:
            yield waited
        finally:
            if extending and lock:
                extending.cancel()
                # To its end, whoever leaves meanwhile: others wait for it.
                await asyncio.shield(asyncio.ensure_future(self._ask(lambda _: lock.release())))

    async def _extend(self, lock: Lock) -> None:
        while True:
            await asyncio.sleep(self._seconds / 3)
            await self._ask(lambda _: lock.extend(self._seconds, replace_ttl=True))

    async def _ask(self, question: Callable[[Redis], Awaitable[Any]]) -> Any:
        async def ask(redis: Redis) -> Any:
            # A lock that ran out meanwhile may be another one's by now.
            with contextlib.suppress(LockError):
                return await question(redis)

        try:
            return await self._shared.ask(ask)
        except (OutOfReach, ResponseError):
            return None
