"""Rows of all samplers are updated together, and each as if it were alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.engine.samplers.test_parity import FLOW, STABLE_DIFFUSION
from text2image.core.messages import Sampler
from text2image.engine.samplers.registry import KINDS
from text2image.engine.samplers.tables import Tables
from text2image.engine.samplers.update import Trajectory, advance, inputs_of, timesteps_of

TABLES = {False: Tables(STABLE_DIFFUSION), True: Tables(FLOW)}
# No multiple of what a processor adds at once.
SHAPE = (1, 4, 5, 3)


def begun(sampler: Sampler, steps: int, first: int, seed: int) -> Trajectory:
    table = TABLES[KINDS[sampler].flow].table(sampler, steps, first=first)
    generator = torch.Generator().manual_seed(seed)
    return Trajectory(table, torch.randn(SHAPE, generator=generator) * table.noise_scale, generator)


def answer(trajectory: Trajectory, seed: int) -> torch.Tensor:
    """A network's output that depends on the call alone."""
    generator = torch.Generator().manual_seed(1000 * seed + trajectory.call)
    return torch.randn(SHAPE, generator=generator)


ROWS = st.lists(
    st.tuples(st.sampled_from(Sampler), st.integers(1, 6), st.floats(0, 0.99), st.integers(0, 3)),
    min_size=1,
    max_size=9,
)


@given(ROWS)
@settings(max_examples=40, deadline=None)
def test_any_rows_together_are_bit_for_bit_what_each_is_alone(
    rows: list[tuple[Sampler, int, float, int]],
) -> None:
    """They join at different times, and each leaves at its own last call."""
    alone = []
    for seed, (sampler, steps, share, _) in enumerate(rows):
        trajectory = begun(sampler, steps, int(share * steps), seed)
        while not trajectory.done:
            advance([trajectory], [answer(trajectory, seed)])
        alone.append(trajectory.latents)
    crowd = [
        begun(sampler, steps, int(share * steps), seed)
        for seed, (sampler, steps, share, _) in enumerate(rows)
    ]
    tick = 0
    while not all(trajectory.done for trajectory in crowd):
        present = [
            seed for seed, (*_, joins) in enumerate(rows) if joins <= tick and not crowd[seed].done
        ]
        tick += 1
        if present:
            advance(
                [crowd[seed] for seed in present], [answer(crowd[seed], seed) for seed in present]
            )
    for trajectory, latents in zip(crowd, alone, strict=True):
        assert torch.equal(trajectory.latents, latents)


def test_a_row_that_is_no_number_spoils_no_other() -> None:
    sick, well, alone = (begun(Sampler.UNIPC, 4, 0, 1) for _ in range(3))
    while not alone.done:
        output = answer(alone, 1)
        advance([sick, well], [output * torch.nan, output])
        advance([alone], [output])
    assert torch.equal(well.latents, alone.latents)
    assert sick.latents.isnan().all()


def test_an_update_that_failed_is_tried_again_with_the_same_noise() -> None:
    trajectory, untroubled = (begun(Sampler.EULER_ANCESTRAL, 3, 0, 1) for _ in range(2))
    output = answer(trajectory, 1)
    with pytest.raises(RuntimeError):
        advance([trajectory], [torch.zeros(1, 1, 1, 7)])
    assert trajectory.call == 0
    advance([trajectory], [output])
    advance([untroubled], [output])
    assert torch.equal(trajectory.latents, untroubled.latents)


@pytest.mark.parametrize("sampler", [Sampler.LCM, Sampler.DDIM, Sampler.DPM2_ANCESTRAL])
def test_noise_is_drawn_at_the_calls_alone_where_the_scheduler_draws(sampler: Sampler) -> None:
    trajectory = begun(sampler, 4, 0, 1)
    draws = []
    while not trajectory.done:
        before = trajectory._generator.get_state()
        advance([trajectory], [answer(trajectory, 1)])
        draws.append(not torch.equal(before, trajectory._generator.get_state()))
    expected = {
        Sampler.LCM: [True, True, True, False],
        Sampler.DDIM: [False] * 4,
        Sampler.DPM2_ANCESTRAL: [False, True, False, True, False, True, False],
    }
    assert draws == expected[sampler]
    assert tuple(draws) == trajectory.table.draws


@pytest.mark.parametrize(
    ("sampler", "drawn_in"),
    [(Sampler.EULER_ANCESTRAL, torch.float16), (Sampler.DPMPP_2M_SDE, torch.float32)],
)
def test_noise_is_drawn_in_the_precision_that_diffusers_draws_it_in(
    sampler: Sampler, drawn_in: torch.dtype
) -> None:
    table = TABLES[False].table(sampler, 4)
    latents = torch.zeros(SHAPE)
    trajectory = Trajectory(table, latents, torch.Generator().manual_seed(7), torch.float16)
    advance([trajectory], [latents])
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7), dtype=drawn_in)
    assert torch.equal(trajectory.latents, noise.float() * table.terms[0][2])


@pytest.mark.parametrize("sampler", Sampler)
def test_no_more_is_kept_than_the_sampler_looks_back_on(sampler: Sampler) -> None:
    trajectory = begun(sampler, 8, 0, 1)
    while not trajectory.done:
        advance([trajectory], [answer(trajectory, 1)])
        assert len(trajectory._fed) <= max(1, trajectory.table.reach - 1)
        assert len(trajectory._outputs) <= max(1, trajectory.table.reach - 1)
    assert TABLES[False].table(Sampler.EULER, 8).reach == 1
    assert TABLES[False].table(Sampler.DPMPP_2M, 8).reach == 2


def test_inputs_and_timesteps_are_those_of_each_row() -> None:
    rows = [begun(Sampler.EULER, 5, 2, 1), begun(Sampler.DDIM, 5, 0, 2)]
    inputs = inputs_of(rows)
    assert inputs.shape == (2, *SHAPE[1:])
    for row, single in zip(rows, inputs.split(1), strict=True):
        assert torch.equal(single, row.latents * torch.tensor(row.table.input_scales[0]))
    assert timesteps_of(rows).tolist() == [row.table.timesteps[0] for row in rows]
