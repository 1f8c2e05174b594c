"""The gateway and its runners: who gets the work, and what a client sees when one dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tests.samples import MODEL, REQUEST
from tests.unit.gateway.asking import asking
from tests.unit.gateway.scripted import BREAK, HANG, STORY, ScriptedRunner, image
from text2image.core.errors import (
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidRequest,
    ModelNotFound,
    Text2ImageError,
    Unavailable,
)
from text2image.core.lifecycle import Work
from text2image.core.messages import (
    ClientEvent,
    Event,
    GeneratedImage,
    ModelState,
    ModelStatus,
    Picture,
    Queued,
    Share,
    State,
    Status,
    StreamOptions,
)
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.observe.metrics import GatewayMetrics

FULL = Unavailable("full", reason=Unavailable.FULL, retry_after=0.01)
Connect = Callable[..., Awaitable[Runners]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Starts runners and connects to all of them; returns when each has said what it does."""
    async with AsyncExitStack() as stack:

        async def connect(*scripted: ScriptedRunner, retries: int = 2) -> Runners:
            for runner in scripted:
                await runner.start()
                stack.push_async_callback(runner.die)
            metrics = GatewayMetrics(CollectorRegistry())
            runners = Runners([runner.address for runner in scripted], retries, metrics)
            runners.start()
            stack.push_async_callback(runners.close)
            await until(runners, lambda: "starting" not in runners.status.detail)
            return runners

        yield connect


async def until(runners: Runners, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30), aclosing(runners.statuses()) as statuses:
        async for _ in statuses:
            if condition():
                return


async def stream(runners: Runners, seconds: float = 30.0) -> AsyncGenerator[Event, None]:
    deadline = asyncio.get_running_loop().time() + seconds
    told = runners.generate(REQUEST, StreamOptions(), deadline, Share())
    async with aclosing(told):
        async for event, _ in told:
            yield event


async def collect(runners: Runners, **options: object) -> list[Event]:
    return [event async for event in stream(runners, **options)]  # type: ignore[arg-type]


async def collect_from(gateway: Gateway) -> list[ClientEvent]:
    return [event async for event in gateway.stream(asking())]


async def test_events_come_as_the_runner_sends_them(tmp_path: Path, connect: Connect) -> None:
    runner = ScriptedRunner(tmp_path / "0")
    assert await collect(await connect(runner)) == list(STORY)
    assert runner.requests[0].seed == REQUEST.seed
    assert runner.requests[0].progress_every == 0


async def test_the_least_loaded_ready_runner_gets_the_work(
    tmp_path: Path, connect: Connect
) -> None:
    busy = ScriptedRunner(tmp_path / "0", status=Status(state=State.READY, backlog_seconds=9))
    loading = ScriptedRunner(tmp_path / "1", status=Status(state=State.LOADING, detail="weights"))
    idle = ScriptedRunner(tmp_path / "2")
    runners = await connect(busy, loading, idle)
    await collect(runners)
    assert [len(runner.requests) for runner in (busy, loading, idle)] == [0, 0, 1]


async def test_the_load_of_all_runners_is_one_less_those_that_take_nothing(
    tmp_path: Path, connect: Connect
) -> None:
    def at_work(
        active: int, waiting: int, utilization: float, **adapters: tuple[str, ...]
    ) -> Status:
        model = ModelStatus(
            name=MODEL.id, revision=MODEL.revision, state=ModelState.LOADED, **adapters
        )
        return Status(
            state=State.READY,
            backlog_seconds=10 * utilization,
            active=active,
            waiting=waiting,
            utilization=utilization,
            models=(model,),
        )

    one = at_work(5, 3, 0.5, adapters=("fox",), waiting_adapters=("ink",))
    two = at_work(1, 0, 0.1, adapters=("ink",), waiting_adapters=("sea",))
    gone = Status(state=State.LOADING)
    scripted = [
        ScriptedRunner(tmp_path / str(index), status=status)
        for index, status in enumerate((one, two, gone))
    ]
    runners = await connect(*scripted)
    await until(runners, lambda: runners.load.active == 6)
    assert runners.load == (5.0, 6, 3, pytest.approx(0.3))
    (model,) = runners.status.models
    assert (model.adapters, model.waiting_adapters) == (("fox", "ink"), ("sea",))
    assert runners.serves(MODEL.id)
    failed = replace(one.models[0], state=ModelState.FAILED)
    for runner in scripted[:2]:
        runner.show(replace(one, models=(failed,)))
    await until(runners, lambda: not runners.serves(MODEL.id))
    with pytest.raises(ModelNotFound):
        runners.serves("nobody")


async def test_requests_at_the_same_moment_are_spread(tmp_path: Path, connect: Connect) -> None:
    """Before any runner has had the time to say how busy it is."""
    scripted = [ScriptedRunner(tmp_path / str(index)) for index in range(3)]
    runners = await connect(*scripted)
    await asyncio.gather(*(collect(runners) for _ in range(9)))
    assert [len(runner.requests) for runner in scripted] == [3, 3, 3]


@pytest.mark.parametrize(
    "error", [FULL, InvalidRequest(FieldViolation("steps", "is odd")), Internal()]
)
async def test_what_a_runner_refuses_is_told_as_it_is(
    tmp_path: Path, connect: Connect, error: Exception
) -> None:
    runner = ScriptedRunner(tmp_path / "0", [error])
    with pytest.raises(type(error)) as raised:
        await collect(await connect(runner))
    assert str(raised.value) == str(error)
    assert len(runner.requests) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Unavailable),
        (grpc.StatusCode.UNIMPLEMENTED, Internal),
    ],
)
async def test_what_grpc_itself_says_becomes_an_error_of_ours(
    tmp_path: Path,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    code: grpc.StatusCode,
    kind: type[Text2ImageError],
) -> None:
    """The client learns nothing of it but what to do; the log names the runner and its words."""
    runners = await connect(ScriptedRunner(tmp_path / "0", [code]))
    with pytest.raises(kind) as raised:
        await collect(runners)
    assert "said grpc" not in raised.value.message
    assert f"{code.name}: said grpc" in caplog.text
    assert "runner 0" in caplog.text
    if isinstance(raised.value, Internal):
        assert raised.value.error_id in caplog.text


@pytest.mark.parametrize("end", [[BREAK], [HANG], []], ids=["broken", "killed", "cut short"])
async def test_a_lost_request_is_sent_again_and_nothing_comes_twice(
    tmp_path: Path, connect: Connect, end: list[str]
) -> None:
    runner = ScriptedRunner(tmp_path / "0", [*STORY[:3], *end], STORY)
    runners = await connect(runner)
    gateway = Gateway(runners, None, GatewayMetrics(CollectorRegistry()), Work())
    asked = asyncio.create_task(collect_from(gateway))
    if end == [HANG]:
        await runner.hung()
        await runner.restart()
    events = await asked
    pictures = [event for event in events if isinstance(event, Picture)]
    assert [(each.index, each.seed) for each in pictures] == [(0, 7), (1, 8)]
    assert [event for event in events if isinstance(event, Queued)] == [STORY[0]]
    assert events[-1] == STORY[-1]
    assert runner.requests[0] == runner.requests[1]


async def test_it_is_sent_to_another_runner_if_there_is_one(
    tmp_path: Path, connect: Connect
) -> None:
    dying = ScriptedRunner(tmp_path / "0", [HANG])
    other = ScriptedRunner(tmp_path / "1", status=Status(state=State.READY, backlog_seconds=9))
    runners = await connect(dying, other)
    asked = asyncio.create_task(collect(runners))
    await dying.hung()
    await dying.die()
    assert await asked == list(STORY)
    assert len(other.requests) == 1


async def test_every_event_tells_the_model_that_it_was_drawn_with(
    tmp_path: Path, connect: Connect
) -> None:
    """A runner that begins anew may find another model in its folder."""
    newer = replace(MODEL, revision="newer")
    runner = ScriptedRunner(tmp_path / "0", [STORY[0], image(0), BREAK], STORY)
    runners = await connect(runner)
    deadline = asyncio.get_running_loop().time() + 30
    told = runners.generate(REQUEST, StreamOptions(), deadline, Share())
    drawn = {}
    async with aclosing(told):
        async for event, model in told:
            if isinstance(event, GeneratedImage):
                drawn[event.index] = model
                runner.model = newer
    assert drawn == {0: MODEL, 1: newer}


async def test_the_model_is_that_of_a_runner_who_is_there(tmp_path: Path, connect: Connect) -> None:
    loading = Status(state=State.LOADING)
    newer = ScriptedRunner(tmp_path / "1", status=loading, model=replace(MODEL, revision="newer"))
    runners = await connect(old := ScriptedRunner(tmp_path / "0"), newer)
    await until(runners, lambda: runners.is_ready)
    newer.show(Status(state=State.READY))
    assert runners.model == MODEL
    old.show(Status(state=State.FAILED))
    await until(runners, lambda: runners.is_ready and runners.model == newer.model)


async def test_a_gateway_draws_with_the_model_of_most_and_gives_the_others_no_work(
    tmp_path: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A roll-out passes through here; two models behind one gateway would be the worse."""
    newer = replace(MODEL, revision="newer")
    old = [ScriptedRunner(tmp_path / str(index)) for index in (0, 1)]
    odd = ScriptedRunner(tmp_path / "2", model=newer)
    runners = await connect(odd, *old)
    await until(runners, lambda: runners.model == MODEL)
    await asyncio.gather(*(collect(runners) for _ in range(6)))
    assert not odd.requests
    assert "runner 0 serves embedded (revision newer" in caplog.text
    old[0].show(Status(state=State.DRAINING))
    await until(runners, lambda: "runner 1" not in ready(runners))
    assert runners.model == MODEL, "one against one: it stays"
    old[1].show(Status(state=State.DRAINING))
    await until(runners, lambda: runners.model == newer)
    await collect(runners)
    assert len(odd.requests) == 1


def ready(runners: Runners) -> list[str]:
    return [link.name for link in runners._ready]


async def test_the_same_model_on_another_device_is_the_same(
    tmp_path: Path, connect: Connect
) -> None:
    other = ScriptedRunner(tmp_path / "1", model=replace(MODEL, device="cuda:0"))
    runners = await connect(ScriptedRunner(tmp_path / "0"), other)
    await until(runners, lambda: len(ready(runners)) == 2)


@pytest.mark.parametrize("reason", [Unavailable.DRAINING, Unavailable.FULL])
async def test_who_refuses_before_its_status_tells_is_not_the_last_to_be_asked(
    tmp_path: Path, connect: Connect, reason: str
) -> None:
    refusal = Unavailable("no", reason=reason, retry_after=1)
    refusing = ScriptedRunner(tmp_path / "0", [refusal])
    runners = await connect(refusing, other := ScriptedRunner(tmp_path / "1"))
    for _ in range(4):
        assert await collect(runners) == list(STORY)
    assert refusing.requests
    assert len(other.requests) == 4


async def test_when_two_are_full_the_rest_is_not_asked(tmp_path: Path, connect: Connect) -> None:
    scripted = [ScriptedRunner(tmp_path / str(index), [FULL]) for index in range(4)]
    with pytest.raises(Unavailable):
        await collect(await connect(*scripted))
    assert sum(len(runner.requests) for runner in scripted) == 2


async def test_a_request_that_loses_every_runner_is_given_up(
    tmp_path: Path, connect: Connect
) -> None:
    runner = ScriptedRunner(tmp_path / "0", [BREAK])
    runners = await connect(runner, retries=2)
    with pytest.raises(Unavailable) as raised:
        await collect(runners)
    assert raised.value.reason == Unavailable.NO_RUNNER
    assert raised.value.retry_after
    assert len(runner.requests) == 3


async def test_a_full_runner_is_asked_again_once_a_request_was_lost(
    tmp_path: Path, connect: Connect
) -> None:
    """Whoever was admitted before the loss should not pay for it with a refusal."""
    runner = ScriptedRunner(tmp_path / "0", [STORY[0], BREAK], [FULL], [FULL], [FULL], STORY)
    events = await collect(await connect(runner))
    assert events == [STORY[0], *STORY]
    assert len(runner.requests) == 5


async def test_waiting_for_a_runner_ends_at_the_deadline(tmp_path: Path, connect: Connect) -> None:
    runner = ScriptedRunner(tmp_path / "0", [HANG])
    runners = await connect(runner)
    asked = asyncio.create_task(collect(runners, seconds=1.0))
    await runner.hung()
    await runner.die()
    with pytest.raises(DeadlineExceeded):
        await asked


async def test_the_deadline_ends_the_runners_call(tmp_path: Path, connect: Connect) -> None:
    runner = ScriptedRunner(tmp_path / "0", [HANG])
    with pytest.raises(DeadlineExceeded):
        await collect(await connect(runner), seconds=0.1)
    await asyncio.wait_for(runner.cancelled.wait(), 30)


async def test_closing_the_stream_ends_the_runners_call(tmp_path: Path, connect: Connect) -> None:
    runner = ScriptedRunner(tmp_path / "0", [STORY[0], HANG])
    events = stream(await connect(runner))
    assert await anext(events) == STORY[0]
    await events.aclose()
    await asyncio.wait_for(runner.cancelled.wait(), 30)


async def test_cancelling_the_task_ends_the_runners_call(tmp_path: Path, connect: Connect) -> None:
    runner = ScriptedRunner(tmp_path / "0", [STORY[0], HANG])
    asked = asyncio.create_task(collect(await connect(runner)))
    await runner.hung()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await asyncio.wait_for(runner.cancelled.wait(), 30)


@pytest.mark.parametrize("lost", [False, True], ids=["drawing", "waiting for a runner"])
async def test_the_end_of_draining_ends_the_request(
    tmp_path: Path, connect: Connect, lost: bool
) -> None:
    runner = ScriptedRunner(tmp_path / "0", [STORY[0], HANG])
    runners = await connect(runner)
    gateway = Gateway(runners, None, GatewayMetrics(CollectorRegistry()), Work())
    asked = asyncio.create_task(collect_from(gateway))
    await runner.hung()
    if lost:
        await runner.die()
        await until(runners, lambda: not runners.is_ready)
    await gateway.drain(0)
    with pytest.raises(Unavailable) as raised:
        await asked
    assert raised.value.reason == Unavailable.DRAINING
    await asyncio.wait_for(runner.cancelled.wait(), 30)


async def test_what_draining_ended_is_not_sent_to_another_runner(
    tmp_path: Path, connect: Connect
) -> None:
    scripted = [ScriptedRunner(tmp_path / str(index), [STORY[0], HANG]) for index in (0, 1)]
    gateway = Gateway(await connect(*scripted), None, GatewayMetrics(CollectorRegistry()), Work())
    asked = asyncio.create_task(collect_from(gateway))
    hanging = [asyncio.create_task(runner.hung()) for runner in scripted]
    await asyncio.wait(hanging, return_when=asyncio.FIRST_COMPLETED)
    await gateway.drain(0)
    with pytest.raises(Unavailable):
        await asked
    assert sum(len(runner.requests) for runner in scripted) == 1
    for task in hanging:
        task.cancel()


async def test_without_a_ready_runner_requests_are_refused(
    tmp_path: Path, connect: Connect
) -> None:
    loading = Status(state=State.LOADING, detail="weights")
    runner = ScriptedRunner(tmp_path / "0", status=loading)
    runners = await connect(runner)
    assert not runners.is_ready
    with pytest.raises(Unavailable) as raised:
        await collect(runners)
    assert raised.value.reason == Unavailable.LOADING
    with pytest.raises(Unavailable):
        assert runners.model
    runner.show(Status(state=State.READY))
    await until(runners, lambda: runners.is_ready)
    assert runners.model.id == "embedded"


async def test_many_runners_have_one_status(tmp_path: Path, connect: Connect) -> None:
    first = Status(state=State.READY, backlog_seconds=2, active=3)
    second = Status(state=State.FAILED, detail="no memory", active=1)
    runners = await connect(
        ScriptedRunner(tmp_path / "0", status=first), ScriptedRunner(tmp_path / "1", status=second)
    )
    loaded = ModelStatus(name=MODEL.id, revision=MODEL.revision, state=ModelState.LOADED)
    assert runners.status == Status(
        models=(loaded,),
        state=State.READY,
        detail="runner 1: no memory",
        backlog_seconds=2,
        active=4,
    )


async def test_statuses_end_when_the_gateway_closes(tmp_path: Path, connect: Connect) -> None:
    runners = await connect(ScriptedRunner(tmp_path / "0"))
    watching = asyncio.create_task(until(runners, lambda: False))
    await asyncio.sleep(0)
    await runners.close()
    await watching
