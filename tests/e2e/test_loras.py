"""Adapters over HTTP and gRPC on the embedded model, executed as it is by default, with the example adapter."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests import loras
from tests.doubles import make_request
from tests.e2e.harness import Server, eventually, serving
from tests.e2e.test_pictures import image_of
from tests.integration.engine.pipelines import draw_with_pipeline
from text2image.client import Client, InvalidRequest, LoraWeight
from text2image.core.messages import Loading, Sampler
from text2image.core.settings import MODELS
from text2image.engine.models.loading import EMBEDDED_PATH
from text2image.engine.samplers.registry import scheduler_for
from text2image.gateway import metadata

pytest.importorskip("peft", reason="diffusers adds adapters by PEFT")
EXAMPLE = MODELS / "loras" / "blueprint.safetensors"
TOLERANCE = 2
ASK = {"steps": 5, "sampler": "ddim", "seed": 3}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    made = StableDiffusionPipeline.from_pretrained(
        EMBEDDED_PATH, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    made.scheduler = scheduler_for(Sampler.DDIM, made.scheduler.config, None)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pipeline: Any) -> Path:
    """The example, one that changes the text encoder alone, and one that is none."""
    made: Path = tmp_path_factory.mktemp("loras")
    shutil.copy(EXAMPLE, made)
    words = loras.invent(pipeline, rank=2, seed=1, parts=("text_encoder",))
    loras.save(made, "words", words)
    (made / "broken.safetensors").write_bytes(b"not weights at all")
    return made


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(Server(tmp_path_factory.mktemp("server"), T2I_LORAS=str(folder))) as running:
        yield running
        metrics = httpx.get(f"{running.url}/metrics").text
        assert 'code="INTERNAL"' not in metrics, running.log


@pytest.fixture(scope="module")
def expected(folder: Path, pipeline: Any) -> Callable[..., np.ndarray]:
    """What diffusers draws, alone, with adapters at these weights."""
    for name in ("blueprint", "words"):
        pipeline.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)

    def draw(prompt: str, **weights: float) -> np.ndarray:
        asked = make_request(prompt, steps=5, seed=3, guidance_scale=3.0, sampler=Sampler.DDIM)
        pipeline.set_adapters([*weights] or ["words"], [*weights.values()] or [0.0])
        return draw_with_pipeline(pipeline, asked)

    return draw


def posted(server: Server, text: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/generate", json={"text": text, **ASK, **fields}, timeout=120)


def png_of(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["image_base64"])


def array(png: bytes) -> np.ndarray:
    return np.asarray(image_of(png).convert("RGB")).astype(np.int16)


def off(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def test_a_crowd_with_and_without_adapters_is_what_diffusers_draws(
    server: Server, expected: Callable[..., np.ndarray]
) -> None:
    crowd: list[tuple[str, dict[str, float]]] = [
        ("a cat", {}),
        ("a cat", {"blueprint": 1.0}),
        ("a dog", {"words": 0.6}),
        ("a house", {"blueprint": 0.5, "words": -0.4}),
    ]

    def draw(asked: tuple[str, dict[str, float]]) -> np.ndarray:
        named = [{"name": name, "weight": weight} for name, weight in asked[1].items()]
        return array(png_of(posted(server, asked[0], loras=named)))

    with ThreadPoolExecutor() as pool:
        drawn = list(pool.map(draw, crowd))
    for (prompt, weights), picture in zip(crowd, drawn, strict=True):
        assert off(picture, expected(prompt, **weights)) <= TOLERANCE
    assert off(drawn[0], drawn[1]) > 50


def test_every_dialect_says_it_in_its_own_way_and_draws_the_same(server: Server) -> None:
    png = png_of(posted(server, "a cat <lora:blueprint:0.8>"))
    with server.client() as client:
        first, *_ = client.generate("a cat", loras=["blueprint:0.8"], **ASK)
        named = [LoraWeight("blueprint", 0.5), LoraWeight("blueprint", 0.3)]
        second, *_ = client.generate("a cat", loras=named, **ASK)
        (model,) = client.models()
    openai = httpx.post(
        f"{server.url}/v1/images/generations",
        json={"prompt": "a cat", "loras": [{"name": "blueprint", "weight": 0.8}], **ASK},
        timeout=120,
    ).json()
    others = (first.png, second.png, base64.b64decode(openai["data"][0]["b64_json"]))
    assert all(off(array(png), array(other)) == 0 for other in others)
    # Known by then, since each asks for the same picture.
    assert first.cached
    params = metadata.parse(image_of(png).text["parameters"])
    (info,) = (each for each in model.loras if each.name == "blueprint")
    assert params.prompt == "a cat"
    assert params.loras == (LoraWeight("blueprint", 0.8, info.hash),)
    assert "a cat <lora:blueprint:0.8>\nSteps: 5" in image_of(png).text["parameters"]


def test_balancers_are_told_which_adapters_are_in_memory(server: Server) -> None:
    assert posted(server, "a fox", loras=[{"name": "blueprint"}]).status_code == 200

    def told() -> bool:
        gauges = httpx.get(f"{server.url}/metrics").text
        own = 'text2image_adapter_loaded{adapter="blueprint",model="embedded"} 1.0' in gauges
        return own and ",blueprint" in gauges.split("running_lora_adapters=", 1)[1].split(" ")[0]

    eventually(told, "the gauges name it")


def test_what_cannot_be_used_is_refused_with_what_there_is(server: Server) -> None:
    for fields, reason in (
        (
            {"loras": [{"name": "sepia"}]},
            "'sepia', which is not here; embedded has blueprint, words",
        ),
        ({"loras": [{"name": "broken"}]}, "is no safetensors file"),
        ({"loras": [{"name": "words", "weight": 9}]}, "between -4 and 4"),
    ):
        answer = posted(server, "a cat", **fields)
        assert answer.status_code == 400
        assert [each["field"] for each in answer.json()["violations"]] == ["loras"]
        assert reason in answer.json()["message"]
    assert posted(server, "a cat <lora:blueprint:x>").status_code == 400
    assert posted(server, "a cat", loras=[{"name": 3}]).status_code == 400
    with server.client() as client, pytest.raises(InvalidRequest, match="sepia"):
        client.generate("a cat <lora:sepia:1>", **ASK)


def test_models_tell_of_adapters_that_come_and_change(server: Server, folder: Path) -> None:
    def told() -> dict[str, str]:
        (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
        return {each["name"]: each["hash"] for each in model["loras"]}

    assert [*told()] == ["blueprint", "words"]
    before = array(png_of(posted(server, "a frog", loras=[{"name": "words"}])))
    shutil.copy(EXAMPLE, folder / "later.safetensors")
    eventually(lambda: "later" in told(), "a new adapter is told of")
    assert told()["later"] == told()["blueprint"]
    old = told()["words"]
    shutil.copy(EXAMPLE, folder / "new")
    (folder / "new").rename(folder / "words.safetensors")
    eventually(lambda: told()["words"] != old, "a changed adapter is told of")
    # Another file of the same name, and the picture of the first was kept.
    after = array(png_of(posted(server, "a frog", loras=[{"name": "words"}])))
    assert off(before, after) > 50
    with server.client() as client, pytest.raises(InvalidRequest, match="another file"):
        client.generate("a frog", loras=[LoraWeight("words", 1.0, old)], **ASK)


def test_who_waits_for_an_adapter_is_told(folder: Path, server: Server) -> None:
    shutil.copy(EXAMPLE, folder / "fresh.safetensors")
    client: Client
    with server.client() as client:
        eventually(lambda: "fresh" in {each.name for each in client.model().loras}, "it is told of")
        events = list(client.stream("a cat", loras=["fresh"], **ASK))
    assert [each.detail for each in events if isinstance(each, Loading)] == [
        "loading the adapters fresh"
    ]
