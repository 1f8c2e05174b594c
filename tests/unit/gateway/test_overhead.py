"""What is kept back from a runner's deadline, so that what it finishes in time is answered in time."""

from __future__ import annotations

from text2image.gateway.overhead import Overhead

PATIENCE = 10.0


def learned(*seconds: float) -> float:
    overhead = Overhead()
    for each in seconds:
        overhead.learn(each)
    return overhead.of(PATIENCE)


def test_nothing_is_kept_back_before_anything_was_seen() -> None:
    assert learned() == 0.0


def test_what_is_steady_is_kept_back_as_it_is() -> None:
    assert abs(learned(*[0.2] * 100) - 0.2) < 0.01


def test_what_varies_is_kept_back_with_room() -> None:
    assert learned(*[0.1, 0.5] * 50) > 0.5


def test_a_runner_always_gets_half_of_the_time() -> None:
    assert learned(*[60.0] * 20) == PATIENCE / 2


def test_a_clock_that_was_set_back_takes_nothing_off() -> None:
    assert learned(-5.0) == 0.0
