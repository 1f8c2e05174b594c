"""OpenAI's own client uploads requests, has them drawn as a batch, and reads what came of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch
from PIL import Image

from tests.e2e.harness import Server, eventually
from tests.init_images import file_of, picture
from text2image.gateway import metadata

ENDPOINT = "/v1/images/generations"


@pytest.fixture
def official(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    asked = {"prompt": "a red fox", "size": "64x64", "steps": 2, **body}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": asked}


def begun(official: OpenAI, *lines: Any, endpoint: Any = ENDPOINT) -> Batch:
    content = "\n".join(json.dumps(each) for each in lines).encode()
    file = official.files.create(file=("prompts.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (len(content), "prompts.jsonl", "batch")
    assert official.files.content(file.id).content == content
    return official.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",
        metadata={"made_by": "a test"},
    )


def ended(official: OpenAI, batch: Batch) -> Batch:
    def has_ended() -> Batch | None:
        now = official.batches.retrieve(batch.id)
        return now if now.status in ("completed", "failed", "expired", "cancelled") else None

    return eventually(has_ended, "the batch has ended")


def lines_of(official: OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id
    text = official.files.content(file_id).text
    assert official.files.retrieve(file_id).bytes == len(text.encode())
    lines = [json.loads(each) for each in text.splitlines()]
    return {each["custom_id"]: each for each in lines}


def test_openais_client_uploads_creates_polls_and_downloads(official: OpenAI) -> None:
    batch = begun(
        official,
        line("one", n=2, seed=5, output_format="jpeg"),
        line("two", seed=9),
        line("three", size="1792x1024"),
    )
    assert (batch.endpoint, batch.metadata) == (ENDPOINT, {"made_by": "a test"})
    done = ended(official, batch)
    assert done.status == "completed"
    assert done.request_counts
    assert done.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    drawn = lines_of(official, done.output_file_id)
    assert list(drawn) == ["one", "two"]
    for custom_id, form, seeds in (("one", "JPEG", [5, 6]), ("two", "PNG", [9])):
        response = drawn[custom_id]["response"]
        assert response["status_code"] == 200
        data = response["body"]["data"]
        assert [each["seed"] for each in data] == seeds
        for each in data:
            file = base64.b64decode(each["b64_json"])
            image = Image.open(io.BytesIO(file))
            assert (image.format, image.size) == (form, (64, 64))
            assert metadata.parse(metadata.read(file)).seed == each["seed"]
    failed = lines_of(official, done.error_file_id)
    assert list(failed) == ["three"]
    assert failed["three"]["response"]["status_code"] == 400
    assert failed["three"]["response"]["body"]["error"]["param"] == "size"
    assert batch.id in [each.id for each in official.batches.list(limit=1)]


def test_openais_client_edits_pictures_by_batch(official: OpenAI) -> None:
    url = "/v1/images/edits"
    picture_url = f"data:image/png;base64,{base64.b64encode(file_of(picture((64, 64)))).decode()}"
    asked = {**line("one", images=[{"image_url": picture_url}], strength=0.5), "url": url}
    done = ended(official, begun(official, asked, endpoint=url))
    assert done.status == "completed"
    (answer,) = lines_of(official, done.output_file_id).values()
    (each,) = answer["response"]["body"]["data"]
    assert Image.open(io.BytesIO(base64.b64decode(each["b64_json"]))).size == (64, 64)


def test_a_file_that_cannot_be_read_fails_with_the_numbers_of_its_lines(official: OpenAI) -> None:
    batch = begun(official, line("one"), line("one"), {"custom_id": "two"})
    done = ended(official, batch)
    assert done.status == "failed"
    assert done.errors
    assert [each.line for each in done.errors.data or ()] == [2, 3]


def test_openais_client_cancels_a_batch_and_deletes_its_files(official: OpenAI) -> None:
    batch = begun(official, *(line(f"{number}", steps=150) for number in range(20)))
    official.batches.cancel(batch.id)
    done = ended(official, batch)
    assert done.status == "cancelled"
    assert "batch_cancelled" in {
        each["error"]["code"] for each in lines_of(official, done.error_file_id).values()
    }
    assert official.files.delete(batch.input_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        official.files.retrieve(batch.input_file_id)
