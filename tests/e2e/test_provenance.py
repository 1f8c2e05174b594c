"""A server that signs, denies and looks: its pictures are its own in every dialect, and what is blocked is an error."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from huggingface_hub import InferenceClient
from openai import BadRequestError, OpenAI
from PIL import Image

from tests.checkers import ALWAYS, save_checker
from tests.classifiers import brightness
from tests.e2e.dialects import DIALECTS
from tests.e2e.harness import Server, serving
from tests.integration.engine.pipelines import save_pipeline
from tests.provenance import SIGNER, Chain, chain, signed_as
from text2image.client import Client, ContentBlocked
from text2image.gateway import metadata
from text2image.gateway.provenance import SourceType
from text2image.net import text2image_pb2 as seed

SMALL = {"width": 64, "height": 64, "steps": 1}
# What each dialect calls what is blocked.
KINDS = {
    "rest": "CONTENT_BLOCKED",
    "openai": "image_generation_user_error",
    "a1111": "ContentBlocked",
    "grpc": None,
    "grpc v1": "INVALID_ARGUMENT",
}
SIZE = {"size": "64x64", "extra_body": {"steps": 1}}


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def signing(
    server: Server, certified: Chain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """It looks at pictures too, with what the extra brings, and finds nothing in these."""
    folder = tmp_path_factory.mktemp("signing")
    denied = folder / "denied.txt"
    denied.write_text("blood\na cat\n")
    settings = {
        **certified.settings(),
        "T2I_PROMPT_DENYLIST": str(denied),
        "T2I_SAFETY": "on",
        "T2I_SAFETY_THRESHOLD": "0.99",
    }
    with serving(Server(folder, engine_of=server, **settings)) as running:
        yield running


@pytest.fixture(scope="module", params=["the classifier", "the model's own checker"])
def blocking(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """It blocks every picture, or every one that is not black."""
    folder = tmp_path_factory.mktemp("blocking")
    if request.param == "the classifier":
        settings = {
            "T2I_SAFETY": "on",
            "T2I_SAFETY_MODEL": str(brightness(folder / "own.xml", [1, 3, 8, 8])),
            "T2I_SAFETY_THRESHOLD": "0.001",
        }
        blocks = Server(folder, engine_of=server, **settings)
    else:
        model = save_checker(save_pipeline("sd1", folder), ALWAYS)
        settings = {"T2I_MODEL": str(model), "T2I_RUNTIME": "torch", "T2I_SAFETY": "model"}
        blocks = Server(folder, **settings)
    with serving(blocks) as running:
        yield running


@pytest.fixture
def official(signing: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{signing.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def by_rest(server: Server, client: OpenAI) -> bytes:
    (image,) = httpx.post(f"{server.url}/generate", json={"text": "a fox", **SMALL}).json()[
        "images"
    ]
    file = base64.b64decode(image["image_base64"])
    assert Path(image["image_path"]).read_bytes() == file
    return file


def by_openai(form: str) -> Callable[[Server, OpenAI], bytes]:
    def draw(server: Server, client: OpenAI) -> bytes:
        answer = client.images.generate(prompt="a fox", output_format=form, **SIZE)  # type: ignore[call-overload]
        return base64.b64decode(answer.data[0].b64_json)

    return draw


def by_url(server: Server, client: OpenAI) -> bytes:
    answer: Any = client.images.generate(prompt="a fox", response_format="url", **SIZE)  # type: ignore[call-overload]
    return httpx.get(answer.data[0].url).content


def by_stream(server: Server, client: OpenAI) -> bytes:
    (event,) = client.images.generate(prompt="a fox", stream=True, partial_images=2, **SIZE)  # type: ignore[call-overload]
    return base64.b64decode(event.b64_json)


def by_the_first_contract(server: Server, client: OpenAI) -> bytes:
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary(
            "/Text2ImageService/GenerateImage",
            seed.ImageRequest.SerializeToString,
            seed.ImageResponse.FromString,
        )
        answer = method(seed.ImageRequest(text="a fox", **SMALL), timeout=60)
    return base64.b64decode(answer.image_base64)


def by_v1(server: Server, client: OpenAI) -> bytes:
    with server.client() as own:
        return own.generate("a fox", **SMALL)[0].png


def by_hugging_face(server: Server, client: OpenAI) -> bytes:
    body = {"inputs": "a fox", "parameters": {"width": 64, "height": 64, "num_inference_steps": 1}}
    return httpx.post(server.url, json=body).content


@pytest.mark.parametrize(
    "draw",
    [
        by_rest,
        by_openai("png"),
        by_openai("jpeg"),
        by_openai("webp"),
        by_url,
        by_stream,
        by_the_first_contract,
        by_v1,
        by_hugging_face,
    ],
)
def test_pictures_are_signed_in_every_dialect(
    signing: Server, official: OpenAI, certified: Chain, draw: Callable[[Server, OpenAI], bytes]
) -> None:
    file = draw(signing, official)
    assert signed_as(file, certified.authority) == ("Trusted", SIGNER, SourceType.MODEL)
    assert metadata.parse(metadata.read(file)).prompt == "a fox"


def test_an_edit_is_signed_as_a_composite(official: OpenAI, certified: Chain) -> None:
    image = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(image, "PNG")
    answer: Any = official.images.edit(
        image=("red.png", image.getvalue()), prompt="a fox", size="64x64", extra_body={"steps": 2}
    )
    file = base64.b64decode(answer.data[0].b64_json)
    assert signed_as(file, certified.authority)[2] == SourceType.COMPOSITE


def test_who_asks_again_gets_the_same_bytes_and_the_same_file(
    signing: Server, certified: Chain
) -> None:
    asked = {"text": "a fox again", "seed": 4, **SMALL}
    first, again = (
        httpx.post(f"{signing.url}/generate", json=asked).json()["images"] for _ in range(2)
    )
    assert first == again
    assert (
        signed_as(base64.b64decode(first[0]["image_base64"]), certified.authority)[0] == "Trusted"
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_denied_prompt_is_an_error_of_its_own_in_every_dialect(
    signing: Server, dialect: str
) -> None:
    before = signing.metric('text2image_blocked_total{what="prompt"}')
    refused = signing.metric('text2image_refusals_total{reason="CONTENT_BLOCKED"}')
    answer = DIALECTS[dialect](signing)
    assert (answer.status, answer.kind) == (400, KINDS[dialect])
    assert "does not draw" in answer.message
    assert "cat" not in answer.message
    assert signing.metric('text2image_blocked_total{what="prompt"}') == before + 1
    assert signing.metric('text2image_refusals_total{reason="CONTENT_BLOCKED"}') == refused + 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_blocked_picture_is_an_error_of_its_own_in_every_dialect(
    blocking: Server, dialect: str
) -> None:
    before = blocking.metric('text2image_blocked_total{what="picture"}')
    answer = DIALECTS[dialect](blocking, steps=1)
    assert (answer.status, answer.kind) == (400, KINDS[dialect])
    assert "blocked by this server's safety filter" in answer.message
    assert blocking.metric('text2image_blocked_total{what="picture"}') == before + 1
    assert not list(blocking.pictures.rglob("*.png"))


@pytest.mark.usefixtures("hub_client")
def test_clients_know_a_blocked_picture_by_name(blocking: Server) -> None:
    with (
        OpenAI(base_url=f"{blocking.url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(BadRequestError) as raised,
    ):
        client.images.generate(prompt="a fox", **SIZE)  # type: ignore[call-overload]
    assert raised.value.code == "moderation_blocked"
    with Client(blocking.address) as own, pytest.raises(ContentBlocked, match="safety filter"):
        own.generate("a fox", **SMALL)
    with pytest.raises(Exception, match="safety filter"):
        InferenceClient(model=blocking.url).text_to_image("a fox", num_inference_steps=1)


@pytest.mark.usefixtures("hub_client")
def test_clients_know_it_by_name(signing: Server, official: OpenAI) -> None:
    with pytest.raises(BadRequestError) as raised:
        official.images.generate(prompt="blood")
    assert raised.value.code == "moderation_blocked"
    with Client(signing.address) as own, pytest.raises(ContentBlocked):
        own.generate("blood")
    with pytest.raises(Exception, match="does not draw"):
        InferenceClient(model=signing.url).text_to_image("blood")


def test_pictures_are_looked_at(signing: Server) -> None:
    name = 'text2image_stage_seconds_count{stage="looking"}'
    before = signing.metric(name)
    with signing.client() as own:
        assert own.generate("a dog", **SMALL)
    assert signing.metric(name) == before + 1


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("T2I_C2PA_CERT", "signing needs both T2I_C2PA_CERT and T2I_C2PA_KEY"),
        ("T2I_PROMPT_DENYLIST", "No such file"),
    ],
)
def test_what_it_cannot_work_with_ends_a_start_in_one_line(
    tmp_path: Path, setting: str, told: str
) -> None:
    server = Server(tmp_path, **{setting: str(tmp_path / "none"), "T2I_RUNNERS": "127.0.0.1:9"})
    server.start()
    assert server.wait() != 0
    (line,) = (line for line in server.log.splitlines() if line.startswith("text2image: "))
    assert told in line
    assert "Traceback" not in server.log
