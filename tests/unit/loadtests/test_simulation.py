"""The simulation agrees with what queueing theory and arithmetic say of the cases that they can say something of."""

from __future__ import annotations

import statistics

import pytest

from loadtests.drivers import arrivals
from loadtests.scaling import DEVICES, calibrated, holds, runners_for, warm_up_of, with_part
from loadtests.simulation import Profile, Result, percentile, simulate

# One guided picture at a time and one step for each, so that a runner is a queue with a single server.
ONE_BY_ONE = Profile({1: 0.5, 2: 1.0}, decode=0.0)
# Batches of eight pictures cost twice a lone one.
BATCHING = Profile({1: 0.02, 2: 0.02, 4: 0.024, 8: 0.03, 16: 0.04}, decode=0.01)


def run(
    profile: Profile,
    rate: float,
    *,
    runners: int = 1,
    pictures: int = 1500,
    steps: tuple[int, ...] = (20,),
    seed: int = 0,
) -> Result:
    due = arrivals(rate=rate, seconds=pictures / rate, steps=steps, seed=seed)
    return simulate(profile, list(due), runners)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_picture_at_a_time_waits_as_pollaczek_and_khinchin_say(load: float) -> None:
    runs = (run(ONE_BY_ONE, load, pictures=4000, steps=(1,), seed=seed) for seed in range(2))
    mean = statistics.fmean(statistics.fmean(each.latencies) for each in runs)
    assert mean == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)


def test_a_runner_is_at_work_for_its_share_of_the_time() -> None:
    result = run(ONE_BY_ONE, 0.5, pictures=3000, steps=(1,))
    assert result.utilisation == pytest.approx(0.5, rel=0.06)


def test_a_lone_request_takes_its_steps_and_its_decoding() -> None:
    result = simulate(BATCHING, [(0.0, 20)], warm_up=0.0)
    assert result.latencies == pytest.approx([20 * 0.02 + 0.01])
    assert result.slowdowns == pytest.approx([1.0])


def test_batches_carry_what_the_cost_curve_allows_and_not_more() -> None:
    saturation = BATCHING.saturation(20)
    assert saturation == pytest.approx(8 / (20 * 0.04 + 8 * 0.01))
    result = run(BATCHING, 3 * saturation, pictures=6000)
    assert result.rate == pytest.approx(saturation, rel=0.04)


def test_beyond_capacity_what_cannot_be_done_in_time_is_refused() -> None:
    result = run(BATCHING, 3 * BATCHING.saturation(20), pictures=6000)
    assert result.failed > 0.2
    assert not result.holds()


def test_k_runners_bear_k_times_the_rate_and_the_slowest_requests_are_no_slower() -> None:
    rate = 0.7 * BATCHING.saturation(20)
    one, four = run(BATCHING, rate), run(BATCHING, 4 * rate, runners=4, pictures=4000)
    assert four.rate == pytest.approx(4 * one.rate, rel=0.08)
    assert percentile(four.slowdowns, 99) <= percentile(one.slowdowns, 99)


def test_the_same_arrivals_give_the_same_result() -> None:
    noisy = Profile(BATCHING.steps, BATCHING.decode, noise=0.2)
    assert run(noisy, 8.0, pictures=300) == run(noisy, 8.0, pictures=300)


def test_the_planned_runners_keep_the_bound_and_one_fewer_does_not() -> None:
    rate = 0.95 * BATCHING.saturation(70 / 3)
    runners = runners_for(BATCHING, rate, largest=float("inf"))
    assert holds(BATCHING, rate, runners)
    assert not holds(BATCHING, rate, runners - 1)
    assert runners_for(BATCHING, 1000.0, largest=100.0) == 160


def test_a_device_model_has_the_speed_that_was_published() -> None:
    profile = DEVICES["A100"].profile
    assert 1 / profile.steps[2] == pytest.approx(23.13)
    assert 20 / 23.13 < profile.alone(20) < 1.1 * 20 / 23.13
    assert DEVICES["2 CPU cores, embedded model"].profile.saturation(20) == pytest.approx(2.43)


def test_calibration_meets_the_lone_picture_and_the_saturated_rate() -> None:
    log = "x ready\nsteps measured (rows: ms): 1: 10.0, 2: 12.0, 4: 20.0, 8: 36.0; decoding 8.5 ms; batch cap 8 rows"
    warm_up = warm_up_of(log)
    assert warm_up == Profile({1: 0.010, 2: 0.012, 4: 0.020, 8: 0.036}, decode=0.0085)
    profile = calibrated(warm_up, lone=0.4, saturation=3.0, overhead=0.02)
    assert profile.alone(20) == pytest.approx(0.4)
    assert profile.saturation(70 / 3) == pytest.approx(3.0, rel=0.01)


def test_a_part_of_the_page_is_replaced_and_the_rest_stays() -> None:
    page = "before\n<!-- plan -->\nold\n<!-- /plan -->\nafter\n"
    assert with_part(page, "plan", "new\n") == page.replace("old", "new")
