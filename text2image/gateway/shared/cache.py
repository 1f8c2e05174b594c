"""Pictures in a Redis that several gateways share."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import ResponseError

from text2image.gateway.shared import OutOfReach
from text2image.gateway.shared.state import SharedState

logger = logging.getLogger(__name__)

# Seconds that Redis may take for a picture of many megabytes: less than drawing it takes.
PICTURE_TIMEOUT = 2.0
_PREFIX = "text2image:picture:"


class RedisBackend:
    """Entries in a shared Redis, 6.2 or newer, which forgets each that was not used for `seconds`."""

    def __init__(self, shared: SharedState, seconds: int) -> None:
        self._shared = shared
        self._seconds = seconds
        # What it refuses to do: a full one still gives what it has, which must not make it news that it is full.
        self._told: set[str] = set()

    async def get(self, key: str) -> bytes | None:
        found = await self._ask(
            "give back", lambda redis: redis.getex(_PREFIX + key, ex=self._seconds)
        )
        return found if isinstance(found, bytes) else None

    async def put(self, key: str, entry: bytes) -> None:
        await self._ask("keep", lambda redis: redis.set(_PREFIX + key, entry, ex=self._seconds))

    async def drop(self, key: str) -> None:
        await self._ask("drop", lambda redis: redis.unlink(_PREFIX + key))

    async def _ask(self, what: str, question: Callable[[Any], Awaitable[Any]]) -> object:
        try:
            answer = await self._shared.ask(question)
        except OutOfReach:
            return None
        except ResponseError as error:
            if what not in self._told:
                self._told.add(what)
                logger.warning("Redis does not %s pictures: %s", what, error)
            return None
        self._told.discard(what)
        return answer
