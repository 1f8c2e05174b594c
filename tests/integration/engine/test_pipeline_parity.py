"""The engine draws what diffusers' own pipeline draws for the same seed, for every kind of model that we serve."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    CONFIG,
    OFFERED,
    TOLERANCE,
    Alone,
    draw_alone,
    harness_for,
    settings_for,
)
from tests.integration.engine.pipelines import draw_with_pipeline
from text2image.core.errors import InvalidRequest, Text2ImageError
from text2image.core.messages import Request, RequestParams, Sampler, Schedule
from text2image.core.samplers import SCHEDULES_OF
from text2image.core.validation import resolve
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import EMBEDDED_PATH, load_model
from text2image.engine.samplers.registry import limit_steps, scheduler_for


def from_the_first(scheduler: Any) -> Any:
    """The scheduler, which begins with its first timestep even where the second is the same; else it would fail."""
    set_timesteps = scheduler.set_timesteps

    def begun(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)

    scheduler.set_timesteps = begun
    return scheduler


def in_double_precision(scheduler: Any) -> Any:
    """The scheduler, which goes on from what it has computed in float64, whatever the pipeline keeps of it.

    From the first noise level of the embedded model, 4096, a step of Heun or DPM2 cancels all but three digits of fp32.
    """
    step, exact = scheduler.step, list[torch.Tensor]()

    @wraps(step)
    def stepped(output: Any, timestep: Any, sample: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        latents = exact.pop() if exact else sample.double()
        exact.append(step(output.double(), timestep, latents, **kwargs)[0])
        return (exact[0].float(),)

    scheduler.step = stepped
    return scheduler


@pytest.fixture(scope="session")
def theirs() -> Alone:
    """The picture that diffusers' own pipeline draws with the embedded model; each is drawn once for all runtimes."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        EMBEDDED_PATH, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)

    def draw(request: Request) -> np.ndarray:
        scheduler = scheduler_for(request.sampler, CONFIG, request.schedule)
        if request.sampler in (Sampler.HEUN, Sampler.DPM2):
            scheduler = in_double_precision(scheduler)
        pipeline.scheduler = from_the_first(scheduler)
        return draw_with_pipeline(pipeline, request)

    return cache(draw)


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        # In that one diffusers' own rounding shows, as in Heun and DPM2, and its noise depends on the precision.
        *((sampler, None) for sampler in OFFERED if sampler is not Sampler.DPM2_ANCESTRAL),
        *((Sampler.DPMPP_2M, schedule) for schedule in SCHEDULES_OF[Sampler.DPMPP_2M]),
        (Sampler.LMS, Schedule.BETA),
    ],
)
def test_the_same_seed_gives_the_pipelines_picture_with_every_sampler(
    alone: Alone, theirs: Alone, sampler: Sampler, schedule: Schedule | None
) -> None:
    side = {"width": 64, "height": 64}
    request = make_request(
        "a cat on a blue background", steps=8, seed=5, sampler=sampler, schedule=schedule, **side
    )
    assert np.abs(alone(request) - theirs(request)).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        ("sd1", make_request("a cat", steps=5, seed=1, negative_prompt="a dog")),
        ("sd1", make_request("a cat", steps=5, seed=1, sampler=Sampler.DPM2_ANCESTRAL)),
        ("sd2", make_request("a cat", steps=5, seed=2, guidance_scale=7.5)),
        (
            "turbo",
            make_request("a cat", steps=1, seed=3, guidance_scale=0.0, sampler=Sampler.EULER),
        ),
        ("lcm", make_request("a cat", steps=4, seed=4, guidance_scale=8.5, sampler=Sampler.LCM)),
    ],
)
def test_every_kind_of_the_family_gives_its_pipelines_picture(
    pipeline_folder: Callable[[str], Path], kind: str, request_: Request
) -> None:
    folder = pipeline_folder(kind)
    model = load_model(settings_for(str(folder)), 0, lambda detail: None)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_for(request_.sampler, pipeline.scheduler.config, None)
    theirs = draw_with_pipeline(pipeline, request_)
    assert np.abs(draw_alone(model, request_) - theirs).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("kind", "steps", "rows", "sampler"),
    [
        # Its own is PNDM, which makes more calls than steps.
        ("sd1", 25, 2, Sampler.PNDM),
        ("sd2", 25, 2, Sampler.DDIM),
        ("turbo", 1, 1, Sampler.EULER_ANCESTRAL),
        ("lcm", 4, 1, Sampler.LCM),
    ],
)
def test_defaults_suit_the_kind_of_model(
    pipeline_folder: Callable[[str], Path], kind: str, steps: int, rows: int, sampler: Sampler
) -> None:
    model = load_model(settings_for(str(pipeline_folder(kind))), 0, lambda detail: None)
    assert (model.info.steps, model.info.sampler) == (steps, sampler)
    assert model.plan(make_request(guidance_scale=model.info.guidance_scale)).rows == rows


def test_a_default_sampler_that_does_not_fit_the_model_is_named(
    pipeline_folder: Callable[[str], Path],
) -> None:
    settings = settings_for(str(pipeline_folder("sd1"))).model_copy(
        update={"default_sampler": Sampler.FLOW_EULER}
    )
    with pytest.raises(ValueError, match=r"T2I_DEFAULT_SAMPLER is flow euler; .* one of dpm"):
        load_model(settings, 0, lambda detail: None)


def test_a_model_says_what_it_is_drawn_with(embedded: Model) -> None:
    info = embedded.info
    assert info.samplers == OFFERED
    assert set(info.schedules) == set(Schedule)
    assert dict(info.max_steps) == {Sampler.LCM: 50, Sampler.TCD: 50}
    assert not {Sampler.FLOW_EULER, Sampler.FLOW_HEUN} & set(info.samplers)


def test_an_unguided_and_a_guided_lcm_sample_share_a_batch_of_one_row_each(
    pipeline_folder: Callable[[str], Path],
) -> None:
    model = load_model(settings_for(str(pipeline_folder("lcm"))), 0, lambda detail: None)
    assert model.plan(make_request(guidance_scale=8.5)).rows == 1
    assert model.plan(make_request(guidance_scale=0.0)).rows == 1


@pytest.mark.parametrize("runtime", ["torch"], indirect=True)
@pytest.mark.parametrize("sampler", OFFERED)
@pytest.mark.parametrize("steps", [1, 2, 50, 51, 150])
def test_every_step_count_that_validation_lets_through_has_a_trajectory(
    embedded: Model, sampler: Sampler, steps: int
) -> None:
    params = RequestParams(
        prompt="a cat",
        width=64,
        height=64,
        steps=steps,
        sampler=sampler.value,
        guidance_scale=0.0,
    )
    limit = limit_steps(sampler, CONFIG)
    if steps > limit:
        with pytest.raises(InvalidRequest, match=f"with {sampler} it must be at most {limit}"):
            resolve(params, embedded.info)
        return
    harness = harness_for(embedded)
    generation = harness.submit(resolve(params, embedded.info))
    harness.loop.tick()
    assert generation.ended == (steps == 1)
    assert all(not isinstance(out, Text2ImageError) for out in harness.outcomes[generation])
