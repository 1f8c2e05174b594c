"""What the service is compared with draws the same pictures as the service does, each baseline as a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from loadtests.baselines.servers import BASELINES, Running, running
from loadtests.calls import http_session
from tests.e2e.harness import Server
from tests.e2e.test_pictures import assert_same, image_of

ASKED = {"text": "a red apple", "guidance_scale": 5.0}
SEED, STEPS = 3, 2


async def drawn(baseline: Running) -> list[str]:
    """The same picture three times at once, one of them with more steps."""
    async with http_session(timeout=120) as session:
        call = baseline.call(session, ASKED)
        answers = await asyncio.gather(*(call(SEED, steps) for steps in (STEPS, STEPS + 1, STEPS)))
    return [str(answer) for answer in answers]


def test_baselines_draw_what_the_service_draws(server: Server, tmp_path: Path) -> None:
    asked = ASKED | {"seed": SEED, "steps": STEPS}
    answer = httpx.post(f"{server.url}/generate", json=asked, timeout=120).json()
    ours = image_of(answer["image_base64"])
    with running(BASELINES, tmp_path) as baselines:
        for baseline in baselines:
            with baseline.awake():
                one, other, again = asyncio.run(drawn(baseline))
            assert_same(image_of(one), ours)
            assert_same(image_of(again), ours)
            assert other != one
