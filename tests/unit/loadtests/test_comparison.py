"""Ratios are taken over the same rounds, and where another server is better the page says so first."""

from __future__ import annotations

import pytest

from loadtests.comparison import OURS, Comparison, Load, Mix, page
from tests.unit.loadtests.canned import run_of

UNIFORM = Mix("uniform", (20,))
EIGHT, BUSY = Load(clients=8), Load(share=0.8)


def compared(ours: list[float], theirs: list[float], load: Load = EIGHT) -> Comparison:
    """Rounds in which a request takes each server so long, and comes as soon as the last one was answered."""
    comparison = Comparison(8, capacity={"uniform": 3.0})
    for server, seconds in ((OURS, ours), ("LitServe", theirs)):
        for number, latency in enumerate(seconds):
            run = run_of(*[latency] * 10, every=latency)
            comparison.add(UNIFORM, load, server, number, run)
    return comparison


def ratios(comparison: Comparison) -> dict[str, tuple[float, ...]]:
    return {ratio.measure.name: ratio.values for ratio in comparison.ratios(UNIFORM)}


def test_a_machine_that_slows_down_does_not_move_a_ratio() -> None:
    found = ratios(compared([1.0, 3.0], [2.0, 6.0]))
    assert found["p50"] == found["p95"] == found["p99"] == pytest.approx((0.5, 0.5))
    assert found["pictures/s"] == pytest.approx((2.0, 2.0))


def test_a_round_that_only_one_of_them_was_measured_in_has_no_ratio() -> None:
    assert ratios(compared([1.0, 1.0], [2.0]))["p50"] == pytest.approx((0.5,))
    assert ratios(compared([1.0], [])) == {}


def test_a_server_that_drew_nothing_has_no_ratio_and_its_failure_is_shown() -> None:
    comparison = compared([1.0], [2.0])
    comparison.add(UNIFORM, EIGHT, "LitServe", 0, run_of(failed=3))
    assert ratios(comparison) == {}
    assert "| 8 clients | LitServe | 0.00 | nan | nan | nan | 0% | 1 |" in page(comparison, "head")


def test_where_another_one_is_better_the_page_says_so() -> None:
    told = page(compared([1.0, 1.2], [0.8, 0.8], BUSY), "head")
    verdict = told.partition("## Where another one wins")[2].partition("##")[0]
    assert "- uniform, 80% of capacity: LitServe, p50: ours ÷ theirs 1.50 (1.25 to 1.50)" in verdict
    assert "in 4 of 4 ratios, 4 of them in every round" in verdict
    assert (
        "| 80% of capacity | LitServe | **0.73 (0.67 to 0.80)** | **1.50 (1.25 to 1.50)** |" in told
    )


def test_what_is_lost_in_some_rounds_alone_may_be_chance() -> None:
    told = page(compared([1.0, 1.0, 1.0], [0.8, 1.1, 0.9]), "head")
    assert "in 2 of 4 ratios, 0 of them in every round" in told
    assert "p50: ours ÷ theirs 1.11 (0.91 to 1.25)\n" in told


def test_a_tail_that_is_long_in_one_round_of_many_is_not_forgotten() -> None:
    comparison = compared([2.0, 2.0, 2.0], [1.0, 1.0, 5.0])
    ratio = {each.measure.name: each for each in comparison.ratios(UNIFORM)}
    assert ratio["p50"].overall == pytest.approx(2.0)
    assert ratio["p95"].overall == pytest.approx(0.4)
    assert ratio["p95"].values == pytest.approx((2.0, 2.0, 0.4))


def test_where_no_other_one_is_better_the_page_says_that() -> None:
    told = page(compared([1.0], [1.01]), "head")
    assert "In none of the 4 ratios" in told
    assert "**" not in told


def test_figures_are_of_all_rounds_together_with_their_spread() -> None:
    told = page(compared([1.0, 4.0, 2.0], [8.0]), "head")
    assert "| 8 clients | this service | 0.43 (0.25 to 1.00) | 2.00 (1.00 to 4.00) |" in told
    assert "| 8 clients | LitServe | 0.12 | 8.00 |" in told


def test_the_bare_pipeline_is_the_limit_of_the_saturated_server() -> None:
    comparison = compared([1.0], [2.0])
    comparison.lone["uniform"], comparison.limit["uniform"] = [0.5, 0.7], [2.0, 3.0]
    row = "| uniform | 0.60 (0.50 to 0.70) | 2.50 (2.00 to 3.00) | 3.00 | 1.25 (1.00 to 1.50) |"
    assert row in page(comparison, "head")


def test_loads_are_in_order_whatever_they_were_measured_in() -> None:
    comparison = compared([1.0], [1.0], BUSY)
    for load in (Load(clients=32), Load(clients=1), Load(share=0.5)):
        comparison.add(UNIFORM, load, OURS, 0, run_of(1.0))
    names = [load.name for load in comparison.loads(UNIFORM)]
    assert names == ["1 client", "32 clients", "50% of capacity", "80% of capacity"]
