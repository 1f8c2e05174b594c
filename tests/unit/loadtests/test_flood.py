"""The flood comes from a process of its own, and so does the server that it is measured against."""

from __future__ import annotations

from loadtests import flood


def test_a_server_that_refuses_all_refuses_all_of_a_flood() -> None:
    with flood.refusing() as port, flood.flooding(port, rate=200, seconds=1) as generator:
        statuses = flood.statuses_of(generator)
    assert set(statuses) == {503}
