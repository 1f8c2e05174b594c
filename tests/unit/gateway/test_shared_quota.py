"""Limits that several gateways keep together, in a real Redis: as if they were one, also while Redis is away."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.redis import RedisServer
from tests.samples import Charge
from tests.unit.gateway.test_quota import allowing, caller
from text2image.core.errors import QuotaExceeded
from text2image.core.limits import MEGA
from text2image.gateway.quota import Quotas
from text2image.gateway.rate_limits import Decision, Entry, LocalStore
from text2image.gateway.shared import OutOfReach, rate_limits
from text2image.gateway.shared import state as state_module
from text2image.gateway.shared.rate_limits import RedisStore
from text2image.gateway.shared.state import SharedState

WAIT_SECONDS = 30.0
# How long what runs is held in Redis, in seconds: so short that a test can see it end.
HOLD = 2.0


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no Redis that is away."""
    monkeypatch.setattr(state_module, "ANSWER_TIMEOUT", WAIT_SECONDS)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not await condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def state(redis: RedisServer) -> AsyncIterator[SharedState]:
    state = SharedState(redis.url)
    yield state
    await state.close()


@pytest.mark.parametrize("seed", range(4))
async def test_the_shared_store_reckons_as_the_local_one(state: SharedState, seed: int) -> None:
    """In windows so long that nothing comes back meanwhile; Redis has a clock of its own."""
    chance = random.Random(seed)
    local, remote = LocalStore(), RedisStore(state, 60)
    allowance = allowing("40/hour;60/day", 3)
    running: list[tuple[Entry, Decision, Decision]] = []
    for number in range(60):
        if running and chance.random() < 0.4:
            entry, decision, shared_decision = running.pop(chance.randrange(len(running)))
            refund = chance.random() < 0.7
            local.release(entry, decision, refund=refund)
            await remote.release(entry, shared_decision, refund=refund)
            continue
        entry = Entry(str(number), "alice", chance.randrange(1, 15) * MEGA, allowance)
        decision, shared_decision = local.reserve(entry), await remote.reserve(entry)
        assert (decision.allowed, decision.running) == (
            shared_decision.allowed,
            shared_decision.running,
        )
        for mine, theirs in zip(decision.spendings, shared_decision.spendings, strict=True):
            assert mine.left == theirs.left
        if decision.allowed:
            running.append((entry, decision, shared_decision))
    await remote.close()


async def test_the_shared_store_gives_back_what_is_older_than_the_window(
    state: SharedState,
) -> None:
    store = RedisStore(state, HOLD)
    entry = Entry("1", "alice", 10 * MEGA, allowing("10/second"))
    assert (await store.reserve(entry)).allowed
    refused = await store.reserve(entry)
    assert not refused.allowed
    wait = refused.spendings[0].seconds_until(entry.work)
    assert 0 < wait <= 1.02
    decisions = []

    async def is_allowed() -> bool:
        decisions.append(await store.reserve(entry))
        return decisions[-1].allowed

    await eventually(is_allowed)
    assert decisions[-1].now >= refused.now + 1000 * wait


async def test_gateways_that_share_a_redis_share_every_limit(redis: RedisServer) -> None:
    states = [SharedState(redis.url) for _ in range(3)]
    gateways = [Quotas(RedisStore(state)) for state in states]
    alice = caller("20/hour")
    taken = 0

    async def ask(number: int) -> None:
        nonlocal taken
        try:
            async with gateways[number % 3].reserved(alice, 3 * MEGA, Charge()) as reservation:
                reservation.taken = True
                taken += 1
        except QuotaExceeded:
            pass

    await asyncio.gather(*map(ask, range(30)))
    assert taken == 20 // 3
    for gateway in gateways:
        (spending,) = await gateway.standing(alice)
        assert spending.left == 20 * MEGA - taken * 3 * MEGA
        await gateway.close()
    for state in states:
        await state.close()


async def test_places_are_shared_and_those_of_a_killed_gateway_come_free(
    state: SharedState,
) -> None:
    killed, alive, other = (RedisStore(state, HOLD) for _ in range(3))
    allowance = allowing(cap=2)
    assert (await killed.reserve(Entry("1", "alice", 0, allowance))).allowed
    assert (await alive.reserve(Entry("2", "alice", 0, allowance))).allowed
    refused = await other.reserve(Entry("3", "alice", 0, allowance))
    assert (refused.allowed, refused.running) == (False, 2)
    await killed.close()

    async def fits() -> bool:
        return (await other.reserve(Entry("4", "alice", 0, allowance))).allowed

    await eventually(fits)
    # The other's is held by its gateway, else it would have come free at the same time.
    assert not (await other.reserve(Entry("5", "alice", 0, allowance))).allowed
    for store in (alive, other):
        await store.close()


async def test_one_that_is_refused_takes_no_place_however_late_the_answer_comes(
    state: SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(state, HOLD)
    first, second, third = (Entry(id_, "alice", 0, allowing(cap=1)) for id_ in "123")
    decision = await store.reserve(first)
    ask, run = store._ask, store._run
    held = asyncio.Event()

    async def run_and_tell(script: str, *arguments: Any) -> Any:
        answer = await run(script, *arguments)
        if script is rate_limits._HOLD:
            held.set()
        return answer

    async def ask_slowly(entry: Entry, id_: str) -> Decision:
        decision = await ask(entry, id_)
        held.clear()
        await asyncio.wait_for(held.wait(), WAIT_SECONDS)
        return decision

    monkeypatch.setattr(store, "_run", run_and_tell)
    monkeypatch.setattr(store, "_ask", ask_slowly)
    assert not (await store.reserve(second)).allowed
    monkeypatch.setattr(store, "_ask", ask)
    await store.release(first, decision, refund=False)
    assert (await store.reserve(third)).allowed
    await store.close()


async def test_a_limit_holds_while_redis_is_away_and_is_shared_when_it_is_back(
    redis: RedisServer, state: SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "PAUSE", 0.05)
    other_state = SharedState(redis.url)
    alone, other = Quotas(RedisStore(state, HOLD)), Quotas(RedisStore(other_state, HOLD))
    alice = caller("10/hour", cap=2)
    async with alone.reserved(alice, 4 * MEGA, Charge()) as first:
        first.taken = True
        redis.kill()
        async with alone.reserved(alice, 4 * MEGA, Charge()) as second:
            second.taken = True
            with pytest.raises(QuotaExceeded, match=r"10/hour leaves 2\.0"):
                async with alone.reserved(alice, 4 * MEGA, Charge()):
                    pass
            with pytest.raises(QuotaExceeded, match="2 of your requests"):
                async with alone.reserved(alice, MEGA, Charge()):
                    pass
            redis.restart()

            async def told() -> bool:
                try:
                    async with other.reserved(alice, 0, Charge()):
                        return False
                except QuotaExceeded as refusal:
                    return "2 of your requests" in refusal.message

            await eventually(told)
    for quotas in (alone, other):
        await quotas.close()
    await other_state.close()


async def test_a_redis_that_was_away_is_asked_by_one_alone(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "PAUSE", 0.0)
    state = SharedState(redis.url, 0.1)
    redis.process.send_signal(signal.SIGSTOP)
    asked = 0

    async def ask(connection: Redis) -> object:
        nonlocal asked
        asked += 1
        return await connection.ping()

    with pytest.raises(OutOfReach):
        await state.ask(ask)
    monkeypatch.setattr(state_module, "PAUSE", WAIT_SECONDS)
    results = await asyncio.gather(*(state.ask(ask) for _ in range(9)), return_exceptions=True)
    assert asked == 2
    assert all(isinstance(result, OutOfReach) for result in results)
    await state.close()


async def test_a_redis_that_takes_no_entries_is_told_once_and_stays_in_reach(
    redis: RedisServer, state: SharedState, caplog: pytest.LogCaptureFixture
) -> None:
    quotas = Quotas(RedisStore(state))
    alice = caller("10/hour", cap=5)

    async def spend() -> None:
        async with quotas.reserved(alice, 2 * MEGA, Charge()) as reservation:
            reservation.taken = True

    with redis.connection as connection:
        for times in (1, 2):
            # As one that another has taken the place of.
            connection.replicaof("127.0.0.1", "1")
            for _ in range(2):
                await spend()
                assert await state.ask(lambda asked: asked.ping())
                await quotas.standing(alice)
            assert len(caplog.messages) == times
            assert "limits are not shared" in caplog.text
            connection.replicaof("no", "one")
            if times == 1:
                await spend()
    with pytest.raises(QuotaExceeded):
        await spend()
    await quotas.close()


async def test_a_full_redis_counts_all_the_same(
    redis: RedisServer, state: SharedState, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.connection as connection:
        connection.config_set("maxmemory", "1")
    one, other = RedisStore(state, HOLD), RedisStore(state, HOLD)
    allowance = allowing("10/hour", 1)
    entry = Entry("1", "alice", 4 * MEGA, allowance)
    decision = await one.reserve(entry)
    assert decision.allowed
    look = Entry("2", "alice", MEGA, allowance)

    async def is_longer_than_a_place_is_kept_that_is_not_held() -> bool:
        return (await other.reserve(look)).now > decision.now + 1500 * HOLD

    await eventually(is_longer_than_a_place_is_kept_that_is_not_held)
    refused = await other.reserve(look)
    assert (refused.allowed, refused.running) == (False, 1)
    assert refused.spendings[0].left == 6 * MEGA
    await one.release(entry, decision, refund=True)
    assert (await other.reserve(Entry("3", "alice", 10 * MEGA, allowance))).allowed
    assert not caplog.messages
    for store in (one, other):
        await store.close()


async def test_who_leaves_while_redis_is_asked_costs_nothing(state: SharedState) -> None:
    quotas = Quotas(RedisStore(state))
    alice = caller("10/hour", cap=1)

    async def ask() -> None:
        async with quotas.reserved(alice, MEGA, Charge()):
            await asyncio.Event().wait()

    for passes in range(60):
        asking = asyncio.create_task(ask())
        for _ in range(passes):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})

    async def all_is_there() -> bool:
        try:
            async with quotas.reserved(alice, 10 * MEGA, Charge()):
                return True
        except QuotaExceeded:
            return False

    await eventually(all_is_there)
    await quotas.close()


async def test_who_could_not_be_charged_for_another_reason_holds_no_place(
    state: SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = Quotas(RedisStore(state))
    alice = caller("10/hour", cap=1)

    async def broken(_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as context:
        context.setattr(state, "ask", broken)
        with pytest.raises(MemoryError):
            async with quotas.reserved(alice, 10 * MEGA, Charge()):
                pass
        # Until the attempt to give it back in Redis is over.
        await quotas.close()
    async with quotas.reserved(alice, 10 * MEGA, Charge()) as reservation:
        reservation.taken = True
    await quotas.close()
