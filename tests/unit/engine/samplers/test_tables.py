"""What a table cannot be made of is refused with the reason, and tables are kept in bounded number."""

from __future__ import annotations

import re
import threading
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from tests.unit.engine.samplers.test_parity import FLOW, SPACINGS, STABLE_DIFFUSION
from text2image.core.messages import Sampler, Schedule
from text2image.core.samplers import SCHEDULES_OF, network_calls
from text2image.core.validation import MAX_STEPS
from text2image.engine.samplers.ancestral import use_double_precision
from text2image.engine.samplers.closed_forms import beta_quantile
from text2image.engine.samplers.probing import probe
from text2image.engine.samplers.registry import (
    KINDS,
    limit_steps,
    own_sampler,
    scheduler_for,
)
from text2image.engine.samplers.tables import Tables, offered, table_of

# Numbers of SciPy 1.17.1, scipy.stats.beta.ppf.
QUANTILES = {
    0.0: 0.0,
    0.01: 0.0008612388215429059,
    0.1: 0.03958440558878085,
    0.25: 0.17568037865269498,
    0.5: 0.5,
    0.9: 0.9604155944112192,
    1.0: 1.0,
}


class Bent(diffusers.DDIMScheduler):
    """Looks like a scheduler that can be a table, and is none."""

    bend = staticmethod(lambda step: step)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().step(*args, **kwargs)
        output["prev_sample"] = self.bend(output.prev_sample)
        return output


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (diffusers.DDIMScheduler(thresholding=True, clip_sample=False), "with thresholding"),
        (diffusers.DDIMScheduler(clip_sample=True), "with clip_sample"),
        (diffusers.DDPMScheduler(clip_sample=False, variance_type="learned"), "learned variance"),
        (SimpleNamespace(config={}, noise_sampler=None), "depends on the whole way"),
        (
            type("Clamped", (Bent,), {"bend": staticmethod(lambda step: step.clamp(-1, 1))})(
                clip_sample=False
            ),
            "not linear",
        ),
        (
            type("Random", (Bent,), {"bend": staticmethod(lambda step: step + torch.rand(1))})(
                clip_sample=False
            ),
            "not linear",
        ),
        (
            type("Broken", (Bent,), {"bend": staticmethod(lambda step: step * torch.nan)})(
                clip_sample=False
            ),
            "no number",
        ),
    ],
)
def test_what_is_no_table_is_refused_with_the_reason(scheduler: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        table_of(scheduler, 5)


def test_a_way_that_begins_behind_its_end_is_refused() -> None:
    with pytest.raises(ValueError, match="in 5 steps: nothing is left from step 5 on"):
        Tables(STABLE_DIFFUSION).table(Sampler.EULER, 5, first=5)


def test_samplers_and_models_of_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="Flow Euler is for models that predict a flow"):
        Tables(STABLE_DIFFUSION).table(Sampler.FLOW_EULER, 5)
    with pytest.raises(ValueError, match="DDIM is not for models that predict a flow"):
        Tables(FLOW).table(Sampler.DDIM, 5)
    with pytest.raises(ValueError, match="DDIM has no karras schedule"):
        Tables(STABLE_DIFFUSION).table(Sampler.DDIM, 5, Schedule.KARRAS)
    with pytest.raises(ValueError, match="prediction_type"):
        Tables({**STABLE_DIFFUSION, "prediction_type": "sample"}).table(Sampler.DPM2, 5)


@pytest.mark.parametrize("sampler", Sampler)
@pytest.mark.parametrize("trained", [6, 33])
def test_every_step_count_up_to_the_limit_can_be_drawn_and_one_more_says_the_limit(
    sampler: Sampler, trained: int
) -> None:
    config = {**(FLOW if KINDS[sampler].flow else STABLE_DIFFUSION), "num_train_timesteps": trained}
    limit = limit_steps(sampler, {**config, "original_inference_steps": 20})
    assert 0 <= limit <= trained
    for spacing in SPACINGS:
        tables = Tables(
            {**config, "timestep_spacing": spacing, "original_inference_steps": 20}, most=1
        )
        for steps in {1, limit // 2, limit - 1, limit}:
            if 1 <= steps <= limit:
                assert tables.table(sampler, steps).calls >= steps
        with pytest.raises(ValueError, match=rf"takes at most {limit} steps here, not {limit + 1}"):
            tables.table(sampler, limit + 1)


@pytest.mark.parametrize(
    ("sampler", "config", "limit"),
    [
        (Sampler.DPMPP_2M, {}, MAX_STEPS),
        (Sampler.LCM, {}, 50),
        (Sampler.TCD, {"original_inference_steps": 8}, 8),
        (Sampler.LCM, {"num_train_timesteps": 40}, 0),
        (Sampler.DDIM, {"num_train_timesteps": 40, "steps_offset": 0}, 40),
        (Sampler.UNIPC, {"num_train_timesteps": 40, "steps_offset": 0}, 39),
    ],
)
def test_limits(sampler: Sampler, config: dict[str, Any], limit: int) -> None:
    assert limit_steps(sampler, {**STABLE_DIFFUSION, **config}) == limit


def test_tables_are_kept_those_used_last() -> None:
    tables = Tables(STABLE_DIFFUSION, most=2)
    first = tables.table(Sampler.EULER, 3)
    second = tables.table(Sampler.EULER, 3, first=1)
    assert first is not second
    assert tables.table(Sampler.EULER, 3) is first
    tables.table(Sampler.EULER, 3, Schedule.KARRAS)
    assert tables.table(Sampler.EULER, 3) is first
    assert tables.table(Sampler.EULER, 3, first=1) is not second


def test_a_probe_changes_nothing_for_schedulers_that_are_stepped_beside_it() -> None:
    """Another thread may draw noise with the same class while one is probed."""
    stop = threading.Event()
    strange: list[float] = []

    def step() -> None:
        while not stop.is_set():
            scheduler = diffusers.EulerAncestralDiscreteScheduler()
            scheduler.set_timesteps(3)
            zeros = torch.zeros(1, 1, 2, 2)
            scheduler.scale_model_input(zeros, scheduler.timesteps[0])
            stepped = scheduler.step(
                zeros,
                scheduler.timesteps[0],
                zeros,
                generator=torch.Generator().manual_seed(3),
            )
            strange.append(float(stepped.prev_sample.sum()))

    beside = threading.Thread(target=step)
    beside.start()
    for steps in range(2, 12):
        Tables(STABLE_DIFFUSION).table(Sampler.EULER_ANCESTRAL, steps)
    stop.set()
    beside.join()
    assert len(set(strange)) == 1


def test_the_dynamic_shift_of_a_flow_is_part_of_a_table() -> None:
    tables = Tables({**FLOW, "shift": 1.0, "use_dynamic_shifting": True})
    small, large = (tables.table(Sampler.FLOW_EULER, 5, mu=mu) for mu in (0.5, 1.15))
    assert small.timesteps != large.timesteps
    given = tables.table(Sampler.FLOW_EULER, 2, mu=0.0, sigmas=(1.0, 0.25))
    assert given.timesteps == pytest.approx((1000.0, 250.0))


def test_the_models_own_configuration_is_the_default() -> None:
    """Its schedule too, unless a request names another one."""
    karras = {**STABLE_DIFFUSION, "use_karras_sigmas": True}
    plain = Tables(STABLE_DIFFUSION)
    own = Tables(karras).table(Sampler.EULER, 7)
    assert own.timesteps == plain.table(Sampler.EULER, 7, Schedule.KARRAS).timesteps
    assert own.timesteps != plain.table(Sampler.EULER, 7).timesteps
    beta = Tables({**STABLE_DIFFUSION, "use_beta_sigmas": True})
    assert (
        beta.table(Sampler.EULER, 7).timesteps
        == plain.table(Sampler.EULER, 7, Schedule.BETA).timesteps
    )
    exponential = Tables(karras).table(Sampler.EULER, 7, Schedule.EXPONENTIAL)
    assert exponential.timesteps == plain.table(Sampler.EULER, 7, Schedule.EXPONENTIAL).timesteps
    final = {
        to_one: scheduler_for(
            Sampler.DDIM, {**STABLE_DIFFUSION, "set_alpha_to_one": to_one}, None
        ).final_alpha_cumprod
        for to_one in (True, False)
    }
    assert final[True] == 1 > final[False]


@pytest.mark.parametrize("sampler", [Sampler.EULER_ANCESTRAL, Sampler.DPM2_ANCESTRAL])
@pytest.mark.parametrize("schedule", [None, Schedule.KARRAS])
def test_ancestral_steps_are_numbers_however_far_noise_levels_are_apart(
    sampler: Sampler, schedule: Schedule | None
) -> None:
    """With a cosine schedule diffusers computes none in some step counts."""
    cosine = {
        **STABLE_DIFFUSION,
        "beta_schedule": "squaredcos_cap_v2",
        "timestep_spacing": "trailing",
    }
    if schedule not in SCHEDULES_OF[sampler]:
        schedule = None
    for steps in (1, 2, 3, 5, 10):
        table = Tables(cosine).table(sampler, steps, schedule)
        assert table.weights.isfinite().all()
        assert all(0 <= timestep <= 999 for timestep in table.timesteps)


@pytest.mark.parametrize("sampler", [Sampler.EULER_ANCESTRAL, Sampler.DPM2_ANCESTRAL])
def test_ancestral_steps_in_double_precision_are_those_of_diffusers(sampler: Sampler) -> None:
    scheduler = scheduler_for(sampler, STABLE_DIFFUSION, None)
    scheduler.set_timesteps(9)
    single = probe(scheduler, 0, 0.0)
    scheduler.set_timesteps(9)
    use_double_precision(scheduler)
    double = probe(scheduler, 0, 0.0)
    assert torch.allclose(single.products, double.products, rtol=1e-4, atol=1e-4)
    assert single.timesteps == pytest.approx(double.timesteps, abs=1e-2)


def test_rounding_adds_no_step_at_the_noisiest_level() -> None:
    """diffusers spaces 61 steps as 62, and takes the last timestep, -1, for the noisiest."""
    tables = Tables({**STABLE_DIFFUSION, "timestep_spacing": "trailing"})
    for sampler in (Sampler.DDIM, Sampler.DDPM, Sampler.PNDM):
        table = tables.table(sampler, 61)
        assert table.calls == network_calls(sampler, 61)
        assert min(table.timesteps) >= 0


@pytest.mark.parametrize(
    ("config", "sampler"),
    [
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, Sampler.PNDM),
        ({"_class_name": "DPMSolverMultistepScheduler"}, Sampler.DPMPP_2M),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, Sampler.DPMPP_3M),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            Sampler.DPMPP_2M_SDE,
        ),
        ({"_class_name": "DDIMScheduler"}, Sampler.DDIM),
        ({"_class_name": "LMSDiscreteScheduler"}, Sampler.LMS),
        ({"_class_name": "HeunDiscreteScheduler"}, Sampler.HEUN),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, Sampler.FLOW_EULER),
        ({"_class_name": "SomethingElse"}, None),
    ],
)
def test_a_models_own_scheduler_has_a_name(config: dict[str, Any], sampler: Sampler) -> None:
    assert own_sampler(config) is sampler


@pytest.mark.parametrize(("probability", "quantile"), QUANTILES.items())
def test_quantiles_of_the_beta_distribution(probability: float, quantile: float) -> None:
    assert beta_quantile(probability, 0.6, 0.6) == pytest.approx(quantile, rel=1e-12)


def test_nothing_asks_for_scipy() -> None:
    for sampler in (Sampler.LMS, Sampler.EULER):
        scheduler = scheduler_for(sampler, STABLE_DIFFUSION, Schedule.BETA)
        scheduler.set_timesteps(9)
        assert re.fullmatch("LMSDiscreteScheduler|EulerDiscreteScheduler", type(scheduler).__name__)
        assert len(scheduler.timesteps) == 9


@pytest.mark.parametrize(
    ("more", "lacking"),
    [
        ({}, set()),
        ({"prediction_type": "sample"}, {Sampler.EULER_ANCESTRAL}),
        ({"thresholding": True}, {Sampler.DDIM, Sampler.DPMPP_2M, Sampler.UNIPC}),
        ({"num_train_timesteps": 40}, {Sampler.LCM, Sampler.TCD}),
        # At its noisiest nothing is left of the picture that the noise could be told from.
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {Sampler.DDIM}),
    ],
)
def test_a_model_offers_what_it_can_be_drawn_with(
    more: dict[str, Any], lacking: set[Sampler]
) -> None:
    samplers = offered({**STABLE_DIFFUSION, **more})
    assert not lacking & set(samplers)
    assert Sampler.EULER in samplers
    assert not [sampler for sampler in samplers if KINDS[sampler].flow]
    assert set(offered(FLOW)) <= {Sampler.FLOW_EULER, Sampler.FLOW_HEUN}


def test_samplers_of_more_calls_than_steps_are_offered() -> None:
    twice = {Sampler.HEUN, Sampler.DPM2, Sampler.DPM2_ANCESTRAL, Sampler.PNDM}
    assert twice <= set(offered(STABLE_DIFFUSION))
