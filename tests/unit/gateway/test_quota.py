"""Nobody gets more than their limits allow, everybody gets all of it, and what is refused costs nothing."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import Charge
from text2image.core.errors import PermissionDenied, QuotaExceeded
from text2image.core.limits import MEGA, Allowance, RateLimit, parse_limits
from text2image.core.messages import Share
from text2image.gateway import rate_limits
from text2image.gateway.auth import Caller
from text2image.gateway.quota import Quotas
from text2image.gateway.rate_limits import Decision, Entry, LocalStore


def allowing(limits: str = "", cap: int | None = None) -> Allowance:
    return Allowance(parse_limits(limits), cap)


def caller(limits: str = "", cap: int | None = None, name: str = "key:alice") -> Caller:
    return Caller(name, Share(name), allowing(limits, cap))


class Milliseconds:
    """A clock that is moved by hand."""

    def __init__(self, now: int = 12_345_678) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


# Milliseconds that pass, the work that is asked for then, and whether a runner takes it.
visits = st.lists(
    st.tuples(
        st.integers(0, 2500) | st.integers(0, 70_000), st.integers(1, 9 * MEGA), st.booleans()
    ),
    max_size=40,
)


@given(
    visits,
    st.lists(
        st.builds(RateLimit, st.integers(9, 30), st.sampled_from(["second", "minute"])),
        min_size=1,
        max_size=2,
        unique_by=lambda limit: limit.period,
    ),
)
def test_no_window_ever_holds_more_than_the_quota_and_a_wait_is_as_long_as_it_must_be(
    visits: list[tuple[int, int, bool]], limits: list[RateLimit]
) -> None:
    clock = Milliseconds()
    store = LocalStore(clock)
    allowance = Allowance(tuple(limits))
    spent: list[tuple[int, int]] = []
    for number, (passed, work, taken) in enumerate(visits):
        clock.now += passed
        entry = Entry(str(number), "alice", work, allowance)
        decision = store.reserve(entry)
        if not decision.allowed:
            wait = max(spending.seconds_until(work) for spending in decision.spendings)
            longest = max(limit.seconds for limit in limits)
            assert 0 < wait <= longest + longest / rate_limits.SLICES + 0.001
            clock.now += round(wait * 1000) - 1
            assert not store.reserve(entry).allowed
            clock.now += 1
            decision = store.reserve(entry)
            assert decision.allowed
        store.release(entry, decision, refund=not taken)
        if taken:
            spent.append((clock.now, work))
        for limit in limits:
            window = sum(work for then, work in spent if then >= clock.now - limit.seconds * 1000)
            assert window <= limit.quota


def test_all_of_a_limit_can_be_spent_and_comes_back() -> None:
    clock = Milliseconds()
    store = LocalStore(clock)
    allowance = allowing("10/minute")

    def spend(work: int) -> Decision:
        return store.reserve(Entry("", "alice", work * MEGA, allowance))

    assert [spend(5).allowed for _ in range(3)] == [True, True, False]
    (spending,) = spend(1).spendings
    assert spending.left == 0
    assert 60 <= spending.seconds_until_more <= 61
    clock.now += 61_000
    assert [spend(10).allowed, spend(1).allowed] == [True, False]


def test_an_entry_that_one_limit_refuses_is_charged_to_none() -> None:
    store = LocalStore(Milliseconds())
    allowance = allowing("100/minute;10/hour", 5)
    assert not store.reserve(Entry("1", "alice", 11 * MEGA, allowance)).allowed
    decision = store.reserve(Entry("2", "alice", 10 * MEGA, allowance))
    assert [spending.left // MEGA for spending in decision.spendings] == [90, 0]
    assert decision.running == 1


def test_callers_who_have_nothing_running_are_forgotten() -> None:
    clock = Milliseconds()
    store = LocalStore(clock)
    for number in range(4 * rate_limits.SWEEP_FROM):
        clock.now += 1000
        entry = Entry("", f"address:{number}", MEGA, allowing("9/minute", 1))
        store.release(entry, store.reserve(entry), refund=False)
    assert len(store) <= rate_limits.SWEEP_FROM


async def test_a_charge_does_not_show_what_was_given_back() -> None:
    charge = Charge()
    async with Quotas().reserved(caller("10/hour"), MEGA, charge):
        assert charge.standing
    assert charge.standing is None


async def test_a_refusal_says_which_limit_how_much_is_left_and_when_it_fits() -> None:
    quotas = Quotas()
    alice = caller("10/minute;100/day")
    charge = Charge()
    async with quotas.reserved(alice, 8 * MEGA, charge) as reservation:
        reservation.taken = True
    assert charge.standing is not None
    assert [spending.left // MEGA for spending in charge.standing] == [2, 92]
    with pytest.raises(QuotaExceeded, match=r"10/minute leaves 2\.0 .* costs 5\.2") as refusal:
        async with quotas.reserved(alice, 5_242_880, Charge()):
            pass
    assert 59 <= (refusal.value.retry_after or 0) <= 61
    assert refusal.value.subject == "key:alice"


async def test_what_no_wait_makes_possible_is_denied_without_a_delay() -> None:
    alice = caller("100/day;10/minute")
    with pytest.raises(PermissionDenied, match=r"costs 11\.0 .* 10/minute") as denial:
        async with Quotas().reserved(alice, 11 * MEGA, Charge()):
            pass
    assert denial.value.retry_after is None


async def test_who_has_no_limits_is_charged_nothing() -> None:
    quotas = Quotas()
    charge = Charge()
    async with AsyncExitStack() as stack:
        for _ in range(50):
            await stack.enter_async_context(quotas.reserved(caller(), 10**15, charge))
    assert charge.standing is None
    assert await quotas.standing(caller()) == ()
