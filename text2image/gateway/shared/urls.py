"""The secret that signs URLs, which gateways share without being told any."""

from __future__ import annotations

import secrets

from redis.exceptions import ResponseError

from text2image.gateway.shared import OutOfReach
from text2image.gateway.shared.state import SharedState
from text2image.gateway.urls import KEY_BYTES

_NAME = "text2image:url-key"


class SharedKey:
    """The secret in a Redis, which the first gateway that asks for it leaves there for all others.

    It is asked for each time, since a Redis that began anew has another. Without an answer it is one that nobody else
    has: no picture can be kept then either.
    """

    def __init__(self, state: SharedState) -> None:
        self._state = state

    async def __call__(self) -> bytes:
        fresh = secrets.token_bytes(KEY_BYTES)
        try:
            known = await self._known()
            if known is None:
                await self._state.ask(lambda redis: redis.set(_NAME, fresh, nx=True))
                known = await self._known()
        except (OutOfReach, ResponseError):
            return fresh
        return known or fresh

    async def _known(self) -> bytes | None:
        found = await self._state.ask(lambda redis: redis.get(_NAME))
        return found if isinstance(found, bytes) else None
