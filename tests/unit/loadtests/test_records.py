"""What Locust's process wrote is what the report reads, and users that are still coming do not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.drivers import Answer
from loadtests.records import Recorder, read, window


def test_a_request_is_read_as_it_was_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "requests")
    recorder.add(start_time=100.0, response_time=1500.0, exception=None, name="/generate")
    recorder.add(start_time=101.0, response_time=20.0, exception=RuntimeError("503"))
    drawn, failed = read(tmp_path / "requests")
    assert (drawn.sent, drawn.latency, drawn.ok) == (100.0, 1.5, True)
    assert (failed.latency, failed.ok) == (pytest.approx(0.02), False)


def test_what_is_answered_in_the_window_counts() -> None:
    answers = [Answer(number, number + 5.0, ok=True) for number in range(20)]
    run = window(answers, begin=10.0, seconds=4.0)
    assert [answer.answered for answer in run.answers] == [10.0, 11.0, 12.0, 13.0]
    assert run.rate == 1.0


def test_a_server_slower_than_the_window_is_measured_by_all_its_answers() -> None:
    run = window([Answer(0.0, 30.0, ok=True), Answer(0.0, 60.0, ok=True)], 0.0, 10.0)
    assert len(run.answers) == 2
    assert run.rate == pytest.approx(2 / 60)
    assert window([], 0.0, 10.0).answers == []
