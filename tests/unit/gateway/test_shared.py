"""What is asked of a Redis ends when it is no longer wanted."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from text2image.gateway.shared.state import SharedState


@pytest.mark.parametrize("answers", [True, False])
async def test_a_cancellation_that_meets_the_answer_is_not_lost(answers: bool) -> None:
    """As it is in `asyncio.wait_for` of Python 3.11, when what it waits for ends at that moment."""
    state = SharedState("redis://127.0.0.1:1/0")
    asked = asyncio.Event()

    async def question(_: Redis) -> str:
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if answers:
                return "an answer"
        raise ConnectionResetError

    asking = asyncio.create_task(state.ask(question))
    await asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert asking.cancelled()
    await state.close()
