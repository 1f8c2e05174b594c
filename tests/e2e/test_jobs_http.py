"""Jobs over HTTP from end to end: drawn as requests are, watched, and their ends told to whoever has asked."""

from __future__ import annotations

import base64
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from standardwebhooks.webhooks import Webhook

from tests.e2e.conftest import WEBHOOK_SECRET
from tests.e2e.harness import Server, eventually, free_port
from tests.init_images import file_of, picture

SMALL = {"width": 64, "height": 64, "steps": 2}
# Of 255, in which pictures of other batches may differ.
TOLERANCE = 2


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def submitted(http: httpx.Client, *requests: dict[str, Any], **fields: Any) -> str:
    answer = http.post("/v1/jobs", json={"requests": list(requests), **fields})
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


def told(http: httpx.Client, place: str) -> Iterator[dict[str, Any]]:
    """A job after each change until it has ended."""
    with http.stream("GET", f"{place}/events") as events:
        assert events.headers["Content-Type"].startswith("text/event-stream")
        for line in events.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def pixels(file: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(file))).astype(int)


def test_a_jobs_pictures_are_those_that_requests_get(http: httpx.Client) -> None:
    begun = base64.b64encode(file_of(picture((64, 64)))).decode()
    requests = [
        {"text": "a red fox", "seed": 7, **SMALL, "n": 2},
        {"text": "a red fox", "seed": 7, "image": begun, "strength": 0.5, "steps": 2},
        {"text": "a lighthouse", "seed": 8, **SMALL, "model": "dall-e-2"},
    ]
    place = submitted(http, *requests, name="foxes")
    *_, job = told(http, place)
    assert (job["state"], job["counts"]["succeeded"]) == ("completed", 3)
    archive = zipfile.ZipFile(io.BytesIO(http.get(f"{place}/results.zip").content))
    items = [json.loads(line) for line in http.get(f"{place}/results.jsonl").iter_lines()]
    for asked, item in zip(requests, items, strict=True):
        alone = http.post("/generate", json=asked).json()
        for drawn, shown in zip(alone["images"], item["pictures"], strict=True):
            assert drawn["seed"] == shown["seed"]
            file = http.get(shown["url"]).content
            assert file == archive.read(shown["file"])
            apart = pixels(file) - pixels(base64.b64decode(drawn["image_base64"]))
            assert np.abs(apart).max() <= TOLERANCE


def test_a_job_of_json_lines_is_watched_and_cancelled(http: httpx.Client) -> None:
    line = json.dumps({"text": "a red fox", "steps": 150}).encode() + b"\n"
    answer = http.post(
        "/v1/jobs?name=many",
        content=(line for _ in range(500)),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 201, answer.text
    place = answer.headers["Location"]
    watched = told(http, place)
    assert any(job["counts"]["running"] for job in watched)
    cancelled = http.post(f"{place}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert cancelled["counts"]["queued"] == cancelled["counts"]["running"] == 0
    assert [*watched][-1]["state"] == "cancelled"
    assert http.delete(place).json()["deleted"]


def test_pages_of_other_sites_submit_no_jobs(http: httpx.Client) -> None:
    headers = {"Origin": "https://elsewhere.example"}
    sent = {"requests": [{"text": "a red fox"}]}
    answer = http.post("/v1/jobs", json=sent, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (403, "PERMISSION_DENIED")


@contextmanager
def receiving(port: int, status: int, heard: list[dict[str, Any]]) -> Iterator[None]:
    """A receiver of webhooks on a port, which keeps what it hears if the signature is right."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.append(Webhook(WEBHOOK_SECRET).verify(body, dict(self.headers)))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Receiver) as receiver:
        serving = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield
        receiver.shutdown()
        serving.join()


def hook(http: httpx.Client, place: str) -> dict[str, Any]:
    return dict(http.get(place).json()["webhook"])


def test_a_receiver_that_was_down_is_told_when_it_is_back(http: httpx.Client) -> None:
    port, heard = free_port(), list[dict[str, Any]]()
    url = f"http://127.0.0.1:{port}/hook"
    place = submitted(http, {"text": "a red fox", **SMALL}, webhook_url=url)
    eventually(lambda: hook(http, place)["attempts"], "a first attempt")
    waiting = hook(http, place)
    assert (waiting["state"], bool(waiting["error"])) == ("pending", True)
    with receiving(port, 204, heard):
        eventually(lambda: hook(http, place)["state"] == "delivered", "the receiver was told")
    assert [each["type"] for each in heard] == ["job.completed"]
    assert heard[0]["data"]["counts"]["succeeded"] == 1


def test_a_webhook_that_is_given_up_says_so_and_can_be_sent_again(http: httpx.Client) -> None:
    port, heard = free_port(), list[dict[str, Any]]()
    url = f"http://127.0.0.1:{port}/hook"
    with receiving(port, 410, heard):
        place = submitted(http, {"text": "a red fox", **SMALL}, webhook_url=url)
        eventually(lambda: hook(http, place)["state"] == "dead", "it was given up")
    assert "410" in hook(http, place)["error"]
    with receiving(port, 200, heard):
        assert http.post(f"{place}/webhook").status_code == 200
        eventually(lambda: hook(http, place)["state"] == "delivered", "it was sent again")
    assert [each["data"]["id"] for each in heard] == [place.rpartition("/")[2]] * 2
