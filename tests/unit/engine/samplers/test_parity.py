"""A table draws what the scheduler of diffusers draws that it was read off, for all of them, and in any company."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from text2image.core.messages import Sampler, Schedule
from text2image.core.samplers import SCHEDULES_OF, network_calls
from text2image.engine.samplers.registry import KINDS, scheduler_for
from text2image.engine.samplers.tables import REACH, Table, Tables
from text2image.engine.samplers.update import Trajectory, advance, inputs_of

STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
# What diffusers has not.
NO_SAMPLE = {
    Sampler.DPM2,
    Sampler.DPM2_ANCESTRAL,
    Sampler.HEUN,
    Sampler.EULER_ANCESTRAL,
    Sampler.PNDM,
}
SHAPE = (1, 4, 3, 2)


def configurations(sampler: Sampler) -> Iterator[dict[str, Any]]:
    if KINDS[sampler].flow:
        yield FLOW
        return
    for prediction in PREDICTIONS:
        for spacing in SPACINGS:
            if prediction != "sample" or sampler not in NO_SAMPLE:
                yield {
                    **STABLE_DIFFUSION,
                    "prediction_type": prediction,
                    "timestep_spacing": spacing,
                }


def schedules_for(sampler: Sampler, config: dict[str, Any]) -> Iterator[Schedule | None]:
    """Without a schedule every configuration is tried; each schedule with every prediction, and with every spacing."""
    yield None
    prediction = PREDICTIONS.index(config.get("prediction_type", "epsilon"))
    spacing = SPACINGS.index(config.get("timestep_spacing", "leading"))
    for place, schedule in enumerate(sorted(SCHEDULES_OF[sampler])):
        turn = (place + spacing) % len(SPACINGS)
        # Where there is no third prediction the first one takes its spacing too.
        chosen = prediction in ((turn, 0) if turn == 2 and sampler in NO_SAMPLE else (turn,))
        if KINDS[sampler].flow or chosen:
            yield schedule


GRID = [
    pytest.param(sampler, config, schedule, id=f"{sampler}-{'-'.join(named)}-{schedule}")
    for sampler in Sampler
    for config in configurations(sampler)
    for schedule in schedules_for(sampler, config)
    if (named := [str(config.get(key)) for key in ("prediction_type", "timestep_spacing")])
]


def outputs_for(calls: int, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(calls)]


class Stepped:
    """What diffusers draws: a scheduler that is stepped, with outputs of a network that are given."""

    def __init__(self, scheduler: Any, steps: int, first: int = 0) -> None:
        scheduler.set_timesteps(steps)
        begin = first * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        self.scheduler = scheduler
        self.timesteps = scheduler.timesteps[begin:]
        self.inputs: list[torch.Tensor] = []
        self.latents: list[torch.Tensor] = []
        self.predicted: list[torch.Tensor | None] = []

    def run(self, latents: torch.Tensor, outputs: list[torch.Tensor], seed: int) -> None:
        scheduler = self.scheduler
        options: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed), "eta": 0.0}
        taken = inspect.signature(scheduler.step).parameters
        options = {name: value for name, value in options.items() if name in taken}
        for timestep, output in zip(self.timesteps, outputs, strict=True):
            scale = getattr(scheduler, "scale_model_input", lambda latents, timestep: latents)
            self.inputs.append(scale(latents, timestep))
            stepped = scheduler.step(output, timestep, latents, **options)
            latents = stepped.prev_sample
            self.latents.append(latents)
            clean = getattr(stepped, "pred_original_sample", getattr(stepped, "denoised", None))
            if clean is None and scheduler.config.get("algorithm_type") in (
                "dpmsolver++",
                "sde-dpmsolver++",
            ):
                clean = scheduler.model_outputs[-1]
            self.predicted.append(clean)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


def assert_draws_as_diffusers(
    table: Table, scheduler: Any, steps: int, first: int = 0, seed: int = 3
) -> None:
    theirs = Stepped(scheduler, steps, first)
    assert table.timesteps == tuple(theirs.timesteps.tolist())
    outputs = outputs_for(table.calls, seed + 1)
    initial = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * table.noise_scale
    theirs.run(initial, outputs, seed)
    ours = Trajectory(table, initial, torch.Generator().manual_seed(seed))
    for call, output in enumerate(outputs):
        assert not ours.done
        assert_same(inputs_of([ours]), theirs.inputs[call])
        advance([ours], [output])
        assert_same(ours.latents, theirs.latents[call])
        clean = theirs.predicted[call]
        if clean is not None:
            assert_same(ours.predicted, clean)
    assert ours.done


@pytest.mark.parametrize(("sampler", "config", "schedule"), GRID)
def test_every_sampler_draws_what_diffusers_draws(
    sampler: Sampler, config: dict[str, Any], schedule: Schedule | None
) -> None:
    shapes = [(7, 0)] if schedule else [(1, 0), (7, 0), (7, 3)]
    for steps, first in shapes:
        table = Tables(config).table(sampler, steps, schedule, first=first)
        scheduler = scheduler_for(sampler, config, schedule)
        assert table.calls == network_calls(sampler, steps) - first * scheduler.order
        assert_draws_as_diffusers(table, scheduler, steps, first)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_timesteps_may_be_the_same(first: int) -> None:
    """A schedule of another kind than the model's rounds several noise levels to one timestep."""
    cosine = {**STABLE_DIFFUSION, "beta_schedule": "squaredcos_cap_v2"}
    table = Tables(cosine).table(Sampler.DPMPP_2M, 8, Schedule.KARRAS, first=first)
    scheduler = scheduler_for(Sampler.DPMPP_2M, cosine, Schedule.KARRAS)
    assert_draws_as_diffusers(table, scheduler, 8, first)
    assert len(set(table.timesteps)) < table.calls


@pytest.mark.parametrize("sampler", Sampler)
def test_weights_are_exact_where_the_scheduler_is(sampler: Sampler) -> None:
    """In double precision; some schedulers round to single precision whatever they are given."""
    config = next(configurations(sampler))
    steps = 11
    table = Tables(config).table(sampler, steps)
    theirs = Stepped(scheduler_for(sampler, config, None), steps)
    rounds = "float32" in inspect.getsource(type(theirs.scheduler).step)
    outputs = outputs_for(table.calls, 4, torch.float64)
    initial = outputs_for(1, 3, torch.float64)[0] * table.noise_scale
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scheduler_noise(theirs.scheduler, noise)
    theirs.run(initial, outputs, 1)
    latents = [initial]
    for call in range(table.calls):
        of_latents, of_outputs, of_noise = table.terms[call]
        fed = zip(reversed(latents[-len(of_latents) :]), of_latents, strict=True)
        answered = zip(reversed(outputs[: call + 1]), of_outputs, strict=False)
        total = sum((weight * each for each, weight in [*fed, *answered]), of_noise * noise)
        assert_same(total, theirs.latents[call], 1e-6 if rounds else 1e-9)
        latents.append(total)


@pytest.mark.parametrize("sampler", [Sampler.HEUN, Sampler.DPM2])
def test_from_a_level_of_much_noise_a_table_is_nearer_to_the_scheduler_than_that_to_itself(
    sampler: Sampler,
) -> None:
    """Their first step goes from 4096 to about 5. In fp32 diffusers loses three digits to it, a table hardly any."""
    config = {
        **STABLE_DIFFUSION,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    steps = 7
    table = Tables(config).table(sampler, steps)
    outputs = outputs_for(table.calls, 4)
    initial = outputs_for(1, 3)[0] * table.noise_scale
    exact, rounded = (Stepped(scheduler_for(sampler, config, None), steps) for _ in range(2))
    exact.run(initial.double(), [output.double() for output in outputs], 1)
    rounded.run(initial, outputs, 1)
    ours = Trajectory(table, initial, torch.Generator())
    for output in outputs:
        advance([ours], [output])
    off = [
        float((each - exact.latents[-1]).abs().max())
        for each in (ours.latents, rounded.latents[-1])
    ]
    assert table.noise_scale > 4000
    assert off[0] < 0.005
    assert off[1] > 10 * off[0]


def scheduler_noise(scheduler: Any, noise: torch.Tensor) -> None:
    """Makes one scheduler draw the same noise at each step."""
    step = type(scheduler).step
    changed = type(step)(
        step.__code__,
        {**step.__globals__, "randn_tensor": lambda *_, dtype=None, **__: noise},
        step.__name__,
        step.__defaults__,
        step.__closure__,
    )
    scheduler.step = changed.__get__(scheduler)


@pytest.mark.parametrize("sampler", Sampler)
def test_latents_may_be_blended_between_the_calls(sampler: Sampler) -> None:
    """As inpainting does: some schedulers go on from what they produced, not from what they are fed."""
    config = next(configurations(sampler))
    steps = 11
    table = Tables(config).table(sampler, steps)
    scheduler = scheduler_for(sampler, config, None)
    scheduler.set_timesteps(steps)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scheduler_noise(scheduler, noise)
    outputs = outputs_for(table.calls, 4, torch.float64)
    blends = outputs_for(table.calls, 5, torch.float64)
    eta = {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}
    fed: list[torch.Tensor] = []
    products: list[torch.Tensor] = []
    latents = blends[0]
    for call, timestep in enumerate(scheduler.timesteps):
        fed.append(latents)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(latents, timestep)
        theirs = scheduler.step(outputs[call], timestep, latents, **eta).prev_sample
        past = [*newest(fed), *newest(products), *newest(outputs[: call + 1]), noise]
        if table.draws[call] is False:
            past[-1] = torch.zeros_like(noise)
        ours = sum(weight * each for weight, each in zip(table.weights[call], past, strict=True))
        assert_same(ours, theirs, 1e-5)
        products.append(theirs)
        latents = 0.7 * theirs + 0.3 * blends[call]


def newest(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [*reversed([*[torch.zeros(SHAPE)] * REACH, *tensors][-REACH:])]


@pytest.mark.parametrize("sampler", Sampler)
def test_a_table_tells_how_noisy_latents_are_before_each_call(sampler: Sampler) -> None:
    """With it pictures are noised to begin with, and to be blended in."""
    config = next(configurations(sampler))
    table = Tables(config).table(sampler, 9, first=2)
    scheduler = scheduler_for(sampler, config, None)
    scheduler.set_timesteps(9)
    begin = 2 * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    picture, noise = outputs_for(2, 1)
    at = scheduler.timesteps[begin : begin + 1]
    noised = (
        scheduler.add_noise(picture, noise, at)
        if hasattr(scheduler, "add_noise")
        else scheduler.scale_noise(picture, at, noise)
    )
    signal, share = table.noised[0].tolist()
    assert_same(signal * picture + share * noise, noised)
    assert len(table.noised) == table.calls + 1
    assert table.noised[-1].tolist() == [1.0, 0.0]
