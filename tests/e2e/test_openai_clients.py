"""OpenAI's own client for Python draws with this server, and so do programs that send their bodies by themselves.

`tests/clients` runs further ones, each with what it needs installed for itself. `docs/clients.md` lists all of them.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from tests.documents import ROOT
from tests.e2e.harness import Server
from text2image.core.validation import MAX_IMAGES
from text2image.gateway import metadata

ALIAS = "gpt-image-1"
# In the words of this server, which the client passes on.
OWN = {"steps": 2, "negative_prompt": "dark"}


@pytest.fixture
def official(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def opened(file: bytes | str | None) -> Image.Image:
    assert file
    return Image.open(io.BytesIO(base64.b64decode(file) if isinstance(file, str) else file))


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_the_official_client_draws_in_every_form(official: OpenAI, form: Any) -> None:
    answer = official.images.generate(
        model=ALIAS,
        prompt="a red fox",
        n=2,
        size="auto",
        quality="auto",
        background="auto",
        moderation="low",
        output_format=form,
        output_compression=80,
        user="me",
        extra_body={"seed": 5, **OWN},
    )
    assert answer.data
    assert answer.usage
    assert answer.output_format == form
    assert answer._request_id
    for seed, entry in enumerate(answer.data, 5):
        image = opened(entry.b64_json)
        assert (image.format, image.size) == (form.upper(), (128, 128))
        params = metadata.parse(metadata.read(base64.b64decode(entry.b64_json or "")))
        assert (params.seed, params.steps, params.negative_prompt) == (seed, 2, "dark")


def test_the_official_client_gets_urls(official: OpenAI, server: Server) -> None:
    own = {"num_inference_steps": 1, "cfg_scale": 2}
    asked = {"prompt": "a fox", "size": "64x64", "style": "vivid", "extra_body": own}
    named = official.images.generate(response_format="url", output_format="jpeg", **asked)
    by_default = official.images.generate(model="dall-e-2", n=2, **asked)
    for answer, form in ((named, "JPEG"), (by_default, "PNG")):
        for entry in answer.data or ():
            assert entry.b64_json is None
            assert entry.url
            assert entry.url.startswith(server.url)
            image = opened(httpx.get(entry.url).content)
            assert (image.format, image.size) == (form, (64, 64))
    assert len(by_default.data or ()) == 2


def test_the_official_client_streams(official: OpenAI) -> None:
    stream = official.images.generate(
        prompt="a fox", size="96x64", stream=True, partial_images=2, output_format="webp",
        extra_body={"steps": 9, "seed": -1},
    )  # fmt: skip
    *partial, completed = stream
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert completed.type == "image_generation.completed"
    assert completed.usage.output_tokens == 6
    for event in (*partial, completed):
        assert (opened(event.b64_json).size, event.size) == ((96, 64), "96x64")
        assert opened(event.b64_json).format == "WEBP"


def test_the_official_client_edits_as_it_generates(official: OpenAI) -> None:
    """In every form, by URL, and in events of their own name."""
    file = io.BytesIO()
    Image.new("RGB", (64, 96), "red").save(file, "PNG")
    asked = {"image": ("red.png", file.getvalue()), "prompt": "a fox", "extra_body": OWN}
    whole = official.images.edit(output_format="webp", **asked)
    image = opened((whole.data or [])[0].b64_json)
    assert (image.format, image.size, whole.size) == ("WEBP", (64, 96), "64x96")
    assert whole.usage
    assert whole.usage.input_tokens_details.image_tokens == 6
    hosted = official.images.edit(response_format="url", **asked)
    assert opened(httpx.get((hosted.data or [])[0].url or "").content).size == (64, 96)
    (completed,) = official.images.edit(stream=True, **asked)
    assert (completed.type, completed.size) == ("image_edit.completed", "64x96")
    with pytest.raises(openai.BadRequestError) as raised:
        official.images.edit(**{**asked, "extra_body": {"num_inference_steps": 0}})
    assert raised.value.param == "num_inference_steps"


async def test_the_official_client_draws_and_streams_asynchronously(server: Server) -> None:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = await client.images.generate(prompt="a fox", extra_body=OWN)
        assert opened((answer.data or [])[0].b64_json).size == (128, 128)
        stream = await client.images.generate(prompt="a fox", stream=True, extra_body=OWN)
        assert [event.type async for event in stream] == ["image_generation.completed"]


def test_the_official_client_tells_what_is_wrong_by_its_own_names(official: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        official.images.generate(prompt="a fox", size="1792x1024")
    assert (raised.value.param, raised.value.code) == ("size", "invalid_request")
    assert raised.value.request_id == raised.value.response.headers["x-trace-id"]
    with pytest.raises(openai.BadRequestError, match="transparent") as raised:
        official.images.generate(prompt="a fox", background="transparent")
    assert raised.value.param == "background"
    with pytest.raises(openai.BadRequestError, match="between 1 and 10"):
        official.images.generate(prompt="a fox", n=MAX_IMAGES + 1)
    with pytest.raises(openai.NotFoundError):
        official.models.retrieve("dall-e-3")


def test_the_official_client_lists_models_and_knows_aliases(official: OpenAI) -> None:
    (model,) = official.models.list()
    assert model.id == official.models.retrieve(ALIAS).id == "embedded"


def test_as_many_pictures_as_openai_draws(official: OpenAI) -> None:
    answer = official.images.generate(
        prompt="a fox", n=MAX_IMAGES, size="64x64", extra_body={"steps": 1}
    )
    assert len(answer.data or ()) == MAX_IMAGES == 10


def post(server: Server, body: dict[str, Any], query: str = "") -> dict[str, Any]:
    answer = httpx.post(
        f"{server.url}/v1/images/generations{query}",
        json={**body, "steps": 1},
        headers={"Authorization": "Bearer none", "X-OpenWebUI-User-Id": "1"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    (entry,) = answer.json()["data"]
    return dict(entry)


def test_open_webuis_body_is_understood(server: Server) -> None:
    """As its page for images sends it, with the version that Azure wants and without."""
    body = {"model": ALIAS, "prompt": "a fox", "n": 1, "size": "256x256"}
    whole = post(server, {**body, "response_format": "b64_json"}, "?api-version=2025-04-01-preview")
    assert opened(whole["b64_json"]).size == (256, 256)
    # It leaves the form out for models whose answers it takes for URLs.
    assert "b64_json" in post(server, body)
    assert "url" in post(server, {**body, "model": "dall-e-2"})


def test_librechats_bodies_are_understood(server: Server) -> None:
    """Those of its two tools for images; the older one reads the file's name from the URL."""
    older = {"prompt": "a fox", "quality": "hd", "style": "vivid", "size": "256x256", "n": 1}
    url = post(server, {"model": "dall-e-2", **older})["url"]
    assert re.search(r"/([^/]+\.png)$", urlsplit(url).path)
    newer = {
        "model": ALIAS,
        "prompt": "a fox",
        "n": 1,
        "background": "auto",
        "output_format": "webp",
        "output_compression": 100,
        "quality": "auto",
        "size": "auto",
    }
    assert opened(post(server, newer)["b64_json"]).format == "WEBP"


def test_every_client_of_the_document_is_run_by_a_test() -> None:
    document = Path(ROOT, "docs", "clients.md").read_text()
    rows = re.findall(r"^\| .* \| `(tests/\S+\.py)::(\w+)` \|$", document, re.MULTILINE)
    assert rows
    for file, test in rows:
        assert re.search(rf"^(async )?def {test}\(", Path(ROOT, file).read_text(), re.MULTILINE)


# By what the table calls each client: what is installed under this name.
INSTALLED = {
    "OpenAI for Python": "openai",
    "Hugging Face `InferenceClient`": "huggingface_hub",
    "Hugging Face `AsyncInferenceClient`": "huggingface_hub",
    "webuiapi (A1111)": "webuiapi",
    "LiteLLM, library": "litellm",
    "LiteLLM, proxy": "litellm",
    "LangChain (community)": "langchain-community",
    "OpenAI for JavaScript": "openai",
    "AI SDK (`ai`)": "ai",
    "Connect for TypeScript": "@connectrpc/connect",
}


def test_the_versions_of_the_document_are_the_ones_that_are_run() -> None:
    """What this environment has is asked of it; what has one of its own is pinned for that."""
    document = Path(ROOT, "docs", "clients.md").read_text()
    pins = Path(ROOT, "requirements", "clients.txt").read_text()
    pinned = dict(re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)", pins, re.MULTILINE))
    packages = json.loads(Path(ROOT, "tests", "clients", "node", "package.json").read_text())
    rows = re.findall(r"^\| ([^|]*) \| ([\d.]+) \|.*\| `(tests/\S+\.py)::", document, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(INSTALLED)
    for name, version, file in rows:
        package = INSTALLED[name]
        if file in {"tests/clients/test_node.py", "tests/clients/test_grpc.py"}:
            assert packages["dependencies"][package] == version, name
        elif file == "tests/clients/test_python.py":
            assert pinned[package] == version, name
        else:
            assert importlib.metadata.version(package) == version, name
