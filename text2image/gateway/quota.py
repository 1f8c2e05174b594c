"""How much a caller may: work in a window of time, and requests at once.

What a request will cost is reserved before a runner is asked, so that many at once cannot spend the same, and given
back unless a runner took it: a refusal costs nothing. Each process counts for itself. With Redis the count of all
gateways must agree too; while Redis is away, each goes on by its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from text2image.core.errors import PermissionDenied, QuotaExceeded, Unavailable
from text2image.core.limits import MEGA
from text2image.gateway.auth import Caller
from text2image.gateway.rate_limits import (
    Decision,
    Entry,
    LocalStore,
    Spending,
)
from text2image.gateway.shared import OutOfReach

if TYPE_CHECKING:
    from text2image.gateway.shared.rate_limits import RedisStore

# What a caller is told to wait, in seconds, when as many requests run as may: none of them says when it ends.
CONCURRENCY_RETRY_AFTER = 1.0

T = TypeVar("T")


class Charged(Protocol):
    """A request that is charged; `standing` is where its caller stands then, limit by limit; None if unknown."""

    standing: tuple[Spending, ...] | None


@dataclass(slots=True)
class Reservation:
    """Work that is reserved. It is given back in the end unless it was `taken` by a runner."""

    taken: bool = False


class Quotas:
    """The limits of all callers of this process. Use it from one event loop.

    Args:
        shared: what all gateways count in, if there are several.
    """

    def __init__(self, shared: RedisStore | None = None) -> None:
        self._local = LocalStore()
        self._shared = shared
        # The event loop alone would let go of a task that is still at work.
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextlib.asynccontextmanager
    async def reserved(
        self, caller: Caller, work: int, request: Charged
    ) -> AsyncIterator[Reservation]:
        """Holds `work` pixel-steps and one of the caller's places while the block runs.

        The request's standing is filled in, and emptied again where the work is given back.

        Raises:
            QuotaExceeded: a limit is used up, or too many of the caller's requests run.
            PermissionDenied: the work is more than one of the limits ever allows.
        """
        entry = _entry(caller, work)
        if not entry.allowance.limits and entry.allowance.max_concurrent is None:
            yield Reservation()
            return
        _require_possible(entry)
        decision, shared_decision = await self._reserve(entry, request)
        reservation = Reservation()
        try:
            yield reservation
        except Unavailable:
            reservation.taken = False
            raise
        finally:
            if not reservation.taken:
                # It tells of a charge that is about to be given back.
                request.standing = None
            await self._release(entry, decision, shared_decision, refund=not reservation.taken)

    async def standing(self, caller: Caller) -> tuple[Spending, ...]:
        """Where a caller stands now, limit by limit."""
        entry = _entry(caller, 0)
        if self._shared and entry.allowance.limits:
            with contextlib.suppress(OutOfReach):
                return await self._shared.look(entry)
        return self._local.look(entry)

    async def close(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._shared:
            await self._shared.close()

    async def _reserve(self, entry: Entry, request: Charged) -> tuple[Decision, Decision | None]:
        decision = self._local.reserve(entry)
        request.standing = decision.spendings
        if not decision.allowed:
            raise _refusal(entry, decision)
        if self._shared is None:
            return decision, None
        asking = self._start(self._shared.reserve(entry))
        try:
            shared_decision = await asyncio.shield(asking)
        except OutOfReach:
            return decision, None
        except BaseException:
            request.standing = None
            self._local.release(entry, decision, refund=True)
            self._start(self._undo(entry, asking))
            raise
        request.standing = shared_decision.spendings
        if not shared_decision.allowed:
            self._local.release(entry, decision, refund=True)
            raise _refusal(entry, shared_decision)
        return decision, shared_decision

    async def _undo(self, entry: Entry, asking: asyncio.Task[Decision]) -> None:
        """Gives back what was asked for by somebody who did not wait for the answer, or was told what went wrong."""
        assert self._shared
        decision = None
        with contextlib.suppress(Exception):
            decision = await asking
        await self._shared.release(
            entry, decision, refund=decision is not None and decision.allowed
        )

    async def _release(
        self, entry: Entry, decision: Decision, shared_decision: Decision | None, *, refund: bool
    ) -> None:
        self._local.release(entry, decision, refund=refund)
        if self._shared:
            # To its end, whoever leaves meanwhile; before the answer, since the next request may follow at once.
            await asyncio.shield(
                self._start(self._shared.release(entry, shared_decision, refund=refund))
            )

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _entry(caller: Caller, work: int) -> Entry:
    return Entry(secrets.token_hex(8), caller.name, work, caller.allowance)


def _require_possible(entry: Entry) -> None:
    for limit in entry.allowance.limits:
        if entry.work > limit.quota:
            raise PermissionDenied(
                f"this request costs {_mega(entry.work)} megapixel-steps and your limit is {limit}: "
                "ask for fewer pictures, fewer steps or a smaller size"
            )


def _refusal(entry: Entry, decision: Decision) -> QuotaExceeded:
    full = [spending for spending in decision.spendings if not spending.fits(entry.work)]
    if full:
        longest = max(full, key=lambda spending: spending.seconds_until(entry.work))
        wait = longest.seconds_until(entry.work)
        message = (
            f"your limit of {longest.limit} leaves {_mega(longest.left)} megapixel-steps and this request "
            f"costs {_mega(entry.work)}; it fits in {wait:.0f} s"
        )
    else:
        wait = CONCURRENCY_RETRY_AFTER
        message = f"{decision.running} of your requests are at work, as many as may be at once; wait for one to end"
    return QuotaExceeded(message, retry_after=wait, subject=entry.caller)


def _mega(work: int) -> str:
    return f"{work / MEGA:.1f}"
