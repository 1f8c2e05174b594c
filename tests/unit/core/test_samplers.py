"""A sampler is found by whatever the field's tools call it, and nothing else is taken for one."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import MODEL
from text2image.core.errors import InvalidRequest
from text2image.core.limits import work_of
from text2image.core.messages import Request, RequestParams, Sampler, Schedule
from text2image.core.samplers import (
    ALIASES,
    OWN_SCHEDULES,
    SCHEDULE_TITLES,
    SCHEDULES_OF,
    TITLES,
    network_calls,
    sampler_of,
    schedule_of,
    split_schedule,
)
from text2image.core.validation import resolve

SPELLINGS = {
    spelling: sampler
    for sampler in Sampler
    for spelling in (sampler.value, TITLES[sampler], *ALIASES[sampler])
}


@st.composite
def spelled(draw: st.DrawFn) -> tuple[str, Sampler]:
    """A name as somebody might write it: in any case, with any of the signs that stand for a space."""
    name = draw(st.sampled_from(list(SPELLINGS)))
    letters = [
        draw(st.sampled_from([" ", "_", "-", "  "]))
        if letter in " _"
        else draw(st.sampled_from([letter.lower(), letter.upper()]))
        for letter in name
    ]
    return "".join(letters), SPELLINGS[name]


def request_for(name: str, schedule: str | None = None) -> Request:
    return resolve(RequestParams(prompt="a cat", sampler=name, schedule=schedule), MODEL)


def asked_for(name: str) -> Sampler:
    return request_for(name).sampler


@given(spelled())
def test_any_spelling_in_any_case_is_the_sampler_that_is_meant(
    case: tuple[str, Sampler],
) -> None:
    name, sampler = case
    assert asked_for(name) is sampler


@given(st.text() | spelled().map(lambda case: case[0] + "x"))
def test_anything_else_is_refused_and_told_what_there_is(name: str) -> None:
    if sampler_of(name) or split_schedule(name):
        return
    with pytest.raises(InvalidRequest) as raised:
        asked_for(name)
    (violation,) = raised.value.violations
    assert violation.field == "sampler"
    assert violation.reason.endswith(", ".join(Sampler))


@given(spelled(), st.sampled_from(Schedule), st.sampled_from([" ", "_", "-"]))
def test_a_schedule_is_drawn_with_as_it_is_written_behind_the_name_or_in_its_own_field(
    case: tuple[str, Sampler], schedule: Schedule, space: str
) -> None:
    name, sampler = case
    suffixed = f"{name}{space}{schedule.value.upper()}"
    for asked in ((suffixed, None), (name, schedule.value.upper()), (suffixed, schedule.value)):
        if schedule in SCHEDULES_OF[sampler]:
            request = request_for(*asked)
            assert (request.sampler, request.schedule) == (sampler, schedule)
        else:
            with pytest.raises(InvalidRequest, match=f"with {re.escape(sampler)} it must be"):
                request_for(*asked)


@pytest.mark.parametrize("own", [*OWN_SCHEDULES, "", " ", "normal"])
def test_the_models_own_schedule_can_be_named(own: str) -> None:
    assert request_for("DPM++ 2M", own).schedule is None
    assert request_for(f"DPM++ 2M {own}").schedule is None


@pytest.mark.parametrize(
    ("sampler", "schedule", "field", "reason"),
    [
        ("DPM++ 2M SGM Uniform", None, "sampler", "one of karras, exponential, beta, lu, or left"),
        ("DPM++ 2M", "cosine", "schedule", "asks for the schedule 'cosine'"),
        ("Euler a Karras", None, "sampler", "with euler ancestral it must be left out"),
        ("Euler", "lu", "schedule", "one of karras, exponential, beta, or left out"),
        ("DPM++ 2M Karras", "beta", "schedule", "is 'beta', and the sampler's name ends in Karras"),
        ("DPM++ 2M Karras", "normal", "schedule", "is 'normal', and the sampler's name ends in"),
    ],
)
def test_a_schedule_that_cannot_be_drawn_with_is_refused(
    sampler: str, schedule: str | None, field: str, reason: str
) -> None:
    """The picture would be another one, and nobody would be told."""
    with pytest.raises(InvalidRequest) as raised:
        request_for(sampler, schedule)
    (violation,) = raised.value.violations
    assert violation.field == field
    assert reason in violation.reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DPM++ 2M Karras", (Sampler.DPMPP_2M, Schedule.KARRAS)),
        ("DPM++ 3M SDE Exponential", (Sampler.DPMPP_3M_SDE, Schedule.EXPONENTIAL)),
        ("dpmpp_2m_sde_k", (Sampler.DPMPP_2M_SDE, Schedule.KARRAS)),
        ("LMS Karras", (Sampler.LMS, Schedule.KARRAS)),
        ("DPM2 a Karras", (Sampler.DPM2_ANCESTRAL, Schedule.KARRAS)),
    ],
)
def test_samplers_with_schedules_as_tools_write_them(
    name: str, expected: tuple[Sampler, Schedule]
) -> None:
    sampler, title = split_schedule(name) or (None, "")
    assert (sampler, schedule_of(title)) == expected
    assert title == SCHEDULE_TITLES[expected[1]]


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("DPM++ 2M", Sampler.DPMPP_2M),
        ("dpmpp_2m", Sampler.DPMPP_2M),
        ("DPMSolverMultistepScheduler", Sampler.DPMPP_2M),
        ("Euler", Sampler.EULER),
        ("EulerDiscreteScheduler", Sampler.EULER),
        ("Euler a", Sampler.EULER_ANCESTRAL),
        ("euler_ancestral", Sampler.EULER_ANCESTRAL),
        ("euler_a", Sampler.EULER_ANCESTRAL),
        ("DDIM", Sampler.DDIM),
        ("LCM", Sampler.LCM),
        ("uni_pc", Sampler.UNIPC),
        ("UniPCMultistepScheduler", Sampler.UNIPC),
        ("Heun", Sampler.HEUN),
        ("dpm_2", Sampler.DPM2),
        ("KDPM2AncestralDiscreteScheduler", Sampler.DPM2_ANCESTRAL),
        ("PLMS", Sampler.PNDM),
        ("DPM++ 2M SDE", Sampler.DPMPP_2M_SDE),
        ("dpmpp_3m_sde_gpu", Sampler.DPMPP_3M_SDE),
        ("FlowMatchEulerDiscreteScheduler", Sampler.FLOW_EULER),
    ],
)
def test_the_names_that_tools_write(name: str, sampler: Sampler) -> None:
    assert sampler_of(name) is sampler


@pytest.mark.parametrize(
    "name", ["DPM++ SDE", "DPM++ 2S a", "dpm_fast", "euler_cfg_pp", "DPM++ 2M SDE Heun", "Eulera"]
)
def test_a_sampler_that_is_not_served_is_not_taken_for_another(name: str) -> None:
    assert sampler_of(name) is None
    assert split_schedule(name) is None


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [
        (Sampler.EULER, [1, 2, 20]),
        (Sampler.HEUN, [1, 3, 39]),
        (Sampler.DPM2_ANCESTRAL, [1, 3, 39]),
        (Sampler.PNDM, [1, 3, 21]),
    ],
)
def test_network_calls_are_counted_honestly(sampler: Sampler, calls: list[int]) -> None:
    assert [network_calls(sampler, steps) for steps in (1, 2, 20)] == calls


def test_a_sampler_that_takes_fewer_steps_says_how_many() -> None:
    model = replace(MODEL, max_steps=((Sampler.LCM, 50),))
    assert resolve(RequestParams(prompt="a cat", sampler="lcm", steps=50), model).steps == 50
    for steps, reason in ((51, "with lcm it must be at most 50"), (151, "between 1 and 150")):
        with pytest.raises(InvalidRequest, match=f"steps: is {steps}; .*{reason}"):
            resolve(RequestParams(prompt="a cat", sampler="lcm", steps=steps), model)
    assert resolve(RequestParams(prompt="a cat", sampler="euler", steps=150), model).steps == 150


def test_a_model_that_lacks_a_sampler_says_which_it_has() -> None:
    few = replace(MODEL, samplers=(Sampler.LCM,), sampler=Sampler.LCM)
    with pytest.raises(InvalidRequest, match=r"'Euler a'; it must be one of lcm$"):
        resolve(RequestParams(prompt="a cat", sampler="Euler a"), few)


def test_work_counts_network_calls() -> None:
    """A step that asks the network twice costs its caller two."""
    once = request_for("euler")
    assert work_of(once) == once.width * once.height * once.steps
    assert work_of(request_for("heun")) == once.width * once.height * (2 * once.steps - 1)
