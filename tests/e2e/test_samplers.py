"""Samplers go by the names that people know, in every dialect."""

from __future__ import annotations

import pytest

from tests.e2e.dialects import DIALECTS, Ask
from tests.e2e.harness import Server


@pytest.fixture(params=DIALECTS)
def ask(request: pytest.FixtureRequest) -> Ask:
    return DIALECTS[request.param]


@pytest.mark.parametrize("name", ["Euler a", "dpmpp_2m", "UniPCMultistepScheduler"])
def test_a_sampler_is_drawn_with_as_other_tools_call_it(
    server: Server, ask: Ask, name: str
) -> None:
    assert ask(server, sampler=name, steps=2).status == 200


def test_a_noise_schedule_that_is_not_drawn_with_is_refused(server: Server, ask: Ask) -> None:
    answer = ask(server, sampler="DPM++ 2M Karras")
    assert answer.status == 400
    assert "noise schedule Karras" in answer.message
    assert "one of dpm++ 2m, euler" in answer.message
