"""A server with a folder of models: every dialect names them, they are loaded when they are needed, and come and go."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer

from tests.doubles import make_request
from tests.e2e.harness import Server, eventually, serving
from tests.e2e.test_families import TOLERANCE, drawn
from tests.e2e.test_pictures import assert_same, image_of
from tests.integration.engine.originals import original_weights, tiny_pipeline
from tests.integration.engine.pipelines import Reference, save_pipeline
from text2image.cli.main import main
from text2image.client import Client, Loading, ModelNotFound, Picture
from text2image.core.messages import ModelState, Request, Sampler
from text2image.engine.layouts.sizes import weight_bytes
from text2image.engine.layouts.tokenizer import END, write_tokenizer
from text2image.engine.models.loading import EMBEDDED_PATH
from text2image.gateway import metadata

# Of three families.
NAMES = ["embedded", "flux-dev", "xl"]
SIDE = 128
TRUE_SCALE = 2.5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in NAMES[1:]:
        save_pipeline(kind, folder)
    return folder


@pytest.fixture(scope="module")
def sizes(models: Path) -> dict[str, int]:
    """Bytes of the models' weights."""
    folders = [EMBEDDED_PATH, *(models / name for name in NAMES[1:])]
    return {name: weight_bytes(each, 4) for name, each in zip(NAMES, folders, strict=True)}


@pytest.fixture(scope="module")
def several(
    tmp_path_factory: pytest.TempPathFactory, models: Path, sizes: dict[str, int]
) -> Iterator[Server]:
    """A server whose limit leaves room for the embedded model and one of the others."""
    limit = sizes["embedded"] + max(sizes[name] for name in NAMES[1:])
    server = Server(
        tmp_path_factory.mktemp("several"),
        T2I_MODELS=str(models),
        T2I_MODEL_MEMORY=str(limit),
        T2I_MAX_SIDE=str(SIDE),
        T2I_TRUE_CFG_SCALE=str(TRUE_SCALE),
        T2I_RUNTIME="torch",
    )
    with serving(server) as running, running.client() as client:
        eventually(lambda: [each.id for each in client.models()] == NAMES, "all are known")
        yield running


def ask(server: Server, path: str = "/generate", **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=120)


def test_models_are_listed_with_their_state_in_every_dialect(several: Server) -> None:
    listed = httpx.get(f"{several.url}/v1/models").json()["data"]
    assert [each["id"] for each in listed] == NAMES
    assert [each["default"] for each in listed] == [True, False, False]
    assert httpx.get(f"{several.url}/v1/models/xl").json()["id"] == "xl"
    with several.client() as client:
        assert [model.id for model in client.models()] == NAMES
        assert client.model().id == "embedded"
        assert client.model("flux-dev").width == SIDE, "its own size, as far as it is allowed"
        assert [each.name for each in client.status().models] == NAMES


def test_a_request_names_its_model_in_every_dialect(several: Server) -> None:
    pngs = {}
    for name in NAMES:
        answer = ask(several, text="a fox", model=name, seed=5, steps=2)
        assert answer.status_code == 200, answer.text
        body = {"prompt": "a fox", "model": name, "seed": 5, "steps": 2}
        other = ask(several, "/v1/images/generations", **body).json()
        with several.client() as client:
            (picture,) = client.generate("a fox", model=name, seed=5, steps=2)
        pngs[name] = picture.png
        assert base64.b64decode(answer.json()["image_base64"]) == picture.png
        assert base64.b64decode(other["data"][0]["b64_json"]) == picture.png
        assert f"Model: {name}".encode() in picture.png
    assert len(set(pngs.values())) == len(NAMES)
    default = ask(several, text="a fox", seed=5, steps=2).json()
    assert base64.b64decode(default["image_base64"]) == pngs["embedded"]


def test_an_unknown_model_is_told_with_those_there_are(several: Server) -> None:
    told = "'dall-e-3' is not served here; 'embedded', 'flux-dev', 'xl' are"
    answer = ask(several, text="a fox", model="dall-e-3")
    assert (answer.status_code, answer.json()["reason"]) == (404, "MODEL_NOT_FOUND")
    assert answer.json()["message"] == told
    foreign = ask(several, "/v1/images/generations", prompt="a fox", model="dall-e-3")
    assert foreign.status_code == 400
    assert foreign.json()["error"]["param"] == "model"
    assert told in foreign.json()["error"]["message"]
    assert httpx.get(f"{several.url}/v1/models/dall-e-3").json()["error"]["message"] == told
    with several.client() as client, pytest.raises(ModelNotFound, match="'xl'"):
        client.generate("a fox", model="dall-e-3")


def mixed() -> list[Request]:
    """Requests for all models by turns, and for each several of its kind that can share a step."""
    own = {
        "embedded": [
            {"sampler": Sampler.DPMPP_2M, "negative_prompt": "blue"},
            {"sampler": Sampler.DDIM, "guidance_scale": 1.0},
        ],
        "flux-dev": [
            {"sampler": Sampler.FLOW_EULER, "guidance_scale": 3.5},
            {"sampler": Sampler.FLOW_EULER, "negative_prompt": "a blue sea"},
        ],
        "xl": [
            {"sampler": Sampler.EULER, "negative_prompt": "a dog"},
            {"sampler": Sampler.UNIPC, "width": 96, "height": 64},
        ],
    }
    return [
        make_request("a red fox", model=name, seed=100 + seed, steps=2 + seed % 3, **more)
        for seed in range(8)
        for name, more in ((name, own[name][seed % 2]) for name in NAMES)
    ]


def test_mixed_load_on_three_families_loses_nothing_within_the_limit_and_draws_diffusers_pictures(
    several: Server, models: Path, sizes: dict[str, int]
) -> None:
    requests = mixed()
    limit = sizes["embedded"] + max(sizes[name] for name in NAMES[1:])
    assert limit < sum(sizes.values())
    seen: set[tuple[str, ...]] = set()
    with ThreadPoolExecutor(12) as pool:
        drawing = [pool.submit(drawn, several, each.model, each) for each in requests]
        while not all(each.done() for each in drawing):
            with several.engine() as engine:
                states = engine.status().models
            seen.add(tuple(each.name for each in states if each.state is ModelState.LOADED))
        pictures = [each.result() for each in drawing]
    assert all(sum(sizes[name] for name in loaded) <= limit for loaded in seen)
    assert {name for loaded in seen for name in loaded} == set(NAMES)
    folders = {"embedded": EMBEDDED_PATH, **{name: models / name for name in NAMES[1:]}}
    references = {name: Reference(folder) for name, folder in folders.items()}
    for request, picture in zip(requests, pictures, strict=True):
        is_flux = request.model == "flux-dev"
        more = {"true_cfg_scale": TRUE_SCALE} if is_flux and request.negative_prompt else {}
        own = references[request.model].draw(request, **more)
        assert np.abs(picture - own).max() <= TOLERANCE, request


def test_the_command_names_one(several: Server, tmp_path: Path) -> None:
    file = tmp_path / "fox.png"
    typed = ["a fox", "--model", "xl", "--seed", "5", "--steps", "2", "--output", str(file)]
    assert main([*typed, "--server", several.address]) == 0
    with several.client() as client:
        (picture,) = client.generate("a fox", model="xl", seed=5, steps=2)
    assert file.read_bytes() == picture.png


def test_a_client_is_told_that_its_model_is_loaded(several: Server) -> None:
    with several.client() as client:
        # After these two there is no room for it.
        client.generate("a fox", model="embedded", steps=1)
        client.generate("a fox", model="xl", steps=1)
        events = list(client.stream("a fox", model="flux-dev", steps=1))
    assert isinstance(events[0], Loading)
    assert any(isinstance(event, Picture) for event in events)


def test_models_come_and_go_while_it_serves(several: Server, models: Path) -> None:
    def names() -> list[str]:
        with several.client() as client:
            return [model.id for model in client.models()]

    shutil.copytree(models / "xl", models.parent / "copy")
    (models.parent / "copy").rename(models / "new")
    eventually(lambda: names() == [*NAMES, "new"], "the new one is found")
    assert ask(several, text="a fox", model="new", steps=1).status_code == 200
    shutil.rmtree(models / "new")
    eventually(lambda: names() == NAMES, "it is gone again")
    assert ask(several, text="a fox", model="new").status_code == 404


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model in a single file, and the pipeline that it was made of."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(folder / "tokenizer", padding=END)
    pipeline = tiny_pipeline("sd1", AutoTokenizer.from_pretrained(folder / "tokenizer"))
    pipeline.set_progress_bar_config(disable=True)
    save_file(original_weights(pipeline), folder / "single.safetensors")
    return folder / "single.safetensors", pipeline


@pytest.fixture(scope="module")
def listed(
    tmp_path_factory: pytest.TempPathFactory, models: Path, checkpoint: tuple[Path, Any]
) -> Iterator[Server]:
    """A server of the models that a file lists."""
    folder = tmp_path_factory.mktemp("listed")
    file = folder / "models.toml"
    file.write_text(
        f"""
        [models.anime]
        path = "{models / "xl"}"
        aliases = ["manga"]
        steps = 3
        guidance_scale = 2.5
        licence = "CreativeML OpenRAIL-M"
        quantize = "int8"
        tile_above = 128

        [models.quick]
        path = "{models / "flux-dev"}"
        max_side = 64
        true_cfg_scale = 2.5

        [models."my model.v2"]
        path = "{checkpoint[0]}"
        """
    )
    settings = {"T2I_MODELS": str(file), "T2I_MODEL": "quick", "T2I_RUNTIME": "torch"}
    server = Server(folder, T2I_DTYPE="float32", **settings)
    with serving(server) as running, running.client() as client:
        eventually(lambda: len(client.models()) == 3, "all are known")
        yield running


def test_a_file_gives_models_names_aliases_and_defaults(listed: Server) -> None:
    with Client(listed.address) as client:
        quick, anime, single = client.models()
        assert single.id == "my model.v2"
        assert (quick.id, client.model().id) == ("quick", "quick")
        assert (anime.steps, anime.guidance_scale) == (3, 2.5)
        assert anime.licence == "CreativeML OpenRAIL-M"
        assert (anime.quantization, anime.tiled_above) == ("int8", 128 * 128)
        assert client.model("manga") == anime
    shown = httpx.get(f"{listed.url}/v1/models/manga").json()
    assert (shown["id"], shown["aliases"]) == ("anime", ["manga"])
    assert shown["quantization"] == "int8"
    large = {"width": 192, "height": 160}
    assert ask(listed, text="a fox", model="manga", seed=1, steps=1, **large).status_code == 200
    assert ask(listed, text="a fox", negative_prompt="blue", steps=1).status_code == 200


def test_a_single_file_draws_the_pipelines_pictures_in_a_crowd(
    listed: Server, checkpoint: tuple[Path, Any]
) -> None:
    prompts = ["a cat", "a dog on a hill", "two red birds"]

    def draw(prompt: str) -> Image.Image:
        size = {"width": 64, "height": 96}
        fields = {"model": "my model.v2", "steps": 4, "seed": len(prompt), **size}
        return image_of(ask(listed, text=prompt, **fields).json()["image_base64"])

    with ThreadPoolExecutor() as crowd:
        pictures = list(crowd.map(draw, prompts))
    for prompt, picture in zip(prompts, pictures, strict=True):
        params = metadata.parse(picture.text[metadata.CHUNK])
        assert (params.width, params.height) == picture.size == (64, 96)
        theirs = checkpoint[1](
            prompt,
            width=64,
            height=96,
            num_inference_steps=4,
            guidance_scale=7.5,
            generator=torch.Generator("cpu").manual_seed(len(prompt)),
        ).images[0]
        assert_same(picture, theirs)
