"""What a client gets: pictures that can be drawn again, in files that are named for them, on every transport."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from PIL import Image, ImageChops

from tests.e2e.harness import Server
from tests.e2e.test_bad_input import call_seed
from text2image.client import AsyncClient, Client
from text2image.core.messages import Completed, Picture, Progress, Queued
from text2image.gateway import metadata
from text2image.net import text2image_pb2 as pb

BEGINNING = (
    "image",
    "strength",
    "mask",
    "hires_scale",
    "hires_strength",
    "hires_steps",
    "hires_upscaler",
)
FIELDS = {
    "negative_prompt": "dark, blurry",
    "width": 96,
    "height": 64,
    "steps": 4,
    "guidance_scale": 3.5,
    "seed": 2**63 - 1,
    "n": 2,
    "sampler": "dpm++ 2m sde",
    "schedule": "exponential",
    "quality": "fast",
}


def image_of(png: bytes | str) -> Image.Image:
    raw = base64.b64decode(png) if isinstance(png, str) else png
    return Image.open(io.BytesIO(raw))


def assert_same(one: Image.Image, other: Image.Image) -> None:
    difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    assert max(high for _, high in difference.getextrema()) <= 2


def test_a_picture_is_drawn_again_from_its_parameters(server: Server, client: Client) -> None:
    answer = httpx.post(f"{server.url}/generate", json={"text": "a red fox", **FIELDS}).json()
    assert [picture["seed"] for picture in answer["images"]] == [2**63 - 1, 0]
    second = image_of(answer["images"][1]["image_base64"])
    params = metadata.parse(second.text[metadata.CHUNK])
    again = client.generate(
        params.prompt,
        negative_prompt=params.negative_prompt,
        width=params.width,
        height=params.height,
        steps=params.steps,
        guidance_scale=params.guidance_scale,
        seed=params.seed,
        sampler=params.sampler,
        schedule=params.schedule,
        quality=params.quality,
    )
    assert_same(second, image_of(again[0].png))


def test_every_transport_draws_the_same_picture(server: Server, client: Client) -> None:
    fields = {"steps": 4, "seed": 11}
    picture = client.generate("a red fox", **fields)[0]
    rest = httpx.post(f"{server.url}/generate", json={"text": "a red fox", **fields}).json()
    url = f"{server.url}/v1/images/generations"
    openai = httpx.post(url, json={"prompt": "a red fox", **fields}).json()
    seed = call_seed(server, pb.ImageRequest(text="a red fox", **fields).SerializeToString())
    assert rest["seed"] == seed.seed == picture.seed == 11
    for png in (rest["image_base64"], openai["data"][0]["b64_json"], seed.image_base64):
        assert_same(image_of(png), image_of(picture.png))


def test_files_are_named_for_what_is_in_them_and_whole(server: Server) -> None:
    body = {"context": "../../etc", "text": "A red fox, über cool!", "steps": 2, "n": 3}
    answer = httpx.post(f"{server.url}/generate", json=body).json()
    assert answer["message"] == "3 images generated successfully"
    paths = [Path(picture["image_path"]) for picture in answer["images"]]
    assert len(set(paths)) == 3
    for path, picture in zip(paths, answer["images"], strict=True):
        assert path.parent == server.pictures
        assert re.fullmatch(r"etc_red_fox_über_cool_\d{8}_\d{6}\w*\.png", path.name)
        assert path.read_bytes() == base64.b64decode(picture["image_base64"])
    assert not list(server.pictures.glob(".*"))


def test_the_first_contract_lists_pictures_only_where_n_is_named(server: Server) -> None:
    one = call_seed(server, pb.ImageRequest(text="a fox", steps=2).SerializeToString())
    two = call_seed(server, pb.ImageRequest(text="a fox", steps=2, n=2).SerializeToString())
    assert one.image_base64
    assert not one.images
    assert [picture.seed for picture in two.images] == [two.seed, two.seed + 1]
    assert two.images[0].image_base64 == two.image_base64


def test_a_prompt_beyond_the_encoder_is_drawn_and_the_rest_named(
    server: Server, client: Client
) -> None:
    text = "fox " * client.model().max_prompt_tokens + "zebra"
    answer = httpx.post(f"{server.url}/generate", json={"text": text, "steps": 2}).json()
    assert answer["status_code"] == 200
    assert "left out" in answer["message"]
    assert answer["message"].endswith("fox zebra")
    events = list(client.stream(text, steps=2))
    assert isinstance(events[-1], Completed)
    assert events[-1].truncated.endswith("fox zebra")


def test_v1_streams_queued_progress_pictures_completed(client: Client) -> None:
    events = list(client.stream("a fox", steps=6, n=2, progress_every=2, preview_every=4))
    assert isinstance(events[0], Queued)
    assert isinstance(events[-1], Completed)
    progress = [event for event in events if isinstance(event, Progress)]
    for index in (0, 1):
        steps = [event.step for event in progress if event.index == index]
        assert steps == sorted(steps)
        assert set(steps) >= {2, 4, 6}
    preview = next(event.preview for event in progress if event.preview)
    assert len(preview.rgb) == preview.width * preview.height * 3
    pictures = [event for event in events if isinstance(event, Picture)]
    assert sorted(picture.index for picture in pictures) == [0, 1]


async def test_the_asynchronous_client_draws_too(server: Server) -> None:
    async with AsyncClient(server.address) as client:
        pictures = await client.generate("a fox", steps=2, n=2)
    assert [image_of(picture.png).size for picture in pictures] == [(128, 128)] * 2


def test_openai_answers_in_its_own_shape(server: Server, client: Client) -> None:
    models = httpx.get(f"{server.url}/v1/models").json()
    model = models["data"][0]["id"]
    assert model == client.model().id
    body = {"model": model, "prompt": "a fox", "size": "64x96", "n": 2, "steps": 2, "user": "me"}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body).json()
    assert [image_of(entry["b64_json"]).size for entry in answer["data"]] == [(64, 96)] * 2
    assert answer["size"] == "64x96"


def test_openai_streams_partial_images_and_the_last_one(server: Server) -> None:
    body = {"prompt": "a fox", "steps": 9, "stream": True, "partial_images": 2}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = [line for line in answer.text.splitlines() if line.startswith("event: ")]
    partial, completed = (
        "event: image_generation.partial_image",
        "event: image_generation.completed",
    )
    assert kinds == [partial, partial, completed]


def test_health_and_reflection_are_on(server: Server) -> None:
    names = ("text2image.v1.ImageGeneration", "Text2ImageService")
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", *names):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = ProtoReflectionDescriptorDatabase(channel)
        assert set(reflection.get_services()) >= {*names, "grpc.health.v1.Health"}
        pool = DescriptorPool(reflection)
        assert pool.FindServiceByName(names[0]).methods_by_name["Generate"].server_streaming


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/", "/docs.json"])
def test_operators_find_their_pages(server: Server, path: str) -> None:
    assert httpx.get(f"{server.url}{path}").status_code == 200


def test_the_schema_shows_the_request(server: Server) -> None:
    schema = httpx.get(f"{server.url}/docs.json").json()
    body = schema["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]
    properties = body["schema"]["properties"]
    others = {
        "text",
        "context",
        "model",
        "images_only",
        "clip_skip",
        "loras",
        "controls",
        "background",
    }
    assert {*FIELDS, *BEGINNING, *others} == set(properties)
    assert properties["steps"]["maximum"] == 150


def test_pictures_come_once_to_whoever_asks_for_the_images_only(server: Server) -> None:
    asked = {"text": "a fox", "n": 2, "steps": 1, "seed": 1}
    whole = httpx.post(f"{server.url}/generate", json=asked).json()
    bare = httpx.post(f"{server.url}/generate", json={**asked, "images_only": True}).json()
    assert set(whole) - set(bare) == {"image_base64"}
    assert whole["image_base64"] == whole["images"][0]["image_base64"]
    first = image_of(bare["images"][0]["image_base64"])
    assert_same(first, image_of(whole["image_base64"]))


def test_metrics_count_requests_by_outcome(server: Server) -> None:
    name = 'text2image_requests_total{code="INVALID_ARGUMENT",transport="rest"}'
    before = server.metric(name)
    assert httpx.post(f"{server.url}/generate", json={}).status_code == 400
    assert server.metric(name) == before + 1


def test_no_client_can_make_up_labels(server: Server) -> None:
    """Else every path that anybody tries would be kept for ever."""
    assert httpx.get(f"{server.url}/v1/made-up").status_code == 404
    assert httpx.get(f"{server.url}/made-up").status_code == 404
    metrics = httpx.get(f"{server.url}/metrics").text
    assert "made-up" not in metrics
    assert "text2image_engine_completed_total" in metrics
