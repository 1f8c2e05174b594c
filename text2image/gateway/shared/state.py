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
from redis.exceptions import RedisError, ResponseError

from text2image.gateway.shared import OutOfReach

logger = logging.getLogger(__name__)

# Seconds that an answer may take, that connecting may, and that pass before a Redis that failed is asked again.
ANSWER_TIMEOUT = 0.5
CONNECT_TIMEOUT = 2.0
PAUSE = 2.0

T = TypeVar("T")


class SharedState:
    """A Redis by its URL. `ask` it from one event loop.

    An answer may take `answer_timeout` seconds, `ANSWER_TIMEOUT` if that is None. What takes longer than other things
    has a state of its own, since one late answer counts as a Redis that is away.
    """

    def __init__(self, url: str, answer_timeout: float | None = None) -> None:
        self._redis: Redis = Redis.from_url(
            url,
            # One attempt: asking twice could do twice what was asked for, and would take longer than is waited for.
            retry=Retry(NoBackoff(), 0),
            socket_timeout=answer_timeout or ANSWER_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
        )
        self._away_until = 0.0

    async def ask(self, question: Callable[[Redis], Awaitable[T]]) -> T:
        """The answer to what `question` asks of the connection.

        Raises:
            OutOfReach: it did not answer, or failed a moment ago.
            ResponseError: it answered that it does not do this; it may well do other things.
        """
        task = asyncio.current_task()
        assert task
        cancelled = task.cancelling()
        try:
            return await self._ask(question)
        finally:
            # redis-py sends through `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes as it
            # ends. Whoever waits for this task to end would wait for ever.
            if task.cancelling() > cancelled:
                raise asyncio.CancelledError

    async def _ask(self, question: Callable[[Redis], Awaitable[T]]) -> T:
        began = time.monotonic()
        if began < self._away_until:
            raise OutOfReach
        if self._away_until:
            self._away_until = began + PAUSE
        try:
            answer = await question(self._redis)
        except ResponseError:
            self._is_here()
            raise
        except (RedisError, OSError) as error:
            if not self._away_until:
                logger.warning("Redis is out of reach (%s); going on without it", error)
            self._away_until = time.monotonic() + PAUSE
            raise OutOfReach from None
        self._is_here()
        return answer

    async def close(self) -> None:
        await self._redis.aclose()

    def _is_here(self) -> None:
        if self._away_until:
            logger.info("Redis is back")
            self._away_until = 0.0
