"""What OpenAI's dialect answers has the shape that its official client knows, whatever it is asked for."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from openai.types import ImagesResponse
from openai.types.image_gen_completed_event import ImageGenCompletedEvent
from openai.types.image_gen_partial_image_event import ImageGenPartialImageEvent
from PIL import Image
from starlette.requests import Request

from tests.e2e.hostile.bodies import examples
from tests.samples import REQUEST
from tests.unit.api.test_openai import Served
from tests.unit.gateway.scripted import image
from tests.unit.gateway.test_urls import urls
from text2image.api import openai_answers
from text2image.api.openai_requests import ImagesRequest
from text2image.core.init_image import InitImage
from text2image.core.messages import Completed, Pixels, Progress, Queued
from text2image.core.settings import get_settings

PATH = "/v1/images/generations"
PREVIEW = Progress(0, 1, 1, Pixels(2, 2, bytes(range(12))))
EXAMPLES = 150


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    script = (Queued(1.0), PREVIEW, image(0), Completed(""))
    async with Served(tmp_path, *script) as served:
        served.app.state.gateway.urls = urls(tmp_path / "urls")
        yield served


async def ask(served: Served, **body: Any) -> tuple[int, Any]:
    call = await served.call().make("POST", PATH, json.dumps({"prompt": "a fox", **body}).encode())
    return call.status, json.loads(call.text)


async def streamed(served: Served, **body: Any) -> list[dict[str, Any]]:
    body = {"prompt": "a fox", "stream": True, **body}
    call = await served.call().make("POST", PATH, json.dumps(body).encode())
    assert call.status == 200, call.text
    lines = [line for line in call.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def opened(file: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(file)))


async def test_an_answer_is_the_official_one(served: Served) -> None:
    status, body = await ask(served, quality="hd", user="me", style="vivid", seed=-1)
    assert status == 200
    answer = ImagesResponse.model_validate(body)
    assert (answer.output_format, answer.background, answer.quality) == ("png", "opaque", "high")
    assert answer.size == "128x128"
    assert answer.usage
    assert answer.usage.output_tokens == 16
    assert answer.usage.total_tokens == answer.usage.input_tokens + 16
    assert answer.data
    assert set(body["data"][0]) == {"b64_json", "seed"}
    assert served.runner.requests[0].seed >= 0


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
async def test_events_are_the_official_ones_and_previews_are_as_large_as_pictures(
    served: Served, form: str
) -> None:
    partial, completed = await streamed(served, partial_images=3, output_format=form)
    ImageGenPartialImageEvent.model_validate(partial)
    event = ImageGenCompletedEvent.model_validate(completed)
    assert event.usage.total_tokens == 18
    assert partial["size"] == event.size == "128x128"
    preview = opened(partial["b64_json"])
    assert (preview.size, preview.format) == ((128, 128), form.upper())
    assert opened(completed["b64_json"]).format == form.upper()


async def test_the_seed_of_a_random_picture_is_told(served: Served) -> None:
    (completed,) = await streamed(served, seed=-1)
    assert completed["seed"] == 7


async def test_a_url_opens_the_picture_without_a_key_and_only_as_it_was_given(
    served: Served,
) -> None:
    _, body = await ask(served, response_format="url", output_format="webp")
    ImagesResponse.model_validate(body)
    (entry,) = body["data"]
    assert set(entry) == {"url", "seed"}
    assert entry["url"].startswith("http://localhost/v1/images/files/")
    path, _, query = entry["url"].removeprefix("http://localhost").partition("?")
    assert path.endswith(".webp")
    read = await get(served, path, query)
    assert (read.status, read.headers["content-type"]) == (200, "image/webp")
    assert read.headers["cache-control"] == "private, max-age=60"
    assert Image.open(io.BytesIO(read.content)).format == "WEBP"
    assert (await get(served, path, query.replace("expires=1", "expires=2"))).status == 403
    assert (await get(served, path.replace("files/", "files/../"), query)).status == 404
    assert (await get(served, path[:-5], query)).status == 404


class Read:
    """An answer of any bytes."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.content = b""

    async def take(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        for name, value in message.get("headers", ()):
            self.headers[name.decode()] = value.decode()
        self.content += message.get("body", b"")


async def get(served: Served, path: str, query: str) -> Read:
    read = Read()
    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    await served.app({**scope, "query_string": query.encode()}, None, read.take)
    return read


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"model": "dall-e-3"}, True),
        ({"model": "dall-e-2", "response_format": "b64_json"}, False),
        ({"model": "dall-e-3", "stream": True}, False),
        ({"model": "gpt-image-1"}, False),
        ({"response_format": ""}, False),
        ({"response_format": "url"}, True),
    ],
)
def test_what_is_answered_unasked_is_what_openai_answers(
    asked: dict[str, Any], expected: bool
) -> None:
    assert ImagesRequest(prompt="a fox", **asked).wants_urls is expected


async def test_a_picture_that_could_be_kept_nowhere_comes_whole(served: Served) -> None:
    served.app.state.gateway.urls = urls(Path("/dev/null/urls"))
    _, body = await ask(served, response_format="url")
    assert set(body["data"][0]) == {"b64_json", "seed"}
    assert "kept nowhere" in body["message"]


async def test_a_server_that_gives_no_urls_out_says_so(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_URL_TTL", "0")
    get_settings.cache_clear()
    served.app.state.gateway.urls = None
    status, body = await ask(served, response_format="url")
    assert (status, body["error"]["param"]) == (400, "response_format")
    get_settings.cache_clear()


def test_urls_lead_to_where_the_client_reached_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def request(**headers: str) -> Request:
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        return Request({"type": "http", "scheme": "https", "server": ("::1", 1), "headers": sent})

    assert openai_answers.reached_at(request(host="pictures:8443")) == "https://pictures:8443"
    assert openai_answers.reached_at(request(host="[::1")) == "https://[::1"
    assert openai_answers.reached_at(request()) == "https://[::1]:1"
    monkeypatch.setenv("T2I_PUBLIC_URL", "https://draw.example/t2i/")
    get_settings.cache_clear()
    assert openai_answers.reached_at(request(host="a:1")) == "https://draw.example/t2i"
    get_settings.cache_clear()


def test_tokens_are_counted_by_the_rule_that_is_documented() -> None:
    usage = openai_answers.usage_of(REQUEST)
    assert usage["input_tokens"] == 3, "'a red fox', 9 letters"
    assert usage["output_tokens"] == 4 * 3, "128 x 96 pixels"
    image = InitImage.of(40, 8, bytes(40 * 8 * 3))
    usage = openai_answers.usage_of(replace(REQUEST, image=image, strength=0.5, n=2))
    assert usage["input_tokens_details"] == {"text_tokens": 3, "image_tokens": 2}
    assert usage["total_tokens"] == 3 + 2 + 2 * 12


async def test_fields_are_named_as_they_were_sent(served: Served) -> None:
    for field, value in {"num_inference_steps": 0, "cfg_scale": 99, "steps": 0, "seed": -2}.items():
        status, body = await ask(served, **{field: value})
        assert (status, body["error"]["param"]) == (400, field)
    status, body = await ask(served, steps=3, num_inference_steps=4)
    assert (status, body["error"]["param"]) == (400, "num_inference_steps")
    assert (await ask(served, steps=4, num_inference_steps=4))[0] == 200


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=3,
)
likely = st.sampled_from(["", "auto", "url", "b64_json", "jpeg", "webp", "png", "transparent"])
sizes = st.from_regex(r"\A[0-9]{1,4}x[0-9]{1,4}\Z")
values = anything | likely | sizes | st.sampled_from([0, 1, -1, 10, 11, 101, 1.5, 64, "exact"])
fields = dict.fromkeys([name for name in ImagesRequest.model_fields if name != "prompt"], values)
bodies = st.fixed_dictionaries({"prompt": st.just("a fox") | values}, optional=fields) | st.builds(
    lambda body, name, value: {**body, name: value},
    st.fixed_dictionaries({"prompt": st.just("a fox")}, optional=fields),
    st.sampled_from(["width", "height", "Prompt", "image", "\n", "steps.x"]),
    anything,
)


@pytest.fixture(scope="module")
def asked_for() -> list[dict[str, Any]]:
    """Made before there is a runner, which would be waited for in vain meanwhile."""
    return examples(bodies, EXAMPLES, 0)


async def test_no_body_makes_it_fail_or_speak_of_fields_that_nobody_sent(
    asked_for: list[dict[str, Any]], served: Served
) -> None:
    statuses = set()
    for body in asked_for:
        call = await served.call().make("POST", PATH, json.dumps(body).encode())
        statuses.add(call.status)
        assert call.status in {200, 400}, (body, call.text)
        if call.status == 400:
            error = json.loads(call.text)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
            named = error["param"].partition(".")[0]
            assert named in {*body, "prompt", "size", "body", "request"}, (body, error)
    assert statuses == {200, 400}
