"""What owners are promised of their jobs, on a real database."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.jobs.conftest import ALICE, BOB, ended, jobs_in, prompts, started, when
from tests.unit.jobs.drawers import TestDrawer, drawn
from text2image.core.errors import (
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidRequest,
    JobNotFound,
    ModelNotFound,
    QuotaExceeded,
    Text2ImageError,
    Unavailable,
)
from text2image.core.limits import Allowance, parse_limits
from text2image.core.messages import Control, RequestParams
from text2image.jobs import jobs as jobs_module
from text2image.jobs.claims import Claim
from text2image.jobs.jobs import Jobs
from text2image.jobs.records import (
    Again,
    Counts,
    Dead,
    Item,
    ItemState,
    Job,
    JobState,
    NewItem,
    WebhookState,
)
from text2image.jobs.worker import MAX_LOSSES, Drawn

Start = Callable[..., Awaitable[Jobs]]


async def _never(item: Claim) -> Drawn:
    await asyncio.Event().wait()
    raise AssertionError


async def _items(jobs: Jobs, job: Job) -> list[Item]:
    found: list[Item] = []
    after: int | None = -1
    while after is not None:
        page = await jobs.items(job.owner, job.id, after=after, limit=7)
        found += page.items
        after = page.after
    return found


async def test_each_item_gets_its_pictures_and_keeps_its_place(start: Start) -> None:
    jobs = await start()
    job = await jobs.submit(ALICE, prompts(25, n=2), name="many", metadata={"a": "b"})
    assert (job.name, job.metadata, job.counts.total) == ("many", {"a": "b"}, 25)
    job = await ended(jobs, job)
    assert job.state is JobState.COMPLETED
    assert job.counts == Counts(succeeded=25)
    assert job.bytes == 25 * 2 * len(b"PNG")
    items = await _items(jobs, job)
    assert [item.index for item in items] == list(range(25))
    assert [[picture.seed for picture in item.pictures] for item in items] == [
        [i, i + 1] for i in range(25)
    ]
    file, path = await jobs.picture(ALICE.name, job.id, 3, 1)
    assert (file.seed, path.read_bytes()) == (4, b"PNG")


async def test_files_of_a_request_reach_whoever_draws_it(start: Start) -> None:
    drawer = TestDrawer()
    jobs = await start(drawer)
    control = Control("edges", b"control", scale=0.5)
    params = RequestParams(
        prompt="p", image=b"image", mask=b"mask", mask_blur=(1, 2), controls=(control,)
    )
    job = await ended(jobs, await jobs.submit(ALICE, [NewItem(params=params)]))
    assert drawer.begun[0].params == params
    item = await jobs.item(ALICE.name, job.id, 0)
    bare = replace(params, image=None, mask=None, controls=(replace(control, image=None),))
    assert item.params == bare


async def test_nobody_finds_the_job_of_another(start: Start) -> None:
    jobs = await start()
    job = await jobs.submit(ALICE, prompts(1))
    asked = [
        jobs.get(BOB.name, job.id),
        jobs.items(BOB.name, job.id),
        jobs.item(BOB.name, job.id, 0),
        jobs.picture(BOB.name, job.id, 0),
        jobs.pause(BOB.name, job.id),
        jobs.resume(BOB.name, job.id),
        jobs.cancel(BOB.name, job.id),
        jobs.retry_failed(BOB.name, job.id),
        jobs.delete(BOB.name, job.id),
        anext(jobs.watch(BOB.name, job.id)),
    ]
    for question in asked:
        with pytest.raises(JobNotFound):
            await question
    assert (await jobs.list(BOB.name)).jobs == ()


async def test_jobs_are_listed_newest_first_by_pages_and_kinds(start: Start) -> None:
    jobs = await start(TestDrawer(places=0))
    made = [await jobs.submit(ALICE, prompts(1), kind=kind) for kind in ("a", "b", "a", "a")]
    first = await jobs.list(ALICE.name, limit=3)
    assert [job.id for job in first.jobs] == [job.id for job in made[:0:-1]]
    rest = await jobs.list(ALICE.name, after=first.after or "", limit=3)
    assert ([job.id for job in rest.jobs], rest.after) == ([made[0].id], None)
    assert len((await jobs.list(ALICE.name, kind="a")).jobs) == 3
    with pytest.raises(InvalidRequest):
        await jobs.list(ALICE.name, after="job_unknown")
    with pytest.raises(InvalidRequest):
        await jobs.list(ALICE.name, limit=101)


async def test_an_item_that_cannot_be_read_has_failed_from_the_start(start: Start) -> None:
    jobs = await start()
    bad = NewItem(params=InvalidRequest(FieldViolation("steps", "must be a number")))
    job = await ended(jobs, await jobs.submit(ALICE, [bad, *prompts(1)]))
    assert job.counts == Counts(failed=1, succeeded=1)
    error = (await jobs.item(ALICE.name, job.id, 0)).error
    assert error
    assert (error.code, error.http_status) == ("INVALID_REQUEST", 400)
    assert error.violations == (FieldViolation("steps", "must be a number"),)
    job = await jobs.retry_failed(ALICE.name, job.id)
    assert job.state is JobState.COMPLETED


async def test_nothing_is_left_of_a_job_whose_items_break_off(start: Start, tmp_path: Path) -> None:
    jobs = await start(TestDrawer(places=0))

    async def breaking() -> AsyncIterator[NewItem]:
        for item in prompts(600):
            yield item
        raise InvalidRequest(FieldViolation("body", "broken"))

    with pytest.raises(InvalidRequest, match="broken"):
        await jobs.submit(ALICE, breaking())
    with pytest.raises(InvalidRequest, match="none"):
        await jobs.submit(ALICE, [])
    assert (await jobs.list(ALICE.name)).jobs == ()
    assert _rows(tmp_path) == (0, 0)


def _rows(folder: Path) -> tuple[int, int]:
    connection = sqlite3.connect(folder / "jobs.sqlite")
    try:
        return tuple(  # type: ignore[return-value]
            connection.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("t2i_jobs", "t2i_items")
        )
    finally:
        connection.close()


async def test_a_job_has_a_largest_size(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = await start(TestDrawer(places=0))
    monkeypatch.setattr(jobs_module, "MAX_ITEMS", 5)
    await jobs.submit(ALICE, prompts(5))
    with pytest.raises(InvalidRequest, match="at most 5"):
        await jobs.submit(ALICE, prompts(6))


async def test_an_owner_may_have_so_many_unfinished_items(start: Start) -> None:
    jobs = await start(TestDrawer(places=0), max_items=5)
    job = await jobs.submit(ALICE, prompts(3))
    with pytest.raises(QuotaExceeded, match="6 unfinished requests, and 5 are allowed"):
        await jobs.submit(ALICE, prompts(3))
    await jobs.submit(BOB, prompts(5))
    await jobs.cancel(ALICE.name, job.id)
    await jobs.submit(ALICE, prompts(5))


async def test_a_key_makes_one_job_of_the_same_items(start: Start) -> None:
    jobs = await start(TestDrawer(places=0))
    made = await asyncio.gather(
        *(jobs.submit(ALICE, prompts(3), idempotency_key="k") for _ in range(3))
    )
    assert len({job.id for job in made}) == 1
    with pytest.raises(InvalidRequest, match="items are others"):
        await jobs.submit(ALICE, prompts(4), idempotency_key="k")
    assert (await jobs.submit(BOB, prompts(3), idempotency_key="k")).id != made[0].id
    assert len((await jobs.list(ALICE.name)).jobs) == 1
    await jobs.delete(ALICE.name, made[0].id)
    await jobs.submit(ALICE, prompts(4), idempotency_key="k")


async def test_a_paused_job_goes_on_when_it_is_resumed(start: Start) -> None:
    drawer = TestDrawer()
    jobs = await start(drawer)
    job = await jobs.submit(ALICE, prompts(3), paused=True)
    assert job.state is JobState.PAUSED
    other = await ended(jobs, await jobs.submit(ALICE, prompts(1)))
    assert {claim.job_id for claim in drawer.begun} == {other.id}
    await jobs.resume(ALICE.name, job.id)
    job = await ended(jobs, job)
    assert job.counts.succeeded == 3
    assert (await jobs.pause(ALICE.name, job.id)).state is JobState.COMPLETED


async def test_cancelling_ends_what_is_drawn_and_keeps_what_is_finished(start: Start) -> None:
    ends: list[int] = []

    async def draw(item: Claim) -> Drawn:
        if item.place < 2:
            return drawn(item)
        try:
            return await _never(item)
        finally:
            ends.append(item.place)

    jobs = await start(TestDrawer(draw, places=3))
    job = await jobs.submit(ALICE, prompts(8))
    await when(jobs, job, lambda job: job.counts.succeeded == 2 and job.counts.running == 3)
    job = await jobs.cancel(ALICE.name, job.id)
    assert job.state is JobState.CANCELLED
    assert job.counts == Counts(succeeded=2, cancelled=6)
    while sorted(ends) != [2, 3, 4]:
        await asyncio.sleep(0.01)
    await jobs.picture(ALICE.name, job.id, 0)
    with pytest.raises(InvalidRequest, match="cancelled"):
        await jobs.retry_failed(ALICE.name, job.id)


async def test_what_one_process_cancels_another_ends(start: Start) -> None:
    ends = asyncio.Event()

    async def draw(item: Claim) -> Drawn:
        try:
            return await _never(item)
        finally:
            ends.set()

    await start(TestDrawer(draw))
    other = await start(TestDrawer(places=0))
    job = await other.submit(ALICE, prompts(1))
    await when(other, job, lambda job: job.counts.running == 1)
    await other.cancel(ALICE.name, job.id)
    await ends.wait()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest(FieldViolation("steps", "too many")), "INVALID_REQUEST"),
        (ModelNotFound.of("gone", ["one", "two"]), "MODEL_NOT_FOUND"),
    ],
)
async def test_what_can_never_be_drawn_fails_at_once_in_words(
    start: Start, error: Text2ImageError, code: str
) -> None:
    async def draw(item: Claim) -> Drawn:
        if item.place == 1:
            raise error
        return drawn(item)

    drawer = TestDrawer(draw)
    jobs = await start(drawer)
    job = await ended(jobs, await jobs.submit(ALICE, prompts(3)))
    assert job.counts == Counts(succeeded=2, failed=1)
    assert len(drawer.begun) == 3
    item = await jobs.item(ALICE.name, job.id, 1)
    assert item.error
    assert (item.error.code, item.error.message) == (code, error.message)


async def test_failed_items_alone_are_drawn_again(start: Start) -> None:
    broken = True

    async def draw(item: Claim) -> Drawn:
        if broken and item.place == 1:
            raise InvalidRequest(FieldViolation("model", "not yet"))
        return drawn(item)

    drawer = TestDrawer(draw)
    jobs = await start(drawer)
    job = await ended(jobs, await jobs.submit(ALICE, prompts(3)))
    broken = False
    job = await jobs.retry_failed(ALICE.name, job.id)
    assert not job.state.has_ended
    job = await ended(jobs, job)
    assert job.counts == Counts(succeeded=3)
    assert [claim.place for claim in drawer.begun][3:] == [1]


async def test_a_full_server_is_asked_again_and_fails_nothing(start: Start) -> None:
    full = Unavailable("full", reason=Unavailable.FULL, retry_after=0.01)
    refusals: Iterator[Text2ImageError] = iter([DeadlineExceeded("late"), *20 * [full]])

    async def draw(item: Claim) -> Drawn:
        if refusal := next(refusals, None):
            raise refusal
        return drawn(item)

    jobs = await start(TestDrawer(draw))
    job = await ended(jobs, await jobs.submit(ALICE, prompts(3)))
    assert job.counts == Counts(succeeded=3)
    assert next(refusals, None) is None


async def test_a_used_up_quota_is_waited_for_and_holds_up_nobody_else(start: Start) -> None:
    used_up = True

    async def draw(item: Claim) -> Drawn:
        if used_up and item.owner == ALICE.name:
            raise QuotaExceeded("your limit of 5/day is used up", retry_after=0.5)
        return drawn(item)

    jobs = await start(TestDrawer(draw))
    job = await jobs.submit(ALICE, prompts(3))
    job = await when(jobs, job, lambda job: bool(job.waiting_for))
    assert job.waiting_for == "your limit of 5/day is used up"
    await ended(jobs, await jobs.submit(BOB, prompts(3)))
    used_up = False
    job = await ended(jobs, job)
    assert (job.counts, job.waiting_for) == (Counts(succeeded=3), "")


async def test_a_drawing_that_is_lost_again_and_again_fails(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("text2image.jobs.worker._LONGEST_PAUSE", 0.01)

    async def draw(item: Claim) -> Drawn:
        if item.place == 1:
            raise Internal
        if len([claim for claim in drawer.begun if claim.place == 0]) < MAX_LOSSES:
            raise RuntimeError("odd")
        return drawn(item)

    drawer = TestDrawer(draw)
    jobs = await start(drawer)
    job = await ended(jobs, await jobs.submit(ALICE, prompts(2)))
    assert job.counts == Counts(succeeded=1, failed=1)
    assert [claim.place for claim in drawer.begun].count(1) == MAX_LOSSES


async def test_what_is_not_drawn_by_the_deadline_fails(start: Start) -> None:
    async def draw(item: Claim) -> Drawn:
        return drawn(item) if item.place == 0 else await _never(item)

    jobs = await start(TestDrawer(draw, places=2))
    job = await jobs.submit(ALICE, prompts(4), seconds=1.0)
    assert job.deadline_at
    job = await ended(jobs, job)
    assert job.counts == Counts(succeeded=1, failed=3)
    error = (await jobs.item(ALICE.name, job.id, 3)).error
    assert error
    assert error.code == "DEADLINE_EXCEEDED"


async def test_no_runner_is_told_as_what_jobs_wait_for(start: Start) -> None:
    drawer = TestDrawer(places=0)
    jobs = await start(drawer)
    job = await jobs.submit(ALICE, prompts(1))
    job = await when(jobs, job, lambda job: bool(job.waiting_for))
    assert job.waiting_for == "it waits for a runner that is ready"
    drawer._places = 1
    assert (await ended(jobs, job)).waiting_for == ""


async def test_who_watches_sees_the_end(start: Start) -> None:
    jobs = await start()
    job = await jobs.submit(ALICE, prompts(5))
    seen = [seen async for seen in jobs.watch(ALICE.name, job.id)]
    assert seen[-1].counts == Counts(succeeded=5)
    assert all(not job.state.has_ended for job in seen[:-1])


async def test_who_watches_a_job_that_is_removed_is_told(start: Start) -> None:
    jobs = await start(TestDrawer(places=0))
    job = await jobs.submit(ALICE, prompts(1))
    watching = jobs.watch(ALICE.name, job.id)
    await anext(watching)
    await jobs.delete(ALICE.name, job.id)
    with pytest.raises(JobNotFound):
        async for _ in watching:
            pass


async def test_a_removed_job_leaves_nothing(start: Start, tmp_path: Path) -> None:
    jobs = await start()
    job = await ended(jobs, await jobs.submit(ALICE, prompts(3)))
    _, path = await jobs.picture(ALICE.name, job.id, 0)
    await jobs.delete(ALICE.name, job.id)
    while path.parent.exists() or _rows(tmp_path) != (0, 0):
        await asyncio.sleep(0.01)


async def test_the_oldest_jobs_go_where_pictures_are_too_large(start: Start) -> None:
    jobs = await start(keep_bytes=20)
    old = await ended(jobs, await jobs.submit(ALICE, prompts(5)))
    new = await ended(jobs, await jobs.submit(ALICE, prompts(5)))
    # A deadline has the keeper look closely.
    await ended(jobs, await jobs.submit(BOB, prompts(1), seconds=100))
    waiting = await jobs.submit(BOB, prompts(1), seconds=100, paused=True)
    while len((await jobs.list(ALICE.name)).jobs) > 1:
        await asyncio.sleep(0.02)
    assert [job.id for job in (await jobs.list(ALICE.name)).jobs] == [new.id]
    with pytest.raises(JobNotFound):
        await jobs.get(ALICE.name, old.id)
    await jobs.get(BOB.name, waiting.id)


async def test_jobs_go_when_they_have_ended_for_so_long(start: Start) -> None:
    jobs = await start(keep_seconds=1.5)
    job = await ended(jobs, await jobs.submit(ALICE, prompts(1)))
    await jobs.submit(BOB, prompts(1), seconds=100, paused=True)
    while (await jobs.list(ALICE.name)).jobs:
        await asyncio.sleep(0.05)
    assert (await jobs.list(BOB.name)).jobs
    assert job.expires_at


async def test_a_job_that_takes_longer_than_a_day_by_its_quota_says_so(start: Start) -> None:
    jobs = await start(TestDrawer(places=0))
    limited = replace(ALICE, allowance=Allowance(parse_limits("1000/minute;10/day")))
    job = await jobs.submit(limited, prompts(25))
    assert job.warning == (
        "it costs about 25.0 megapixel-steps and your limit is 10/day, so it takes about 2.5 days"
    )
    assert (await jobs.submit(limited, prompts(10))).warning == ""


async def test_an_end_is_told_until_somebody_takes_it(start: Start) -> None:
    answers: Iterator[Again | Dead | None] = iter([Again(0.1, "busy"), None])
    told: list[Job] = []

    async def handler(job: Job) -> Again | Dead | None:
        told.append(job)
        return next(answers)

    jobs = await start(handler=handler)
    job = await jobs.submit(ALICE, prompts(1), webhook_url="https://example.com")
    assert job.webhook.state is WebhookState.WAITING
    job = await when(jobs, job, lambda job: job.webhook.state is WebhookState.DELIVERED)
    assert (job.webhook.attempts, len(told)) == (2, 2)
    assert all(job.state is JobState.COMPLETED for job in told)


async def test_an_end_that_nobody_takes_is_given_up(start: Start) -> None:
    async def handler(job: Job) -> Dead:
        return Dead("404")

    jobs = await start(handler=handler)
    job = await jobs.submit(ALICE, prompts(1), webhook_url="https://example.com")
    job = await when(jobs, job, lambda job: job.webhook.state is WebhookState.DEAD)
    assert job.webhook.error == "404"


async def test_whoever_ends_before_an_end_is_told_leaves_it_to_the_next(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def hanging(job: Job) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def taking(job: Job) -> None:
        return None

    async with started(jobs_in(tmp_path), hanging) as jobs:
        job = await jobs.submit(ALICE, prompts(1), webhook_url="https://example.com")
        await begun.wait()
    async with started(jobs_in(tmp_path), taking) as jobs:
        await when(jobs, job, lambda job: job.webhook.state is WebhookState.DELIVERED)


async def test_a_process_that_drains_leaves_its_items_to_the_next(tmp_path: Path) -> None:
    async with started(jobs_in(tmp_path, TestDrawer(_never))) as jobs:
        job = await jobs.submit(ALICE, prompts(3))
        await when(jobs, job, lambda job: job.counts.running == 3)
    async with started(jobs_in(tmp_path)) as jobs:
        job = await ended(jobs, job)
        assert job.counts == Counts(succeeded=3)
        states = {item.state for item in await _items(jobs, job)}
        assert states == {ItemState.SUCCEEDED}


async def test_owners_take_turns(start: Start) -> None:
    async def draw(item: Claim) -> Drawn:
        await asyncio.sleep(0.01)
        return drawn(item)

    drawer = TestDrawer(draw, places=4)
    jobs = await start(drawer)
    large = await jobs.submit(ALICE, prompts(300))
    small = await jobs.submit(BOB, prompts(4))
    await ended(jobs, small)
    assert not (await jobs.get(ALICE.name, large.id)).state.has_ended


async def test_a_server_without_jobs_says_so(tmp_path: Path) -> None:
    jobs = Jobs(None, tmp_path, TestDrawer(), max_items=1, keep_seconds=1, keep_bytes=1)
    async with started(jobs):
        for question in (jobs.list(ALICE.name), jobs.submit(ALICE, prompts(1))):
            with pytest.raises(JobNotFound, match="takes no jobs"):
                await question
    assert not [*tmp_path.iterdir()]  # noqa: ASYNC240


async def test_clocks_that_are_set_end_no_job_and_keep_none(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = await start(keep_seconds=3600)
    old = await ended(jobs, await jobs.submit(ALICE, prompts(1)))
    job = await jobs.submit(BOB, prompts(2), seconds=3600, paused=True)
    now = time.time
    for days in (2, -2):
        monkeypatch.setattr(time, "time", lambda days=days: now() + days * 86400)
        # The keeper has looked since.
        seconds = left(await jobs.get(BOB.name, job.id))
        await when(jobs, job, lambda job, seconds=seconds: left(job) < seconds - 0.5)
        assert (await jobs.get(ALICE.name, old.id)).state is JobState.COMPLETED
    await jobs.resume(BOB.name, job.id)
    assert (await ended(jobs, job)).counts == Counts(succeeded=2)


def left(job: Job) -> float:
    """Seconds to the deadline."""
    assert job.deadline_at
    return job.deadline_at - time.time()
