"""Files and batches are told of as OpenAI's clients read them, line by line, and each is its owner's alone."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai.types
import pytest
from openai.types import FileObject

from tests.unit.api.test_openai import Served
from text2image.core.errors import JobNotFound, Text2ImageError
from text2image.core.formats import FileFormat
from text2image.core.settings import get_settings
from text2image.gateway.auth import Caller
from text2image.jobs.files import FileStore
from text2image.jobs.records import (
    Counts,
    Item,
    ItemError,
    ItemPage,
    ItemState,
    Job,
    JobPage,
    JobState,
    NewItem,
    PictureFile,
)

PNG = b"\x89PNG the picture"
DAY = 24 * 3600.0


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    asked = {"prompt": "a fox", **body}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/images/generations",
        "body": asked,
    }


def written(*lines: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


class KeptJobs:
    """Jobs in memory, which draw when a test says so."""

    def __init__(self, folder: Path) -> None:
        self._picture = folder / "picture.png"
        self._picture.write_bytes(PNG)
        self.jobs: dict[str, Job] = {}
        self.of: dict[str, list[Item]] = {}

    async def submit(self, caller: Caller, items: Any, **told: Any) -> Job:
        given = [each async for each in items] if hasattr(items, "__aiter__") else list(items)
        told.pop("idempotency_key")
        seconds = told.pop("seconds")
        job = Job(
            id=f"job_{len(self.jobs):024x}",
            owner=caller.name,
            created_at=1000.0,
            deadline_at=1000.0 + seconds,
            **{**told, "metadata": told["metadata"] or {}},
        )
        self.of[job.id] = [_taken(index, item) for index, item in enumerate(given)]
        self.jobs[job.id] = job
        return self._counted(job.id)

    def _counted(self, job_id: str) -> Job:
        states = [item.state.value for item in self.of[job_id]]
        counts = Counts(**{state.value: states.count(state) for state in ItemState})
        self.jobs[job_id] = replace(self.jobs[job_id], counts=counts)
        if counts.total == counts.ended and not self.jobs[job_id].state.has_ended:
            self.end(job_id, JobState.COMPLETED, 2000.0)
        return self.jobs[job_id]

    def end(self, job_id: str, state: JobState, at: float) -> None:
        self.jobs[job_id] = replace(
            self.jobs[job_id], state=state, ended_at=at, expires_at=at + DAY, started_at=1001.0
        )

    def draw(self, job_id: str) -> None:
        """Finishes all that is queued."""
        picture = PictureFile(0, "a.png", "image/png", len(PNG), 7, 64, 64)
        for index, item in enumerate(self.of[job_id]):
            if item.state is ItemState.QUEUED:
                self.of[job_id][index] = replace(
                    item,
                    state=ItemState.SUCCEEDED,
                    pictures=(picture, replace(picture, index=1, seed=8)),
                    message="2 images generated successfully",
                    finished_at=1999.5,
                )
        self._counted(job_id)

    async def get(self, owner: str, job_id: str) -> Job:
        if job_id not in self.jobs or self.jobs[job_id].owner != owner:
            raise JobNotFound("no")
        return self.jobs[job_id]

    async def list(self, owner: str, *, after: str, limit: int, kind: str) -> JobPage:
        mine = [job for job in reversed(self.jobs.values()) if job.owner == owner]
        assert all(job.kind == kind for job in mine)
        ids = [job.id for job in mine]
        mine = mine[ids.index(after) + 1 :] if after else mine
        return JobPage(tuple(mine[:limit]), mine[limit - 1].id if len(mine) > limit else None)

    async def items(
        self, owner: str, job_id: str, *, after: int, limit: int, state: ItemState | None
    ) -> ItemPage:
        await self.get(owner, job_id)
        found = [
            item
            for item in self.of[job_id]
            if item.index > after and (state is None or item.state is state)
        ]
        return ItemPage(tuple(found[:limit]), found[limit - 1].index if found[limit:] else None)

    async def picture(
        self, owner: str, job_id: str, index: int, picture: int
    ) -> tuple[PictureFile, Path]:
        return self.of[job_id][index].pictures[picture], self._picture

    async def cancel(self, owner: str, job_id: str) -> Job:
        await self.get(owner, job_id)
        self.of[job_id] = [
            replace(item, state=ItemState.CANCELLED) if item.state is ItemState.QUEUED else item
            for item in self.of[job_id]
        ]
        self.end(job_id, JobState.CANCELLED, 1500.0)
        return self._counted(job_id)


def _taken(index: int, item: NewItem) -> Item:
    if isinstance(item.params, Text2ImageError):
        violations = getattr(item.params, "violations", ())
        error = ItemError(
            code=item.params.reason,
            message=item.params.message,
            http_status=item.params.http_status,
            violations=violations,
        )
        return Item(index=index, custom_id=item.custom_id, state=ItemState.FAILED, error=error)
    return Item(index=index, custom_id=item.custom_id, params=item.params, encoding=item.encoding)


class Api:
    """The application, with a client who shows what it is told to."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.jobs = KeptJobs(folder)
        self.files = FileStore(folder / "files", max_bytes=4000, max_age=DAY)
        served.app.state.jobs, served.app.state.files = self.jobs, self.files
        self._app = served.app

    async def ask(self, method: str, path: str, address: str = "10.0.0.1", **more: Any) -> Any:
        transport = httpx.ASGITransport(self._app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, f"/v1{path}", **more)

    async def upload(self, content: bytes, **more: Any) -> Any:
        return await self.ask(
            "POST",
            "/files",
            files={"file": ("prompts.jsonl", content)},
            data={"purpose": "batch", **more},
        )

    async def create(self, content: bytes, **more: Any) -> dict[str, Any]:
        file_id = (await self.upload(content)).json()["id"]
        asked = {"endpoint": "/v1/images/generations", "completion_window": "24h", **more}
        answer = await self.ask("POST", "/batches", json={"input_file_id": file_id, **asked})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def lines(self, file_id: str) -> list[dict[str, Any]]:
        told = await self.ask("GET", f"/files/{file_id}")
        FileObject.model_validate(told.json(), strict=True)
        answer = await self.ask("GET", f"/files/{file_id}/content")
        assert len(answer.content) == told.json()["bytes"]
        return [json.loads(each) for each in answer.text.splitlines()]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with Served(tmp_path) as served:
        yield Api(served, tmp_path)


async def test_a_batch_is_drawn_and_its_lines_are_answers_of_their_own(api: Api) -> None:
    content = written(line("one", n=2, size="64x64", output_format="webp"), line("two", steps=0.5))
    created = await api.create(content, metadata={"by": "me"})
    assert openai.types.Batch.model_validate(created, strict=True).metadata == {"by": "me"}
    assert created["status"] in ("validating", "in_progress")
    assert created["request_counts"] == {"total": 2, "completed": 0, "failed": 1}
    assert created["output_file_id"] is created["error_file_id"] is None
    job_id = created["id"].replace("batch_", "job_")
    asked = api.jobs.of[job_id][0]
    assert asked.params
    assert (asked.params.n, asked.params.width, asked.encoding.format) == (2, 64, FileFormat.WEBP)

    api.jobs.draw(job_id)
    ended = (await api.ask("GET", f"/batches/{created['id']}")).json()
    assert openai.types.Batch.model_validate(ended, strict=True).status == "completed"
    assert ended["completed_at"] == 2000
    (drawn,) = await api.lines(ended["output_file_id"])
    assert (drawn["custom_id"], drawn["error"]) == ("one", None)
    assert drawn["response"]["status_code"] == 200
    body = drawn["response"]["body"]
    openai.types.ImagesResponse.model_validate(
        {name: value for name, value in body.items() if name not in ("message", "cached")}
    )
    assert [base64.b64decode(each["b64_json"]) for each in body["data"]] == [PNG, PNG]
    assert [each["seed"] for each in body["data"]] == [7, 8]
    assert (body["size"], body["output_format"], body["created"]) == ("64x64", "webp", 1999)
    assert body["usage"]["output_tokens"] == 8
    (failed,) = await api.lines(ended["error_file_id"])
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("two", 400)
    assert failed["response"]["body"]["error"]["param"] == "steps"


async def test_a_file_whose_lines_cannot_be_told_apart_fails_with_their_numbers(api: Api) -> None:
    bad = [
        json.dumps(line("one")),
        "",
        "{no json",
        json.dumps(line("one")),
        json.dumps({**line("two"), "url": "/v1/chat/completions"}),
        json.dumps({**line("three"), "method": "GET"}),
        json.dumps({"method": "POST", "url": "/v1/images/generations", "body": {}}),
    ]
    created = await api.create("\n".join(bad).encode())
    told = openai.types.Batch.model_validate(created, strict=True)
    assert told.status == "failed"
    assert told.failed_at
    assert told.errors
    assert [(each.line, each.code, each.param) for each in told.errors.data or ()] == [
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "mismatched_url", "url"),
        (6, "invalid_line", "method"),
        (7, "invalid_line", "custom_id"),
    ]
    assert created["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert created["output_file_id"] is created["error_file_id"] is None
    empty = await api.create(b"\n\n")
    assert empty["errors"]["data"][0]["code"] == "empty_file"


async def test_what_is_cancelled_or_too_late_is_told_by_line(api: Api) -> None:
    created = await api.create(written(line("one")))
    cancelled = (await api.ask("POST", f"/batches/{created['id']}/cancel")).json()
    assert openai.types.Batch.model_validate(cancelled, strict=True).status == "cancelled"
    (told,) = await api.lines(cancelled["error_file_id"])
    assert (told["response"], told["error"]["code"]) == (None, "batch_cancelled")

    late = await api.create(written(line("one")))
    job_id = late["id"].replace("batch_", "job_")
    error = ItemError(code="DEADLINE_EXCEEDED", message="too late", http_status=504)
    (item,) = api.jobs.of[job_id]
    api.jobs.of[job_id] = [replace(item, state=ItemState.FAILED, error=error)]
    api.jobs._counted(job_id)
    api.jobs.end(job_id, JobState.COMPLETED, 1000.0 + DAY)
    expired = (await api.ask("GET", f"/batches/{late['id']}")).json()
    assert (expired["status"], expired["expired_at"]) == ("expired", 87400)
    (told,) = await api.lines(expired["error_file_id"])
    assert (told["response"], told["error"]["code"]) == (None, "batch_expired")


async def test_nobody_sees_uses_or_deletes_what_is_anothers(api: Api) -> None:
    created = await api.create(written(line("one")))
    job_id = created["id"].replace("batch_", "job_")
    api.jobs.draw(job_id)
    ended = (await api.ask("GET", f"/batches/{created['id']}")).json()
    other = {"address": "10.0.0.2"}
    for method, path in (
        ("GET", f"/batches/{created['id']}"),
        ("POST", f"/batches/{created['id']}/cancel"),
        *(
            (method, f"/files/{file_id}{more}")
            for file_id in (created["input_file_id"], ended["output_file_id"])
            for method, more in (("GET", ""), ("GET", "/content"), ("DELETE", ""))
        ),
    ):
        answer = await api.ask(method, path, **other)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["code"] in ("file_not_found", "job_not_found")
    assert (await api.ask("GET", "/files", **other)).json()["data"] == []
    assert (await api.ask("GET", "/batches", **other)).json()["data"] == []
    asked = {
        "input_file_id": created["input_file_id"],
        "endpoint": "/v1/images/generations",
        "completion_window": "24h",
    }
    refused = await api.ask("POST", "/batches", json=asked, **other)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input_file_id")


async def test_files_are_listed_by_page_read_and_deleted(api: Api) -> None:
    ids = [(await api.upload(written(line(f"{number}")))).json()["id"] for number in range(3)]
    page = (await api.ask("GET", "/files", params={"limit": 2})).json()
    assert page["has_more"]
    rest = (await api.ask("GET", "/files", params={"after": page["last_id"]})).json()
    assert not rest["has_more"]
    assert {each["id"] for each in page["data"] + rest["data"]} == set(ids)
    assert (await api.ask("GET", f"/files/{ids[1]}/content")).content == written(line("1"))
    deleted = await api.ask("DELETE", f"/files/{ids[1]}")
    assert deleted.json() == {"id": ids[1], "object": "file", "deleted": True}
    assert (await api.ask("GET", f"/files/{ids[1]}")).status_code == 404
    assert len((await api.ask("GET", "/files")).json()["data"]) == 2


async def test_what_comes_of_a_batch_can_be_deleted_and_the_batch_stays(api: Api) -> None:
    created = await api.create(written(line("one")))
    api.jobs.draw(created["id"].replace("batch_", "job_"))
    ended = (await api.ask("GET", f"/batches/{created['id']}")).json()
    path = f"/files/{ended['output_file_id']}"
    assert (await api.ask("DELETE", path)).status_code == 200
    assert (await api.ask("GET", path)).status_code == 404
    assert (await api.ask("GET", f"/batches/{created['id']}")).status_code == 200


async def test_batches_are_listed_newest_first_by_page(api: Api) -> None:
    ids = [(await api.create(written(line("one"))))["id"] for _ in range(3)]
    page = (await api.ask("GET", "/batches", params={"limit": 2})).json()
    assert [each["id"] for each in page["data"]] == [ids[2], ids[1]]
    assert page["has_more"]
    rest = (await api.ask("GET", "/batches", params={"after": page["last_id"]})).json()
    assert [each["id"] for each in rest["data"]] == [ids[0]]
    assert not rest["has_more"]


async def test_what_is_too_large_is_refused_and_leaves_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = get_settings().model_copy(update={"batch_file_bytes": 1000})
    monkeypatch.setattr("text2image.api.openai_files.get_settings", lambda: settings)
    answer = await api.upload(bytes(200_000))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    # Each is small, and all of them are not.
    statuses = [(await api.upload(b"x" * 1500)).status_code for _ in range(3)]
    assert statuses == [200, 200, 413]
    left = [path for path in (tmp_path / "files").rglob("*") if path.suffix == ".part"]
    assert left == []


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a", b"x")}}, "purpose"),
        ({"data": {"purpose": "batch"}, "files": {"other": ("a", b"x")}}, "file"),
        ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"")}}, "file"),
        (
            {
                "data": {
                    "purpose": "batch",
                    "expires_after[anchor]": "created_at",
                    "expires_after[seconds]": "1",
                },
                "files": {"file": ("a", b"x")},
            },
            "seconds",
        ),
    ],
)
async def test_what_is_no_upload_is_refused_by_its_field(
    api: Api, sent: dict[str, Any], param: str
) -> None:
    answer = await api.ask("POST", "/files", **sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_file_is_kept_as_long_as_its_owner_wants_and_no_longer_than_the_store_does(
    tmp_path: Path,
) -> None:
    now = 1000.0
    store = FileStore(tmp_path / "files", max_bytes=100, max_age=50.0, clock=lambda: now)

    def kept(seconds: float | None) -> str:
        draft = store.begin("me")
        draft.write(b"x")
        return store.keep("me", draft, "a", seconds).id

    short, long = kept(10.0), kept(1e6)
    now = 1011.0
    assert [file.id for file in store.all_of("me")] == [long]
    now = 1051.0
    assert store.all_of("me") == []
    # What has expired goes when the next one comes.
    kept(None)
    assert not list((tmp_path / "files").rglob(f"{short}*"))
    assert not list((tmp_path / "files").rglob(f"{long}*"))
