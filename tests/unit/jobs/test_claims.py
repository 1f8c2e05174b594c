"""Whatever several processes do to the items of jobs in whatever order, each item gets one result and jobs end."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import select

from text2image.core.errors import Internal
from text2image.core.messages import RequestParams
from text2image.jobs import claims, codec, control, reading, submission
from text2image.jobs.claims import Claim
from text2image.jobs.database import Database
from text2image.jobs.records import ItemState, JobState, NewItem, PictureFile
from text2image.jobs.tables import items

OWNER = "key:alice"
PROCESSES = st.sampled_from(["p0", "p1", "p2"])


class Workers(RuleBasedStateMachine):
    """Three processes on one database, any of which may be taken for dead and come back, not knowing of it."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.database = Database(Path(self._folder.name, "jobs.sqlite"))
        self.held: list[Claim] = []
        self.jobs: dict[int, str] = {}
        self.kept: dict[tuple[int, int], tuple[str, str | None]] = {}
        self.alive: set[str] = set()

    def run(self, work: object, *args: object) -> object:
        return self.database.run_here(work, *args)  # type: ignore[arg-type]

    def teardown(self) -> None:
        self.database.close()
        self._folder.cleanup()

    @rule(count=st.integers(1, 4))
    def submit(self, count: int) -> None:
        form = submission.form_of(
            OWNER,
            name="",
            kind="native",
            metadata=None,
            extra=None,
            idempotency_key="",
            webhook_url="",
            seconds=None,
            paused=False,
        )
        rows = [
            submission.row_of(i, NewItem(params=RequestParams(prompt="p")), 0.0)
            for i in range(count)
        ]
        number = self.run(submission.begin, form, "p0", 0.0)
        self.run(submission.add, number, rows)
        job_id = self.run(submission.finish, number, form, "digest", count, "", 10**6, 0.0)
        self.jobs[number] = job_id  # type: ignore[index,assignment]

    @rule(process=PROCESSES, count=st.integers(1, 3))
    def claim(self, process: str, count: int) -> None:
        if process not in self.alive:
            self.run(claims.enter, process, "boot")
            self.alive.add(process)
        taken = self.run(claims.claim, process, count, {}, lambda owner: None, 0.0)
        keys = {claim.key for claim in self.held}
        for claim in taken:  # type: ignore[attr-defined]
            assert claim.key not in keys
            self.held.append(claim)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "release", "lose", "again"]))
    def end(self, data: st.DataObject, how: str) -> None:
        claim = data.draw(st.sampled_from(self.held))
        where = (claim.job, claim.place)
        before = self._row(*where)
        ours = before is not None and before[:2] == (ItemState.RUNNING, claim.attempt)
        if how in ("succeed", "again"):
            file = PictureFile(
                index=0, name="x.png", media_type="", size=1, seed=claim.attempt, width=1, height=1
            )
            kept = self.run(claims.succeed, claim, (file,), "", 0.0)
            again = before is not None and before[:2] == (ItemState.SUCCEEDED, claim.attempt)
            assert kept == (ours or again)
            if ours:
                assert where not in self.kept
                self.kept[where] = (ItemState.SUCCEEDED, codec.pictures_text((file,)))
        elif how == "fail":
            kept = self.run(claims.fail, claim, codec.error_of(Internal()), 0.0)
            assert kept == ours
            if ours:
                assert where not in self.kept
                self.kept[where] = (ItemState.FAILED, None)
        elif how == "release":
            self.run(claims.release, claim)
        else:
            self.run(claims.lose, claim)
        if how not in ("lose", "succeed"):
            self.held.remove(claim)

    @rule(process=PROCESSES)
    def bury(self, process: str) -> None:
        if self.run(claims.bury, process, 0):
            self.alive.discard(process)
            self.run(claims.inherit)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), what=st.sampled_from(["pause", "resume", "cancel", "retry", "delete"]))
    def manage(self, data: st.DataObject, what: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.jobs)))
        job_id = self.jobs[number]
        if what == "pause":
            self.run(control.pause, OWNER, job_id)
        elif what == "resume":
            self.run(control.resume, OWNER, job_id)
        elif what == "cancel":
            self.run(control.cancel, OWNER, job_id, 0.0)
        elif what == "retry" and self._job(number).state is not JobState.CANCELLED:
            self.run(control.retry_failed, OWNER, job_id)
            failed = [key for key, kept in self.kept.items() if kept[0] == ItemState.FAILED]
            for key in failed:
                if key[0] == number:
                    del self.kept[key]
        elif what == "delete":
            self.run(control.remove, OWNER, job_id, 0.0)
            self.run(control.forget, number)
            del self.jobs[number]
            self.kept = {key: kept for key, kept in self.kept.items() if key[0] != number}

    def _row(self, job: int, place: int) -> tuple[str, int, str | None] | None:
        query = select(items.c.state, items.c.attempt, items.c.pictures).where(
            items.c.job == job, items.c.place == place
        )
        row = self.database.run_here(lambda connection: connection.execute(query).first())
        return tuple(row) if row else None  # type: ignore[return-value]

    def _job(self, number: int):  # type: ignore[no-untyped-def]
        return self.database.run_here(reading.by_number, number, 0.0, 0.0)

    @invariant()
    def what_is_kept_stays(self) -> None:
        for key, (state, pictures) in self.kept.items():
            row = self._row(*key)
            assert row
            assert (row[0], row[2]) == (state, pictures)

    @invariant()
    def a_job_has_ended_when_nothing_of_it_is_left(self) -> None:
        for number in self.jobs:
            job = self._job(number)
            left = job.counts.queued + job.counts.running
            assert job.state.has_ended == (left == 0)

    @invariant()
    def who_draws_is_alive(self) -> None:
        query = select(items.c.process, items.c.state)
        rows = self.database.run_here(lambda connection: connection.execute(query).all())
        for process, state in rows:
            assert (process is not None) == (state == ItemState.RUNNING)
            assert process is None or process in self.alive


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
