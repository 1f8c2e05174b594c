"""Who gets a request: the runner that will finish it first, by what it has said and by what was sent since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from random import Random

import pytest

from tests.doubles import Clock
from tests.fleet import Choose, Fleet, Link, Runner, poisson
from text2image.core.limits import MEGA
from text2image.core.messages import State, Status
from text2image.gateway.balancing import Load, first_to_finish

STEPS = (5, 10, 20, 40)
# Pictures a second that one runner of the simulation can draw of these.
CAPACITY = 2.26


def status(backlog: float = 0.0, pace: float = 1.0) -> Status:
    return Status(state=State.READY, backlog_seconds=backlog, pace=pace)


def test_a_backlog_shrinks_with_the_time_since_it_was_told() -> None:
    load = Load(clock := Clock())
    load.update(status(backlog=3.0))
    clock.now = 2.0
    assert load.seconds_until(0) == pytest.approx(1.0)
    clock.now = 9.0
    assert load.seconds_until(0) == 0.0


def test_a_request_counts_from_when_it_is_sent_until_a_status_counts_it() -> None:
    load = Load(Clock())
    load.update(status())
    load.sent("one", 2 * MEGA)
    assert load.seconds_until(0) == pytest.approx(2.0)
    load.update(status(backlog=5.0))
    assert load.seconds_until(0) == pytest.approx(7.0), "it had not been admitted by then"
    load.admitted("one", 3.0)
    assert load.seconds_until(0) == pytest.approx(7.0), "the status did not know of it yet"
    load.update(status(backlog=6.9))
    assert load.seconds_until(0) == pytest.approx(6.9)


def test_a_runners_answer_tells_what_others_have_sent_it() -> None:
    load = Load(clock := Clock())
    load.update(status())
    load.sent("one", MEGA)
    load.admitted("one", 9.0)
    clock.now = 4.0
    assert load.seconds_until(0) == pytest.approx(5.0)


def test_what_was_refused_counts_no_more() -> None:
    load = Load(Clock())
    load.update(status())
    load.sent("one", MEGA)
    load.over("one")
    assert load.seconds_until(0) == 0.0


def test_a_faster_runner_is_worth_waiting_for() -> None:
    fast, slow = (Link(Runner(), Load(Clock())) for _ in range(2))
    fast.load.update(status(backlog=2.0, pace=0.5))
    slow.load.update(status(backlog=0.0, pace=2.0))
    assert first_to_finish([slow, fast], MEGA) is slow
    assert first_to_finish([slow, fast], 4 * MEGA) is fast


def in_turn(_: int) -> Choose:
    turns = count()
    return lambda links, _: links[next(turns) % len(links)]


def ours(seed: int) -> Choose:
    return partial(first_to_finish, chance=Random(seed))


def best_of_all(seed: int) -> Choose:
    chance = Random(seed)
    return lambda links, work: min(
        links, key=lambda link: (link.load.seconds_until(work), chance.random())
    )


def percentile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[int(len(seconds) * share)]


def served(
    policy: Callable[[int], Choose],
    slowdowns: Sequence[float],
    gateways: int,
    load: float,
    requests: int = 500,
) -> list[float]:
    """Seconds that requests took, at a share of what runners so many times slower can draw together."""
    rate = load * CAPACITY * sum(1 / slowdown for slowdown in slowdowns)
    fleet = Fleet(
        [Runner(slowdown) for slowdown in slowdowns], [policy(seed) for seed in range(gateways)]
    )
    return fleet.run(poisson(rate, requests, STEPS))


@pytest.mark.parametrize("slowdowns", [(1, 1, 1, 1, 1), (1, 1, 3)], ids=["alike", "one slow"])
def test_the_slowest_wait_less_than_if_runners_took_turns(slowdowns: Sequence[float]) -> None:
    turns, chosen = (served(policy, slowdowns, 2, 0.75) for policy in (in_turn, ours))
    for share in (0.95, 0.99):
        assert percentile(chosen, share) < 0.9 * percentile(turns, share)


def test_many_gateways_do_not_all_run_to_the_same_runner() -> None:
    """Fast runners fill before their statuses tell; knowing the best of them is then worse than taking turns."""
    turns, crowd, chosen = (
        percentile(served(policy, [0.1] * 12, 12, 0.55, 1200), 0.99)
        for policy in (in_turn, best_of_all, ours)
    )
    assert chosen < 0.9 * turns
    assert chosen < 0.9 * crowd


def test_k_runners_draw_k_times_as_much_and_nobody_waits_longer() -> None:
    assert speed(4) > 0.95 * 4 * speed(1)
    alone, together = (served(ours, [1.0] * runners, 2, 0.8, 600) for runners in (1, 4))
    for share in (0.95, 0.99):
        assert percentile(together, share) <= percentile(alone, share)


def speed(runners: int) -> float:
    """Pictures a second when far more is asked for than can be drawn."""
    fleet = [Runner() for _ in range(runners)]
    arrivals = poisson(5 * CAPACITY * runners, 100 * runners, STEPS)
    Fleet(fleet, [ours(0), ours(1)]).run(arrivals)
    return len(arrivals) / max(runner.harness.clock.now for runner in fleet)
