"""ControlNets over HTTP, gRPC and the command line on the embedded model, executed as it is by default."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image

from tests.doubles import make_request
from tests.e2e.conftest import NET
from tests.e2e.harness import Server
from tests.e2e.nets import make_net
from tests.e2e.test_cli import command, run
from tests.e2e.test_pictures import image_of
from tests.init_images import file_of, picture, shapes
from tests.integration.engine.pipelines import draw_with_pipeline
from text2image.client import Client, Control, InvalidRequest
from text2image.core.messages import Sampler
from text2image.engine.models.loading import EMBEDDED_PATH
from text2image.engine.samplers.registry import scheduler_for
from text2image.gateway import metadata

TOLERANCE = 2
SIDES = (128, 128)
ASK = {"steps": 4, "sampler": "ddim", "seed": 3}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., np.ndarray]:
    """What diffusers draws, alone, steered or not."""
    plain = StableDiffusionPipeline.from_pretrained(
        EMBEDDED_PATH, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    net = ControlNetModel.from_pretrained(make_net(tmp_path_factory.mktemp("nets") / NET))
    parts = {**plain.components, "requires_safety_checker": False}
    steered = StableDiffusionControlNetPipeline(**parts, controlnet=net)

    def draw(prompt: str, shown: Image.Image | None = None, **how: Any) -> np.ndarray:
        pipeline = steered if shown else plain
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = scheduler_for(Sampler.DDIM, plain.scheduler.config, None)
        asked = make_request(prompt, steps=4, seed=3, guidance_scale=3.0, sampler=Sampler.DDIM)
        return draw_with_pipeline(pipeline, asked, **({"image": shown, **how} if shown else {}))

    return draw


def encoded(image: Image.Image, **options: Any) -> str:
    return base64.b64encode(file_of(image, **options)).decode()


def posted(server: Server, text: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/generate", json={"text": text, **ASK, **fields}, timeout=120)


def array(png: bytes) -> np.ndarray:
    return np.asarray(image_of(png).convert("RGB")).astype(np.int16)


def drawn(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return array(base64.b64decode(answer.json()["image_base64"]))


def off(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def test_a_crowd_that_is_steered_or_not_is_what_diffusers_draws(
    server: Server, expected: Callable[..., np.ndarray]
) -> None:
    one, other = shapes(SIDES), shapes(SIDES, seed=1)
    crowd: list[tuple[str, Image.Image | None, dict[str, float]]] = [
        ("a cat", None, {}),
        ("a cat", one, {}),
        ("a dog", other, {"scale": 0.5}),
        ("a house", one, {"start": 0.25, "end": 0.75}),
    ]

    def draw(asked: tuple[str, Image.Image | None, dict[str, float]]) -> np.ndarray:
        prompt, shown, how = asked
        controls = [{"name": NET, "image": encoded(shown), **how}] if shown else None
        return drawn(posted(server, prompt, controls=controls))

    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(draw, crowd))
    for (prompt, shown, how), each in zip(crowd, pictures, strict=True):
        theirs = expected(
            prompt,
            shown,
            controlnet_conditioning_scale=how.get("scale", 1.0),
            control_guidance_start=how.get("start", 0.0),
            control_guidance_end=how.get("end", 1.0),
        )
        assert off(each, theirs) <= TOLERANCE
    assert off(pictures[0], pictures[1]) > 50


def test_every_dialect_says_it_in_its_own_way_and_draws_the_same(
    server: Server, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "shown.png"
    shapes(SIDES).save(file)
    asked = {"name": NET, "image": encoded(shapes(SIDES)), "scale": 0.8, "end": 0.5}
    answer = posted(server, "a cat", controls=[asked])
    first = drawn(answer)
    spoken = client.generate("a cat", controls=[f"{NET}={file}:0.8:0-0.5"], **ASK)
    given = [Control(NET, file.read_bytes(), 0.8, end=0.5)]
    named = client.generate("a cat", controls=given, **ASK)
    # More than a body may have that holds no picture.
    random = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    large = {"name": NET, "image": encoded(Image.fromarray(random)), "scale": 0}
    openai = httpx.post(
        f"{server.url}/v1/images/generations",
        json={"prompt": "a cat", "controls": [asked, large], **ASK},
        timeout=120,
    ).json()
    typed = run(
        tmp_path,
        *command("a cat", "--control", f"{NET}={file}:0.8:0-0.5", "--output", "typed.png"),
        *("--steps", "4", "--sampler", "ddim", "--seed", "3", "--server", server.address),
    )
    assert typed.returncode == 0, typed.stderr
    others = [
        spoken[0].png,
        named[0].png,
        base64.b64decode(openai["data"][0]["b64_json"]),
        (tmp_path / "typed.png").read_bytes(),
    ]
    assert all(off(array(png), first) <= TOLERANCE for png in others)
    png = base64.b64decode(answer.json()["image_base64"])
    (told,) = metadata.parse(image_of(png).text["parameters"]).controls or ()
    (info,) = (each for each in client.model().controls if each.name == NET)
    assert told == Control(NET, None, 0.8, 0.0, 0.5, hash=info.hash)


def test_edges_are_found_where_they_are_asked_for(server: Server) -> None:
    cv2 = pytest.importorskip("cv2", reason="the extra canny")
    photo = picture(SIDES)
    found = Image.fromarray(cv2.Canny(np.asarray(photo), 100, 200)).convert("RGB")
    asked = {"name": NET, "image": encoded(photo)}
    by_server = drawn(posted(server, "a cat", controls=[{**asked, "preprocess": "canny"}]))
    by_hand = drawn(posted(server, "a cat", controls=[{**asked, "image": encoded(found)}]))
    assert off(by_server, by_hand) <= TOLERANCE
    assert off(by_server, drawn(posted(server, "a cat", controls=[asked]))) > TOLERANCE


def test_what_begins_from_a_picture_or_is_enlarged_is_steered_too(server: Server) -> None:
    asked = [{"name": NET, "image": encoded(shapes(SIDES))}]
    for more in ({"image": encoded(picture(SIDES)), "strength": 0.8}, {"hires_scale": 1.5}):
        steered, free = (
            drawn(posted(server, "a cat", controls=each, **more)) for each in (asked, None)
        )
        assert steered.shape == free.shape
        assert off(steered, free) > 10


def test_what_cannot_be_used_is_refused_with_what_there_is(
    server: Server, client: Client, tmp_path: Path
) -> None:
    shown = encoded(shapes((64, 64)))
    good = {"name": NET, "image": shown}
    for control, reason in (
        ({**good, "name": "pose"}, f"'pose', which is not here; embedded has {NET}"),
        ({**good, "name": "broken"}, "is no safetensors file"),
        ({**good, "scale": 3}, "between 0 and 2"),
        ({**good, "start": 0.5, "end": 0.2}, "start must be below end"),
        ({**good, "preprocess": "depth"}, "one of canny, inpaint"),
        ({**good, "image": "AAAA"}, f"'{NET}', whose image is no picture that can be read"),
        ({**good, "image": "no base64"}, "is no base64"),
        ({**good, "preprocess": "inpaint"}, "and nothing is"),
    ):
        answer = posted(server, "a cat", controls=[control])
        assert answer.status_code == 400
        assert [each["field"] for each in answer.json()["violations"]] == ["controls"]
        assert reason in answer.json()["message"]
    assert posted(server, "a cat", controls=[good] * 4).status_code == 400
    assert posted(server, "a cat", controls=[{"name": NET}]).status_code == 400
    assert posted(server, "a cat", controls=[{**good, "weight": 1}]).status_code == 400
    for field, value in (("name", "pose"), ("image", b"no picture")):
        given = {"name": NET, "image": file_of(shapes()), field: value}
        with pytest.raises(InvalidRequest, match="controls"):
            client.generate("a cat", controls=[Control(**given)], **ASK)
    typed = run(tmp_path, *command("a cat", "--control", f"{NET}=gone.png"))
    assert typed.returncode != 0
    assert "--control: gone.png: No such file or directory" in typed.stderr


def test_models_tell_of_their_nets(server: Server, client: Client) -> None:
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    told = {info.name: info for info in client.model().controls}
    assert [each["name"] for each in model["controls"]] == [NET]
    assert model["controls"][0]["hash"] == told[NET].hash
    assert told["broken"].fault == "is no safetensors file"


def test_hostile_pictures_end_in_no_error_of_the_servers(server: Server) -> None:
    chance = np.random.default_rng(5)
    whole = [file_of(shapes((64, 64)), kind) for kind in ("PNG", "JPEG", "WEBP")]
    with httpx.Client(timeout=120) as http:
        for number in range(60):
            file = bytearray(whole[number % 3])
            for place in chance.integers(0, len(file), 4):
                file[place] = int(chance.integers(256))
            image = base64.b64encode(bytes(file[: len(file) if number % 4 else 40])).decode()
            control = {"name": NET, "image": image, "preprocess": ("inpaint", None)[number % 2]}
            # Whatever is read draws a step of the smallest picture.
            body = {"text": "x", "steps": 1, "width": 64, "height": 64, "controls": [control]}
            answer = http.post(f"{server.url}/generate", json=body)
            assert answer.status_code in (200, 400, 413), answer.text
