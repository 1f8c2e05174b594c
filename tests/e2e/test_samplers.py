"""Samplers go by the names that people know, in every dialect."""

from __future__ import annotations

import pytest

from tests.e2e.dialects import DIALECTS, Ask
from tests.e2e.harness import Server


@pytest.fixture(params=DIALECTS)
def ask(request: pytest.FixtureRequest) -> Ask:
    return DIALECTS[request.param]


@pytest.mark.parametrize(
    "name",
    ["Euler a", "dpmpp_2m", "UniPCMultistepScheduler", "DPM++ 2M Karras", "dpmpp_3m_sde_k", "LMS"],
)
def test_a_sampler_is_drawn_with_as_other_tools_call_it(
    server: Server, ask: Ask, name: str
) -> None:
    assert ask(server, sampler=name, steps=2).status == 200


def test_a_schedule_that_is_not_drawn_with_is_refused(server: Server, ask: Ask) -> None:
    answer = ask(server, sampler="Euler a Karras")
    assert answer.status == 400
    assert "asks for the schedule 'Karras'; with euler ancestral it must be left" in answer.message


def test_a_schedule_has_a_field_of_its_own(server: Server) -> None:
    for dialect in ("rest", "openai", "grpc v1"):
        ask = DIALECTS[dialect]
        assert ask(server, sampler="euler", schedule="karras", steps=2).status == 200
        answer = ask(server, sampler="euler", schedule="cosine")
        assert answer.status == 400
        assert "must be one of karras, exponential, beta, or left out" in answer.message
