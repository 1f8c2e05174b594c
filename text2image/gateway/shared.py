"""What several gateways share lies in Redis; without its answer each goes on by itself.

A gateway never waits long for Redis, and after a failure it does not ask again for a moment, and then with one request
alone: the others must not pay for a Redis that is away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

# Seconds that an answer may take, and that pass before a Redis that failed is asked again.
ANSWER_TIMEOUT = 0.5
PAUSE = 2.0

T = TypeVar("T")


class OutOfReach(Exception):
    """Redis does not answer; go on with what this process knows."""


class SharedState:
    """A Redis by its URL. `ask` it from one event loop."""

    def __init__(self, url: str) -> None:
        # One attempt: asking twice could do twice what was asked for, and would take longer than is waited for.
        self._redis: Redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0))
        self._away_until = 0.0

    async def ask(self, question: Callable[[Redis], Awaitable[T]]) -> T:
        """The answer to what `question` asks of the connection.

        Raises:
            OutOfReach: it did not answer, or failed a moment ago.
        """
        began = time.monotonic()
        if began < self._away_until:
            raise OutOfReach
        if self._away_until:
            self._away_until = began + PAUSE
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                answer = await question(self._redis)
        except (RedisError, OSError, TimeoutError) as error:
            if not self._away_until:
                reason = str(error) or f"no answer within {ANSWER_TIMEOUT:g} s"
                logger.warning("Redis is out of reach (%s); going on without it", reason)
            self._away_until = time.monotonic() + PAUSE
            raise OutOfReach from None
        if self._away_until:
            logger.info("Redis is back")
            self._away_until = 0.0
        return answer

    async def close(self) -> None:
        await self._redis.aclose()
