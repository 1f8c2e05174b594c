"""Requests in the background that no runner has room for yet: they wait here, in the order of their coming."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing

from text2image.core.errors import Unavailable
from text2image.core.messages import Event, Loading, ModelInfo

# Seconds until a runner is asked again that does not say when.
_PAUSE = 1.0

Drawn = tuple[Event, ModelInfo]


class BackgroundLine:
    """Each model has a line of its own, and only the first in it asks: a full runner is asked once, not by everybody.

    Use it from one event loop. Who is cancelled leaves the line.
    """

    def __init__(self) -> None:
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def drawn(
        self, model: str, generate: Callable[[], AsyncGenerator[Drawn, None]]
    ) -> AsyncGenerator[Drawn, None]:
        """Streams what `generate` does once a runner has room for it.

        Args:
            model: by whose name it waits.
            generate: asks the runners; called again for as long as they are full.
        """
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self._turns[model])
            while True:
                try:
                    async with aclosing(generate()) as events:
                        async for event, drawn_by in events:
                            if not isinstance(event, Loading):
                                await turn.aclose()
                            yield event, drawn_by
                    return
                except Unavailable as refusal:
                    if refusal.reason != Unavailable.FULL:
                        raise
                    await asyncio.sleep(refusal.retry_after or _PAUSE)
