"""Every request of a Locust run, written by Locust's process and read by the report.

Locust's own figures are rounded, to a tenth of a second where they are longer than one, and cover the whole run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadtests.drivers import Answer, Run


class Recorder:
    """Appends each request to a file, a line each."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)

    def add(
        self,
        start_time: float,
        response_time: float,
        exception: Exception | None,
        **_: Any,
    ) -> None:
        """Listens to Locust's `request` event: `start_time` in seconds since 1970, `response_time` in milliseconds."""
        line = {
            "sent": start_time,
            "answered": start_time + response_time / 1000,
            "ok": exception is None,
        }
        self._file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[Answer]:
    """The requests of a run in the order of their answers, in seconds since 1970."""
    return [Answer(**json.loads(line)) for line in path.read_text().splitlines()]


def window(answers: list[Answer], begin: float, seconds: float) -> Run:
    """What was answered in the `seconds` from `begin` on, or all there is, if none was answered so soon.

    Some of it was sent before, by users who wait for their answers as many as are left unanswered at the end.
    """
    counted = [each for each in answers if begin <= each.answered < begin + seconds]
    if counted or not answers:
        return Run(counted, seconds)
    span = max(each.answered for each in answers) - min(each.sent for each in answers)
    return Run(answers, span)
