"""Requests are cancelled by the ids that their callers gave them, and by nobody else."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.gateway.asking import CALLER, asking
from tests.unit.gateway.scripted import HANG, ScriptedRunner
from text2image.core.errors import Cancelled, InvalidRequest
from text2image.core.lifecycle import Work
from text2image.core.messages import Queued, Share
from text2image.gateway.auth import Caller
from text2image.gateway.generate import Gateway
from text2image.gateway.in_flight import InFlight
from text2image.gateway.runners import Runners
from text2image.observe.metrics import GatewayMetrics

OTHER = Caller("key:other", Share("key:other"))


async def test_a_request_ends_as_cancelled_and_so_does_its_work(tmp_path: Path) -> None:
    runner = ScriptedRunner(tmp_path / "0", [Queued(1.0), HANG])
    await runner.start()
    metrics = GatewayMetrics(CollectorRegistry())
    runners = Runners([runner.address], 0, metrics)
    gateway = Gateway(runners, None, metrics, Work())
    runners.start()
    async for _ in gateway.statuses():
        if gateway.is_ready:
            break
    context = asking()
    with gateway.in_flight.named(context, "job"):
        async with aclosing(gateway.stream(context)) as events:
            assert isinstance(await anext(events), Queued)
            assert not gateway.in_flight.cancel(OTHER, "job")
            assert gateway.in_flight.cancel(CALLER, "job")
            with pytest.raises(Cancelled, match="by its id"):
                await anext(events)
    await runner.cancelled.wait()
    assert not gateway.in_flight.cancel(CALLER, "job")
    await runners.close()
    await runner.die()


def test_an_id_is_one_requests_at_a_time_of_each_caller() -> None:
    requests = InFlight()
    with requests.named(asking(), "job"):
        with (
            pytest.raises(InvalidRequest, match="another request"),
            requests.named(asking(), "job"),
        ):
            pass
        with requests.named(asking(caller=OTHER), "job"), requests.named(asking(), ""):
            pass
    with requests.named(asking(), "job"):
        pass


@pytest.mark.parametrize("bad", ["", "a b", "ä", "x" * 65, "a\n"])
def test_what_is_no_id_is_refused(bad: str) -> None:
    requests = InFlight()
    with pytest.raises(InvalidRequest, match="64 visible"):
        requests.cancel(CALLER, bad)
    if bad:
        with pytest.raises(InvalidRequest, match="64 visible"), requests.named(asking(), bad):
            pass
