"""Jobs over HTTP: however requests are sent they are the same job, and what is wrong is named by its place."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.hostile.bodies import examples
from tests.init_images import file_of, picture
from tests.samples import MODEL
from tests.unit.api.test_openai import Served
from tests.unit.gateway.scripted import ScriptedRunner
from tests.unit.jobs.drawers import TestDrawer, at_once
from text2image.api.jobs.requests import key_in
from text2image.api.jobs.uploads import _lines
from text2image.core.errors import InvalidRequest, ModelNotFound
from text2image.core.messages import Input
from text2image.core.settings import Settings, get_settings
from text2image.jobs.claims import Claim
from text2image.jobs.jobs import Jobs
from text2image.jobs.webhooks import Webhooks
from text2image.jobs.worker import Drawn

SECRET = f"whsec_{base64.b64encode(bytes(32)).decode()}"
FILE = base64.b64encode(file_of(picture((64, 64)))).decode()
REQUESTS: list[dict[str, Any]] = [
    {"text": "a fox", "seed": 7, "n": 2, "custom_id": "first"},
    {"text": "a fox", "context": "at night", "image": FILE, "strength": 0.5},
    {"text": "näher", "loras": [], "images_only": True},
]
LINES = "\n".join(map(json.dumps, REQUESTS)).encode()
AS_LINES = {"Content-Type": "application/x-ndjson"}


async def draw(claim: Claim) -> Drawn:
    if claim.params.prompt == "nothing":
        raise ModelNotFound("'nothing' is not served here")
    return await at_once(claim)


@asynccontextmanager
async def jobs_served(folder: Path) -> AsyncIterator[Served]:
    served = Served(folder)
    model = replace(MODEL, inputs=(Input.TEXT, Input.IMAGE))
    served.runner = ScriptedRunner(folder / "socket", model=model)
    async with served:
        limits: dict[str, Any] = {"max_items": 30_000, "keep_seconds": 1e6, "keep_bytes": 1 << 30}
        jobs = Jobs(folder / "jobs.sqlite", folder / "jobs", TestDrawer(draw), **limits)
        await jobs.start()
        hooks = Webhooks(Settings(webhook_secret=SECRET))
        served.app.state.jobs, served.app.state.webhooks = jobs, hooks
        yield served
        await jobs.close()
        await hooks.close()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with jobs_served(tmp_path) as served, client_of(served.app, "192.0.2.1") as made:
        yield made


def client_of(app: Any, address: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(address, 9))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)


async def submitted(client: httpx.AsyncClient, requests: Any, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/jobs", json={"requests": requests, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """A job as it ended, by its events."""
    events = (await client.get(f"/v1/jobs/{job_id}/events")).text.strip().split("\n\n")
    assert {event.splitlines()[0] for event in events} == {"event: job"}
    return dict(json.loads(events[-1].splitlines()[1].removeprefix("data: ")))


async def test_json_lines_and_a_form_make_the_same_job(client: httpx.AsyncClient) -> None:
    fields = {"name": "foxes", "paused": True, "metadata": {"team": "a"}}
    told = {"name": "foxes", "paused": "true", "metadata": '{"team": "a"}'}
    made = [
        (await client.post("/v1/jobs", json={"requests": REQUESTS, **fields})),
        (await client.post("/v1/jobs", content=LINES, headers=AS_LINES, params=told)),
        (await client.post("/v1/jobs", files={"file": LINES}, data=told)),
    ]
    shown = []
    for answer in made:
        assert answer.status_code == 201, answer.text
        job = (await client.get(answer.headers["Location"])).json()
        assert (job["state"], job["name"], job["metadata"]) == ("paused", "foxes", {"team": "a"})
        items = (await client.get(f"/v1/jobs/{job['id']}/items")).json()["items"]
        shown.append(items)
    assert shown[0] == shown[1] == shown[2]
    assert [item["custom_id"] for item in shown[0]] == ["first", "", ""]
    assert shown[0][0]["request"] == {"text": "a fox", "seed": 7, "n": 2}
    assert shown[0][1]["request"]["strength"] == 0.5


async def test_a_job_goes_from_submission_to_its_pictures(client: httpx.AsyncClient) -> None:
    requests = [{"text": "a fox", "seed": 7, "n": 2}, {"text": "nothing"}, {"text": "a dog"}]
    job = await submitted(client, requests)
    place = f"/v1/jobs/{job['id']}"
    done = await ended(client, job["id"])
    assert (done["state"], done["counts"]["succeeded"]) == ("completed", 2)

    lines = [json.loads(line) for line in (await client.get(f"{place}/results.jsonl")).iter_lines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert lines[1]["error"]["status_code"] == 404
    failed = (await client.get(f"{place}/results.jsonl?state=failed")).text
    assert json.loads(failed)["index"] == 1
    for shown in lines[0]["pictures"]:
        got = await client.get(shown["url"])
        assert (got.content, got.headers["Content-Type"]) == (b"PNG", "image/png")
    archive = zipfile.ZipFile(io.BytesIO((await client.get(f"{place}/results.zip")).content))
    assert archive.testzip() is None
    named = [picture["file"] for line in lines for picture in line["pictures"]]
    assert archive.namelist() == [*named, "results.jsonl"]
    assert [json.loads(line) for line in archive.read("results.jsonl").splitlines()] == lines

    page = (await client.get(f"{place}/items?limit=2")).json()
    rest = (await client.get(f"{place}/items?limit=2&after={page['after']}")).json()
    assert [*page["items"], *rest["items"]] == lines
    assert rest["after"] is None

    assert (await client.post(f"{place}/retry")).json()["counts"]["failed"] == 0
    assert (await ended(client, job["id"]))["counts"]["failed"] == 1
    assert (await client.delete(place)).json() == {"id": job["id"], "deleted": True}
    assert (await client.get(place)).status_code == 404


async def test_a_paused_job_waits_and_a_cancelled_one_has_ended(client: httpx.AsyncClient) -> None:
    place = f"/v1/jobs/{(await submitted(client, [{'text': 'a fox'}], paused=True))['id']}"
    assert (await client.get(place)).json()["state"] == "paused"
    assert (await client.post(f"{place}/resume")).json()["state"] != "paused"
    await ended(client, place.rpartition("/")[2])
    other = f"/v1/jobs/{(await submitted(client, [{'text': 'a fox'}], paused=True))['id']}"
    assert (await client.post(f"{other}/pause")).json()["state"] == "paused"
    assert (await client.post(f"{other}/cancel")).json()["state"] == "cancelled"
    refused = await client.post(f"{other}/retry")
    assert (refused.status_code, refused.json()["reason"]) == (400, "INVALID_REQUEST")
    listed = (await client.get("/v1/jobs?limit=1")).json()
    assert listed["jobs"][0]["id"] == other.rpartition("/")[2]
    more = (await client.get(f"/v1/jobs?after={listed['after']}")).json()
    assert [job["id"] for job in more["jobs"]] == [place.rpartition("/")[2]]


async def test_everybody_sees_their_own_jobs_alone(tmp_path: Path) -> None:
    async with jobs_served(tmp_path) as served, client_of(served.app, "192.0.2.1") as owner:
        job = await submitted(owner, [{"text": "a fox"}])
        place = f"/v1/jobs/{job['id']}"
        await ended(owner, job["id"])
        async with client_of(served.app, "192.0.2.2") as other:
            assert (await other.get("/v1/jobs")).json() == {"jobs": [], "after": None}
            read = (
                "",
                "/items",
                "/items/0/pictures/0",
                "/results.jsonl",
                "/results.zip",
                "/events",
            )
            done = ("/cancel", "/pause", "/resume", "/retry", "/webhook")
            answers = [
                *[await other.get(place + each) for each in read],
                *[await other.post(place + each) for each in done],
                await other.delete(place),
            ]
        for answer in answers:
            assert (answer.status_code, answer.json()["reason"]) == (404, "JOB_NOT_FOUND")
        assert (await owner.get(place)).json()["state"] == "completed"


async def test_the_same_key_gives_the_same_job_and_other_requests_are_refused(
    client: httpx.AsyncClient,
) -> None:
    async def post(key: str, text: str) -> httpx.Response:
        sent = {"requests": [{"text": text}]}
        return await client.post("/v1/jobs", json=sent, headers={"Idempotency-Key": key})

    first, second = await post('"once"', "a fox"), await post("once", "a fox")
    assert first.json()["id"] == second.json()["id"]
    refused = await post("once", "a dog")
    assert refused.status_code == 400
    assert refused.json()["violations"][0]["field"] == "Idempotency-Key"
    assert (await post('"', "a fox")).status_code == 400


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        (b'{"text": "a"}\n\n{"text": 3}', "line.3.text"),
        (b'{"text": "a"}\nnonsense\n', "line.2"),
        (b'{"text": "a"}\n[]', "line.2"),
        (b'{"text": "a", "steps": 0}', "line.1.steps"),
        (b'{"text": "a", "model": "other"}', "line.1.model"),
        (b'{"text": "a", "image": "?"}', "line.1.image"),
        (b'{"text": "a", "image": "QUJD"}', "line.1.image"),
        (b'{"text": "a", "loras": [{"name": "film"}]}', "line.1.loras"),
        (b'{"text": "a", "guidance_scale": NaN}', "line.1"),
        (b'{"text": "a", "wrong": 1}', "line.1.wrong"),
        (b'{"text": ""}', "line.1.text"),
        (b"", "requests"),
        (b'{"text": "a"}\n' * 10_001, "body"),
    ],
)
async def test_a_bad_line_is_named_by_its_number_and_nothing_is_left(
    client: httpx.AsyncClient, lines: bytes, place: str
) -> None:
    answer = await client.post("/v1/jobs", content=lines, headers=AS_LINES)
    assert answer.status_code == 400
    assert answer.json()["violations"][0]["field"] == place
    assert (await client.get("/v1/jobs")).json()["jobs"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"webhook_url": "ftp://example.com/"},
        {"name": "a\nb"},
        {"name": "x" * 201},
        {"metadata": {"a": "x" * 513}},
        {"metadata": {str(number): "" for number in range(17)}},
        {"timeout": 0},
        {"unknown": 1},
        {"requests": "none"},
    ],
)
async def test_a_bad_field_of_the_job_is_named(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    sent = {"requests": [{"text": "a fox"}], **fields}
    answer = await client.post("/v1/jobs", json=sent)
    assert answer.status_code == 400
    assert answer.json()["violations"][0]["field"].partition(".")[0] in fields


async def test_errors_are_those_of_the_native_dialect(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.get("/v1/jobs/none")).json()["reason"] == "JOB_NOT_FOUND"
    for path, status in (("/v1/jobs/a/b/c", 404), ("/v1/jobs/a/cancel", 405)):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["status_code"]) == (status, status)
    text = await client.post("/v1/jobs", content=b"a", headers={"Content-Type": "text/plain"})
    assert text.status_code == 415
    for each in ("0/pictures/1", "1/pictures/0", "x/pictures/0", f"0/pictures/{'9' * 30}"):
        job = await submitted(client, [{"text": "a fox"}])
        answer = await client.get(f"/v1/jobs/{job['id']}/items/{each}")
        assert answer.status_code == 404
    monkeypatch.setenv("T2I_JOBS_BODY_BYTES", "100")
    get_settings.cache_clear()
    large = await client.post("/v1/jobs", content=LINES, headers=AS_LINES)
    monkeypatch.undo()
    get_settings.cache_clear()
    assert (large.status_code, large.json()["reason"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_without_a_secret_no_webhook_is_promised(tmp_path: Path) -> None:
    async with jobs_served(tmp_path) as served, client_of(served.app, "192.0.2.1") as client:
        served.app.state.webhooks = Webhooks(Settings())
        sent = {"requests": [{"text": "a fox"}], "webhook_url": "https://example.com/"}
        answer = await client.post("/v1/jobs", json=sent)
        assert "T2I_WEBHOOK_SECRET" in answer.json()["message"]
        assert (await client.get("/v1/jobs")).json()["jobs"] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = ["text", "seed", "loras", "controls", "image", "custom_id", "steps", "model", "n", "width"]
REQUEST = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4) | st.fixed_dictionaries(
    {"text": st.text(max_size=30)}, optional={"custom_id": st.text(max_size=20)}
)
OWN = ["name", "metadata", "webhook_url", "timeout", "paused", "requests"]
JOB = st.fixed_dictionaries(
    {"requests": st.lists(REQUEST, max_size=3) | JSON},
    optional={name: JSON for name in OWN if name != "requests"},
)


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


LINE = st.binary(max_size=40) | REQUEST.map(_text) | JSON.map(_text)
HOSTILE = st.one_of(
    st.tuples(st.just("application/json"), JOB.map(_text) | st.binary(max_size=60)),
    st.tuples(st.just("application/jsonl"), st.lists(LINE, max_size=4).map(b"\n".join)),
    st.tuples(
        st.just("multipart/form-data; boundary=x"),
        LINE.map(
            lambda line: (
                b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
                + line
                + b"\r\n--x--\r\n"
            )
        )
        | st.binary(max_size=60).map(lambda inner: b"--x\r\n" + inner + b"--x--"),
    ),
)


async def test_no_body_ends_in_an_error_of_ours(client: httpx.AsyncClient) -> None:
    statuses = set()
    for kind, body in examples(HOSTILE, 600, seed=0):
        answer = await client.post("/v1/jobs", content=body, headers={"Content-Type": kind})
        assert answer.status_code in (201, 400), (kind, body, answer.text)
        statuses.add(answer.status_code)
        assert answer.status_code == 201 or answer.json()["violations"]
    assert statuses == {201, 400}


@given(st.lists(st.sampled_from([b"{}", b"\n", b" ", b"x" * 9, b"\r"])), st.data())
def test_lines_are_the_same_however_they_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    body = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=4)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    async def read() -> list[tuple[int, bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return [line async for batch in _lines(chunks()) for line in batch]

    meant = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    assert asyncio.run(read()) == meant


@given(st.text(max_size=300))
def test_any_header_is_a_key_or_refused(text: str) -> None:
    try:
        key = key_in(text)
    except InvalidRequest:
        return
    assert 0 < len(key) <= 255
    assert key.isascii()
    assert key.isprintable()
