"""A sampler is found by whatever the field's tools call it, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import MODEL
from text2image.core.errors import InvalidRequest
from text2image.core.messages import RequestParams, Sampler
from text2image.core.samplers import ALIASES, SCHEDULES, TITLES, sampler_of, split_schedule
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


def asked_for(name: str) -> Sampler:
    return resolve(RequestParams(prompt="a cat", sampler=name), MODEL).sampler


@given(spelled())
def test_any_spelling_in_any_case_is_the_sampler_that_is_meant(
    case: tuple[str, Sampler],
) -> None:
    name, sampler = case
    assert asked_for(name) is sampler


@given(st.text() | spelled().map(lambda case: case[0] + "x"))
def test_anything_else_is_refused_and_told_what_there_is(name: str) -> None:
    if sampler_of(name):
        return
    with pytest.raises(InvalidRequest) as raised:
        asked_for(name)
    (violation,) = raised.value.violations
    assert violation.field == "sampler"
    assert violation.reason.endswith(", ".join(Sampler))


@given(spelled(), st.sampled_from(SCHEDULES), st.sampled_from([" ", "_"]))
def test_another_noise_schedule_is_refused_by_its_name(
    case: tuple[str, Sampler], schedule: str, space: str
) -> None:
    """The picture would be another one, and nobody would be told."""
    name = f"{case[0]}{space}{schedule.lower()}"
    assert split_schedule(name) == (case[1], schedule)
    with pytest.raises(InvalidRequest, match=f"noise schedule {schedule}; .* one of dpm"):
        asked_for(name)


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
    ],
)
def test_the_names_that_tools_write(name: str, sampler: Sampler) -> None:
    assert sampler_of(name) is sampler


@pytest.mark.parametrize(
    "name", ["DPM++ 2M SDE", "Heun", "dpm_2", "euler_cfg_pp", "PLMS", "Eulera"]
)
def test_a_sampler_that_is_not_served_is_not_taken_for_another(name: str) -> None:
    assert sampler_of(name) is None
    assert split_schedule(name) is None


def test_a_model_that_lacks_a_sampler_says_which_it_has() -> None:
    few = replace(MODEL, samplers=(Sampler.LCM,), sampler=Sampler.LCM)
    with pytest.raises(InvalidRequest, match=r"'Euler a'; it must be one of lcm$"):
        resolve(RequestParams(prompt="a cat", sampler="Euler a"), few)
