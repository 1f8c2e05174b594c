"""How long faults lasted for clients; docs/reliability.md has its times from here."""

from __future__ import annotations

import pytest

# The property of a test under which it takes down what it timed, and how long that took.
TIMES = "seconds"


def show(reporter: pytest.TerminalReporter) -> None:
    """Lists the times at the end of a run."""
    taken = [
        value
        for report in reporter.getreports("passed")
        for name, value in report.user_properties
        if name == TIMES
    ]
    if taken:
        reporter.section("seconds that faults cost")
        for what, seconds in taken:
            reporter.line(f"{seconds:7.2f}  {what}")
