"""Jobs over gRPC v1 and gRPC-Web: each caller's own, uploaded in pieces, and told as the server has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs import PROMPT_THAT_FAILS, Door, JobServer, job_server, no_jobs
from tests.web import Frame, framed, frames_in
from text2image.api.app import http_app
from text2image.client import AsyncClient
from text2image.core.errors import InvalidRequest, JobNotFound, Unauthenticated
from text2image.core.messages import Control, LoraWeight, RequestParams
from text2image.core.settings import Settings
from text2image.jobs import wire
from text2image.jobs.records import (
    Counts,
    Item,
    ItemError,
    ItemState,
    Job,
    JobState,
    PictureFile,
)
from text2image.net.wire import params_from, params_to
from text2image.v1 import jobs_pb2 as pb


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[JobServer]:
    async with job_server(tmp_path) as server:
        yield server


@pytest.fixture
def address(server: JobServer) -> str:
    return server.address


async def test_a_job_is_taken_in_watched_to_its_end_and_its_results_read(
    server: JobServer,
) -> None:
    server.gate.clear()
    async with AsyncClient(server.address, api_key="ann") as client:
        job = await client.jobs.submit(
            [
                {"prompt": "a fox", "seed": 3, "loras": ["ink:0.5"], "custom_id": "first"},
                {"prompt": PROMPT_THAT_FAILS},
            ],
            name="pair",
            metadata={"for": "test"},
            seconds=60.0,
        )
        assert (job.name, job.counts.total, job.metadata) == ("pair", 2, {"for": "test"})
        assert job.deadline_at == pytest.approx(job.created_at + 60, abs=30)
        states = client.jobs.watch(job.id)
        assert not (await anext(states)).state.has_ended
        server.gate.set()
        last = [each async for each in states][-1]
        assert last.state is JobState.COMPLETED
        assert (last.counts.succeeded, last.counts.failed) == (1, 1)
        drawn, failed = (await client.jobs.results(job.id)).items
        assert (drawn.custom_id, drawn.params and drawn.params.seed) == ("first", 3)
        assert drawn.params
        assert drawn.params.loras == (LoraWeight("ink", 0.5),)
        assert (await client.jobs.picture(job.id, 0)).startswith(b"\x89PNG")
        assert failed.state is ItemState.FAILED
        assert failed.error
        assert failed.error.code == "INVALID_REQUEST"
        page = await client.jobs.results(job.id, limit=1, state=ItemState.FAILED)
        assert [item.index for item in page.items] == [1]
        server.gate.clear()
        assert (await client.jobs.retry(job.id)).counts.ended == 1
        assert (await client.jobs.cancel(job.id)).state is JobState.CANCELLED


async def test_a_job_may_wait_and_be_removed(address: str) -> None:
    async with AsyncClient(address, api_key="ann") as client:
        job = await client.jobs.submit([{"prompt": "a fox"}], paused=True)
        assert job.state is JobState.PAUSED
        assert (await client.jobs.resume(job.id)).state is not JobState.PAUSED
        async for told in client.jobs.watch(job.id):
            job = told
        assert job.counts.succeeded == 1
        await client.jobs.delete(job.id)
        with pytest.raises(JobNotFound):
            await client.jobs.get(job.id)


async def test_a_key_finds_the_job_that_was_made_with_it(address: str) -> None:
    async with AsyncClient(address, api_key="ann") as client:
        first, again = [
            await client.jobs.submit([{"prompt": "a fox"}], idempotency_key="once")
            for _ in range(2)
        ]
        assert first.id == again.id
        with pytest.raises(InvalidRequest):
            await client.jobs.submit([{"prompt": "an owl"}], idempotency_key="once")


async def test_nobody_sees_or_ends_the_jobs_of_others(address: str) -> None:
    async with (
        AsyncClient(address, api_key="ann") as ann,
        AsyncClient(address, api_key="bob") as bob,
    ):
        job = await ann.jobs.submit([{"prompt": "a fox"}])
        assert (await bob.jobs.list()).jobs == ()
        others = bob.jobs
        for asked in (others.get, others.cancel, others.pause, others.resume, others.retry):
            with pytest.raises(JobNotFound):
                await asked(job.id)
        for read in (others.delete(job.id), others.results(job.id), others.picture(job.id, 0)):
            with pytest.raises(JobNotFound):
                await read
        with pytest.raises(JobNotFound):
            await anext(others.watch(job.id))
        assert [each.id for each in (await ann.jobs.list()).jobs] == [job.id]
    async with AsyncClient(address, api_key="") as nobody:
        with pytest.raises(Unauthenticated):
            await nobody.jobs.submit([{"prompt": "a fox"}])


async def test_more_than_one_message_holds_is_taken_in_order(address: str) -> None:
    requests = [{"prompt": f"{number} " + "x" * 600} for number in range(2000)]
    assert sum(len(each["prompt"]) for each in requests) > Settings().max_body_bytes
    async with AsyncClient(address, api_key="ann") as client:
        job = await client.jobs.submit(requests, paused=True)
        assert job.counts.total == 2000
        for after in (-1, 999):
            page = await client.jobs.results(job.id, after=after, limit=1000)
            prompts = [item.params and item.params.prompt for item in page.items]
            assert prompts == [each["prompt"] for each in requests[after + 1 : after + 1001]]
        assert page.after is None


async def test_an_upload_that_breaks_off_leaves_no_job(address: str) -> None:
    def requests() -> Iterator[dict[str, Any]]:
        for number in range(1000):
            yield {"prompt": f"{number}"}
        yield {"prompt": "a fox", "image": "/nowhere/fox.png"}

    async with AsyncClient(address, api_key="ann") as client:
        with pytest.raises(FileNotFoundError, match=r"fox\.png"):
            await client.jobs.submit(requests())
        assert (await client.jobs.list()).jobs == ()


async def test_what_is_asked_wrongly_is_told_by_its_field(address: str) -> None:
    async with AsyncClient(address, api_key="ann") as client:
        for seconds in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(InvalidRequest, match=r"job\.seconds"):
                await client.jobs.submit([{"prompt": "a fox"}], seconds=seconds)
    async with grpc.aio.insecure_channel(address) as channel:
        stub, shown = wire.stub(channel), (("x-api-key", "ann"),)
        twice = [pb.UploadJobRequest(job=pb.NewJob(name=name)) for name in "ab"]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.UploadJob(iter(twice), metadata=shown)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        unknown = pb.ListResultsRequest(job_id="job_1", state=77)  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError, match="no state of a request"):
            await stub.ListResults(unknown, metadata=shown)


@asynccontextmanager
async def _page(app: FastAPI) -> AsyncIterator[Callable[[str, Any], Awaitable[list[Frame]]]]:
    """What a page asks by: a method and its message, answered with frames."""
    headers = {"Content-Type": "application/grpc-web+proto", "X-Api-Key": "ann"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def ask(method: str, message: Any) -> list[Frame]:
            path = f"/text2image.v1.Jobs/{method}"
            answer = await client.post(path, content=framed(message), headers=headers)
            return list(frames_in(answer.content))

        yield ask


async def test_a_server_without_jobs_says_so(tmp_path: Path) -> None:
    app = http_app()
    app.state.gateway, app.state.jobs = Door(), no_jobs()
    async with _page(app) as ask:
        (refused,) = await ask("ListJobs", pb.ListJobsRequest())
    assert b"grpc-status: 5" in refused.content
    assert b"T2I_JOBS" in refused.content


async def test_pages_have_them_too_but_for_what_needs_a_stream_of_requests(
    server: JobServer,
) -> None:
    app = http_app()
    app.state.gateway, app.state.jobs = Door(), server.jobs
    request = pb.SubmitJobRequest(
        job=pb.NewJob(name="page"),
        requests=[pb.JobRequest(request=params_to(RequestParams(prompt="a fox")))],
    )
    async with _page(app) as ask:
        first, trailers = await ask("SubmitJob", request)
        job = pb.SubmitJobResponse.FromString(first.content).job
        assert job.name == "page"
        assert b"grpc-status: 0" in trailers.content
        *_, last, trailers = await ask("WatchJob", pb.WatchJobRequest(job_id=job.id))
        told = pb.WatchJobResponse.FromString(last.content).job
        assert told.state == pb.JOB_STATE_COMPLETED
        (refused,) = await ask("UploadJob", pb.UploadJobRequest())
        assert b"grpc-status: 12" in refused.content


times = st.none() | st.integers(0, 4_000_000_000_000_000).map(lambda micros: micros / 1e6)
counts = st.builds(Counts, *[st.integers(0, 10_000)] * 5)
words = st.text(max_size=20)
told_jobs = st.builds(
    Job,
    id=words,
    owner=st.just(""),
    name=words,
    state=st.sampled_from(JobState),
    counts=counts,
    created_at=times.map(lambda at: at or 0.0),
    started_at=times,
    ended_at=times,
    deadline_at=times,
    predicted_end=times,
    expires_at=times,
    waiting_for=words,
    warning=words,
    bytes=st.integers(0, 2**63 - 1),
    metadata=st.dictionaries(words, words, max_size=3),
)
pictures = st.builds(
    PictureFile,
    index=st.integers(0, 9),
    name=st.just(""),
    media_type=words,
    size=st.integers(0, 2**40),
    seed=st.integers(0, 2**63 - 1),
    width=st.integers(0, 4096),
    height=st.integers(0, 4096),
)
params = st.builds(
    RequestParams,
    prompt=words,
    negative_prompt=st.none() | words,
    seed=st.none() | st.integers(0, 2**63 - 1),
    n=st.none() | st.integers(1, 10),
    guidance_scale=st.none() | st.floats(0, 30),
    loras=st.none() | st.just((LoraWeight("ink", 0.5),)),
    controls=st.none() | st.just((Control("canny", None, 0.5, 0.1, 0.9, "canny"),)),
)
items = st.builds(
    Item,
    index=st.integers(0, 9999),
    custom_id=words,
    params=st.none() | params,
    state=st.sampled_from(ItemState),
    pictures=st.lists(pictures, max_size=2).map(tuple),
    error=st.none()
    | st.builds(ItemError, code=words, message=words, http_status=st.integers(400, 599)),
    message=words,
    attempts=st.integers(0, 99),
    finished_at=times,
)


@given(told_jobs)
def test_a_job_is_told_as_it_is(job: Job) -> None:
    sent = pb.Job.FromString(wire.job_to(job).SerializeToString())
    assert wire.job_from(sent) == job


@given(items)
def test_a_request_of_a_job_is_told_as_it_is(item: Item) -> None:
    sent = pb.JobItem.FromString(wire.item_to(item).SerializeToString())
    assert wire.item_from(sent) == item


@given(params)
def test_a_request_is_sent_as_it_was_written(written: RequestParams) -> None:
    assert params_from(params_to(written)) == written


@given(st.integers(0, 1000))
def test_states_of_later_versions_mean_that_it_goes_on(number: int) -> None:
    job = wire.job_from(pb.Job(state=number))  # type: ignore[arg-type]
    assert number in pb.JobState.values() or not job.state.has_ended
