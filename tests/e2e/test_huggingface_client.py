"""Hugging Face's own client draws with this server, by the URL of a model or of the server alone."""

from __future__ import annotations

import io

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image, ImageChops

from tests.e2e.harness import Server
from text2image.gateway import metadata

pytestmark = pytest.mark.usefixtures("hub_client")

ASKED = {"width": 64, "height": 96, "num_inference_steps": 2, "seed": 5}


@pytest.fixture
def inference(server: Server) -> InferenceClient:
    return InferenceClient(base_url=f"{server.url}/hf-inference/models/embedded")


def test_the_official_client_draws(server: Server, inference: InferenceClient) -> None:
    image = inference.text_to_image(
        "a fox",
        negative_prompt="dark",
        guidance_scale=3.0,
        scheduler="EulerDiscreteScheduler",
        extra_body={"quality": "exact"},
        **ASKED,
    )
    assert (image.format, image.size) == ("PNG", (64, 96))
    params = metadata.parse(image.info[metadata.CHUNK])
    told = (params.prompt, params.negative_prompt, params.seed, params.steps, params.sampler)
    assert told == ("a fox", "dark", 5, 2, "euler")
    # A server alone draws as an endpoint with one model.
    same = InferenceClient(model=server.url).text_to_image(
        "a fox",
        negative_prompt="dark",
        guidance_scale=3.0,
        scheduler="EulerDiscreteScheduler",
        **ASKED,
    )
    assert ImageChops.difference(image, same).getbbox() is None


async def test_the_official_client_draws_asynchronously(server: Server) -> None:
    client = AsyncInferenceClient(model=f"{server.url}/hf-inference/models/gpt-image-1")
    assert (await client.text_to_image("a fox", **ASKED)).size == (64, 96)


def test_the_official_client_tells_what_is_wrong(
    server: Server, inference: InferenceClient
) -> None:
    for asked, status, told in (
        ({"num_inference_steps": 0}, 400, "parameters.num_inference_steps: "),
        ({"extra_body": {"lora": 1}}, 400, "parameters.lora: is not a field of this request"),
        ({"scheduler": "none"}, 400, "parameters.scheduler: "),
    ):
        with pytest.raises(HfHubHTTPError) as raised:
            inference.text_to_image("a fox", **asked)  # type: ignore[arg-type]
        assert raised.value.response.status_code == status
        assert told in (raised.value.server_message or "")
    with pytest.raises(HfHubHTTPError, match="is not served here"):
        InferenceClient(model=f"{server.url}/hf-inference/models/a/b").text_to_image("a fox")
    with pytest.raises(HfHubHTTPError, match="inputs: "):
        inference.text_to_image("")


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("image/jpeg", "JPEG"),
        ("text/html, image/webp;q=0.9, image/png", "WEBP"),
        ("application/json", "PNG"),
    ],
)
def test_the_file_is_of_the_form_that_is_accepted(server: Server, accept: str, form: str) -> None:
    body = {"inputs": "a fox", "parameters": ASKED, "options": {"wait_for_model": True}}
    answer = httpx.post(server.url, json=body, headers={"Accept": accept})
    assert Image.open(io.BytesIO(answer.content)).format == form
    assert answer.headers["Content-Type"] == f"image/{form.lower()}"
    assert answer.headers["X-Seed"] == "5"


def test_what_is_no_request_of_this_dialect_is_told_in_its_words(server: Server) -> None:
    there = f"{server.url}/hf-inference/models/embedded"
    for url, method, body, status in (
        (there, "GET", None, 405),
        (f"{server.url}/hf-inference/tasks", "POST", {}, 404),
        (there, "POST", {}, 400),
        (there, "POST", {"inputs": ["a fox"]}, 400),
        (there, "POST", {"inputs": "a fox", "parameters": 5}, 400),
    ):
        answer = httpx.request(method, url, json=body)
        assert answer.status_code == status
        told = answer.json()
        assert set(told) == {"error", "error_type"}
        assert isinstance(told["error"], str)
