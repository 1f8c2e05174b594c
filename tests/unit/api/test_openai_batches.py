"""Files and batches are told of as OpenAI's clients read them, line by line, and each is its owner's alone."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import openai.types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import FileObject

from tests.unit.api.test_openai import Served
from tests.unit.jobs.conftest import jobs_in, started
from tests.unit.jobs.drawers import TestDrawer, drawn
from text2image.api.openai_batch_lines import errors_in, item_of, lines_of
from text2image.core.settings import get_settings
from text2image.jobs.claims import Claim
from text2image.jobs.files import FileStore
from text2image.jobs.worker import Drawn

ENDPOINT = "/v1/images/generations"
PNG = b"\x89PNG the picture"
DAY = 24 * 3600.0
ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    asked = {"prompt": "a fox", **body}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": ENDPOINT,
        "body": asked,
    }


def written(*lines: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


class Api:
    """The application with jobs of its own, which are drawn when `may_draw` is set."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.may_draw = asyncio.Event()
        self.drawer = TestDrawer(self._draw)
        self.jobs = jobs_in(folder / "jobs", self.drawer)
        files = FileStore(folder / "files", owner_bytes=4000, all_bytes=6000, max_age=DAY)
        served.app.state.jobs, served.app.state.files = self.jobs, files
        self._app = served.app

    async def _draw(self, item: Claim) -> Drawn:
        await self.may_draw.wait()
        return drawn(item, PNG)

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
        asked = {"endpoint": ENDPOINT, "completion_window": "24h", **more}
        answer = await self.ask("POST", "/batches", json={"input_file_id": file_id, **asked})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def batch(self, batch_id: str) -> dict[str, Any]:
        return dict((await self.ask("GET", f"/batches/{batch_id}")).json())

    async def ended(self, batch_id: str) -> dict[str, Any]:
        """The batch once it has ended."""
        async with asyncio.timeout(30):
            while (batch := await self.batch(batch_id))["status"] not in ENDED:
                await asyncio.sleep(0.02)
        openai.types.Batch.model_validate(batch, strict=True)
        return batch

    async def drawn(self, *lines: Any) -> dict[str, Any]:
        self.may_draw.set()
        return await self.ended((await self.create(written(*lines)))["id"])

    async def lines(self, file_id: str) -> list[dict[str, Any]]:
        told = await self.ask("GET", f"/files/{file_id}")
        FileObject.model_validate(told.json(), strict=True)
        answer = await self.ask("GET", f"/files/{file_id}/content")
        assert len(answer.content) == told.json()["bytes"]
        return [json.loads(each) for each in answer.text.splitlines()]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with Served(tmp_path) as served:
        api = Api(served, tmp_path)
        async with started(api.jobs):
            yield api


async def test_a_batch_is_drawn_and_its_lines_are_answers_of_their_own(api: Api) -> None:
    content = written(
        line("one", n=2, size="64x64", output_format="webp", seed=7), line("two", steps=0.5)
    )
    created = await api.create(content, metadata={"by": "me"})
    assert openai.types.Batch.model_validate(created, strict=True).metadata == {"by": "me"}
    assert created["status"] == "in_progress"
    assert created["request_counts"] == {"total": 2, "completed": 0, "failed": 1}
    assert created["output_file_id"] is created["error_file_id"] is None
    api.may_draw.set()
    ended = await api.ended(created["id"])
    assert ended["status"] == "completed"
    assert ended["completed_at"] >= ended["created_at"]
    (asked,) = api.drawer.begun
    assert (asked.params.n, asked.params.width, asked.encoding.format) == (2, 64, "webp")
    (told,) = await api.lines(ended["output_file_id"])
    assert (told["custom_id"], told["error"]) == ("one", None)
    assert told["response"]["status_code"] == 200
    assert told["response"]["request_id"]
    body = told["response"]["body"]
    openai.types.ImagesResponse.model_validate(
        {name: value for name, value in body.items() if name not in ("message", "cached")}
    )
    assert [base64.b64decode(each["b64_json"]) for each in body["data"]] == [PNG, PNG]
    assert [each["seed"] for each in body["data"]] == [7, 8]
    assert (body["size"], body["output_format"]) == ("1x1", "webp")
    assert body["usage"]["output_tokens"] == 2
    (failed,) = await api.lines(ended["error_file_id"])
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("two", 400)
    assert failed["response"]["body"]["error"]["param"] == "steps"


async def test_edits_begin_from_the_pictures_of_their_lines(api: Api) -> None:
    url, own = "/v1/images/edits", {"prompt": "a fox", "n": 1}
    picture = {"image_url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}
    bodies: dict[str, dict[str, Any]] = {
        "drawn": {**own, "images": [picture], "mask": picture, "strength": 0.5},
        "elsewhere": {**own, "images": [{"image_url": "http://localhost/a.png"}]},
        "none": own,
    }
    lines = [
        {"custom_id": name, "method": "POST", "url": url, "body": body}
        for name, body in bodies.items()
    ]
    api.may_draw.set()
    ended = await api.ended((await api.create(written(*lines), endpoint=url))["id"])
    (asked,) = api.drawer.begun
    assert (asked.params.image, asked.params.mask, asked.params.strength) == (PNG, PNG, 0.5)
    assert [each["custom_id"] for each in await api.lines(ended["output_file_id"])] == ["drawn"]
    failed = await api.lines(ended["error_file_id"])
    assert [(each["custom_id"], each["response"]["body"]["error"]["param"]) for each in failed] == [
        ("elsewhere", "images.0.image_url"),
        ("none", "images"),
    ]


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


async def test_what_is_cancelled_is_told_by_line(api: Api) -> None:
    created = await api.create(written(line("one")))
    cancelled = (await api.ask("POST", f"/batches/{created['id']}/cancel")).json()
    assert openai.types.Batch.model_validate(cancelled, strict=True).status == "cancelled"
    (told,) = await api.lines(cancelled["error_file_id"])
    assert (told["response"], told["error"]["code"]) == (None, "batch_cancelled")


async def test_what_is_too_late_has_expired(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("text2image.api.openai_batches.WINDOW_SECONDS", 0.1)
    expired = await api.ended((await api.create(written(line("one"))))["id"])
    assert expired["status"] == "expired"
    assert expired["expired_at"] >= expired["created_at"]
    (told,) = await api.lines(expired["error_file_id"])
    assert (told["response"], told["error"]["code"]) == (None, "batch_expired")


async def test_nobody_sees_uses_or_deletes_what_is_anothers(api: Api) -> None:
    ended = await api.drawn(line("one"))
    other = {"address": "10.0.0.2"}
    for method, path in (
        ("GET", f"/batches/{ended['id']}"),
        ("POST", f"/batches/{ended['id']}/cancel"),
        *(
            (method, f"/files/{file_id}{more}")
            for file_id in (ended["input_file_id"], ended["output_file_id"])
            for method, more in (("GET", ""), ("GET", "/content"), ("DELETE", ""))
        ),
    ):
        answer = await api.ask(method, path, **other)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["code"] in ("file_not_found", "job_not_found")
    assert (await api.ask("GET", "/files", **other)).json()["data"] == []
    assert (await api.ask("GET", "/batches", **other)).json()["data"] == []
    asked = {
        "input_file_id": ended["input_file_id"],
        "endpoint": ENDPOINT,
        "completion_window": "24h",
    }
    refused = await api.ask("POST", "/batches", json=asked, **other)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input_file_id")


@pytest.mark.parametrize("field", ["endpoint", "completion_window", "input_file_id"])
async def test_what_is_no_batch_is_refused_by_its_field(api: Api, field: str) -> None:
    file_id = (await api.upload(written(line("one")))).json()["id"]
    asked = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
    refused = await api.ask("POST", "/batches", json={**asked, field: "other"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


async def test_the_same_idempotency_key_makes_one_batch(api: Api) -> None:
    file_id = (await api.upload(written(line("one")))).json()["id"]
    asked = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
    headers = {"Idempotency-Key": "a key"}
    ids = [
        (await api.ask("POST", "/batches", json=asked, headers=headers)).json()["id"]
        for _ in range(2)
    ]
    assert ids[0] == ids[1]


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
    ended = await api.drawn(line("one"))
    path = f"/files/{ended['output_file_id']}"
    assert (await api.ask("DELETE", path)).status_code == 200
    assert (await api.ask("GET", path)).status_code == 404
    assert (await api.ask("GET", f"/batches/{ended['id']}")).status_code == 200


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
    changed = get_settings().model_copy(update={"batch_file_bytes": 2000})
    monkeypatch.setattr("text2image.api.openai_files.get_settings", lambda: changed)
    answer = await api.upload(bytes(200_000))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    # Each is small, and all of them are not.
    statuses = [(await api.upload(b"x" * 1500)).status_code for _ in range(3)]
    assert statuses == [200, 200, 413]
    # And neither is what everybody has.
    other = {"files": {"file": ("a", b"x" * 1900)}, "data": {"purpose": "batch"}}
    answers = [await api.ask("POST", "/files", address="10.0.0.2", **other) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 413]
    assert "all callers" in answers[1].text
    monkeypatch.setattr("text2image.jobs.files._MOST_FILES", 1)
    refused = await api.ask("POST", "/files", address="10.0.0.2", **other)
    assert "no more are kept" in refused.text
    kept = [path.stat().st_size for path in (tmp_path / "files").rglob("*.data")]
    assert sorted(kept) == [1500, 1500, 1900]


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a", b"x")}}, "purpose"),
        ({"data": {"purpose": "batch"}, "files": {"other": ("a", b"x")}}, "other"),
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
    store = FileStore(
        tmp_path / "files", owner_bytes=100, all_bytes=100, max_age=50.0, clock=lambda: now
    )

    def kept(seconds: float | None) -> str:
        return store.add("me", BytesIO(b"x"), "../../a", seconds).id

    short, long = kept(10.0), kept(1e6)
    now = 1011.0
    assert [file.id for file in store.all_of("me")] == [long]
    now = 1051.0
    assert store.all_of("me") == []
    # What has expired goes when the next one comes.
    last = kept(None)
    names = {path.name for path in (tmp_path / "files").glob("*/*")}
    assert names == {f"{last}.json", f"{last}.data"}, (short, long)


LINES = st.lists(
    st.one_of(
        st.binary(max_size=60).map(lambda text: text.replace(b"\n", b"")),
        st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists).map(
            lambda value: json.dumps(value).encode()
        ),
        st.fixed_dictionaries(
            {"custom_id": st.text(min_size=1, max_size=3)},
            optional={
                "method": st.sampled_from(["POST", "GET"]),
                "url": st.just(ENDPOINT) | st.text(),
                "body": st.dictionaries(st.sampled_from(["prompt", "n", "size"]), st.text()),
            },
        ).map(lambda value: json.dumps(value).encode()),
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(LINES)
def test_a_file_fails_by_its_lines_or_each_of_them_is_an_item(lines: list[bytes]) -> None:
    file = BytesIO(b"\n".join(lines))
    errors = errors_in(file, ENDPOINT, 6)
    assert all(error.line is None or 1 <= error.line <= len(lines) for error in errors)
    if not errors:
        file.seek(0)
        items = [
            item_of(text, lambda _: pytest.fail("no model is named")) for _, text in lines_of(file)
        ]
        assert len({item.custom_id for item in items}) == len(items) <= 6
