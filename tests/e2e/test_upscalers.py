"""An upscaler by its name: in a second pass and alone, over HTTP, gRPC, A1111's API and the command line."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.conftest import UPSCALER
from tests.e2e.harness import Server, eventually
from tests.e2e.test_cli import command, run
from tests.e2e.test_pictures import image_of
from tests.init_images import file_of, picture
from tests.upscalers import make_upscaler
from text2image.client import Client, InvalidRequest
from text2image.core.messages import Progress
from text2image.engine.upscalers.files import read
from text2image.gateway import metadata

TOLERANCE = 2
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 3, "seed": 5}
LARGE: dict[str, Any] = {"hires_scale": 2.0, "hires_strength": 0.7, "hires_upscaler": "sharp"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the server has, as spandrel has it."""
    return read(make_upscaler(tmp_path_factory.mktemp("upscalers") / f"{UPSCALER}.pth"))


@pytest.fixture(scope="module")
def upscaling(server: Server) -> Server:
    """The shared server, once it has looked at its upscalers."""

    def listed() -> bool:
        (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
        return bool(model["upscalers"])

    eventually(listed, "the upscaler is listed")
    return server


def by_spandrel(network: Any, image: Image.Image) -> Image.Image:
    """What spandrel makes of a whole picture in one call."""
    whole = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)[None] / 255
    drawn = (network(whole)[0].movedim(0, -1) * 255).round().to(torch.uint8)
    return Image.fromarray(drawn.numpy())


def apart(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def test_all_lists_have_it_and_none_has_what_is_broken(upscaling: Server) -> None:
    (shown,) = httpx.get(f"{upscaling.url}/v1/models").json()["data"]
    (listed,) = shown["upscalers"]
    assert (listed["name"], listed["scale"]) == (UPSCALER, 2)
    with upscaling.client() as client:
        (told,) = client.model().upscalers
        assert [model.id for model in client.models()] == ["embedded"]
    assert (told.name, told.hash, told.scale) == (UPSCALER, listed["hash"], 2)
    names = httpx.get(f"{upscaling.url}/sdapi/v1/upscalers").json()
    assert [each["name"] for each in names] == ["None", "Lanczos", UPSCALER]


def test_a_second_pass_begins_from_what_the_network_made(
    upscaling: Server, client: Client, network: Any
) -> None:
    body = {"text": "a cat", **SMALL, **LARGE}
    answer = httpx.post(f"{upscaling.url}/generate", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    large = image_of(answer.json()["images"][0]["image_base64"])
    (told,) = client.model().upscalers
    assert f"Hires upscaler: {UPSCALER} [{told.hash}]" in large.info[metadata.CHUNK]
    (small,) = client.generate("a cat", **SMALL)
    begun = by_spandrel(network, image_of(small.png))
    (by_hand,) = client.generate("a cat", image=file_of(begun), strength=0.7, steps=3, seed=5)
    assert apart(large, image_of(by_hand.png)) <= TOLERANCE
    # What it tells of itself draws it again.
    fields = metadata.parse(large.info[metadata.CHUNK])
    (again,) = client.generate(
        "a cat", **SMALL, **{**LARGE, "hires_upscaler": fields.hires_upscaler}
    )
    assert apart(large, image_of(again.png)) <= TOLERANCE


def test_progress_counts_the_tiles(upscaling: Server) -> None:
    sides = {"width": 128, "height": 128, "hires_scale": 1.5}
    with upscaling.client() as client:
        events = client.stream("a cat", progress_every=1, **{**SMALL, **LARGE, **sides})
        told = [(each.step, each.steps) for each in events if isinstance(each, Progress)]
    # Three steps, four tiles, and two steps of three.
    assert {steps for _, steps in told} == {9}
    assert [step for step, _ in told] == sorted({step for step, _ in told})
    assert told[-1][0] == 9


def test_a1111s_clients_name_it_for_a_second_pass_and_alone(
    upscaling: Server, network: Any
) -> None:
    url = f"{upscaling.url}/sdapi/v1"
    body = {
        **{"prompt": "a cat", "cfg_scale": 3, "enable_hr": True, "hr_scale": 2},
        **{"denoising_strength": 0.7, "hr_upscaler": UPSCALER, **SMALL},
    }
    answer = httpx.post(f"{url}/txt2img", json=body, timeout=120).json()
    assert f"Hires upscaler: {UPSCALER} [" in answer["info"]
    files = [picture((120, 70)), picture((40, 60), seed=1)]
    encoded = [base64.b64encode(file_of(each)).decode() for each in files]
    asked = {"upscaler_1": UPSCALER, "upscaling_resize": 2}
    one = httpx.post(f"{url}/extra-single-image", json={"image": encoded[0], **asked})
    assert apart(image_of(one.json()["image"]), by_spandrel(network, files[0])) <= TOLERANCE
    named = [{"data": each, "name": "x.png"} for each in encoded]
    several = httpx.post(f"{url}/extra-batch-images", json={"imageList": named, **asked}).json()
    for made, image in zip(several["images"], files, strict=True):
        assert apart(image_of(made), by_spandrel(network, image)) <= TOLERANCE
    cut = {"imageList": [{"data": "aGk=", "name": ""}], **asked}
    told = httpx.post(f"{url}/extra-batch-images", json=cut)
    assert (told.status_code, told.json()["detail"][0]["loc"][1]) == (400, "imageList.0.data")


def test_transparency_and_other_sizes_stay_what_was_asked_for(upscaling: Server) -> None:
    image = picture((30, 20)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((30, 20)))
    body = {"image": base64.b64encode(file_of(image)).decode(), "upscaling_resize": 3}
    url = f"{upscaling.url}/sdapi/v1/extra-single-image"
    made = httpx.post(url, json={**body, "upscaler_1": UPSCALER}).json()["image"]
    drawn = Image.open(io.BytesIO(base64.b64decode(made)))
    assert (drawn.size, drawn.mode) == ((90, 60), "RGBA")
    assert drawn.info["postprocessing"].startswith(f"Postprocess upscaler: {UPSCALER} [")


def test_a_name_that_is_none_is_refused_with_those_there_are(upscaling: Server) -> None:
    for name in ("broken", "upscaler:Sharp", "../Sharp", "Sharp [ffff]"):
        body = {"text": "a cat", **SMALL, **LARGE, "hires_upscaler": name}
        answer = httpx.post(f"{upscaling.url}/generate", json=body)
        assert answer.status_code == 400
        assert "Sharp" in answer.text
    with upscaling.client() as client, pytest.raises(InvalidRequest, match=f"Lanczos, {UPSCALER}"):
        client.generate("a cat", **{**SMALL, **LARGE, "hires_upscaler": "Soft"})
    # No dialect draws with the network as with a model.
    answer = httpx.post(
        f"{upscaling.url}/generate", json={"text": "a cat", "model": f"upscaler:{UPSCALER}"}
    )
    assert answer.status_code == 404


def test_the_command_draws_with_it_on_a_server_and_without(
    upscaling: Server, tmp_path: Path
) -> None:
    words = ["a cat", "--size", "64x64", "--steps", "3", "--seed", "5", "--hires-scale", "2"]
    words += ["--hires-strength", "0.7", "--hires-upscaler", UPSCALER]
    there = run(
        tmp_path, *command(*words, "--output", "there.png"), GRPC_PORT=str(upscaling.grpc_port)
    )
    assert there.returncode == 0, there.stderr
    folder = tmp_path / "upscalers"
    folder.mkdir()
    make_upscaler(folder / f"{UPSCALER}.pth")
    asked = command(*words, "--local", "--output", "here.png")
    here = run(tmp_path, *asked, T2I_UPSCALERS=str(folder))
    assert here.returncode == 0, here.stderr
    pictures = (Image.open(tmp_path / f"{name}.png") for name in ("there", "here"))
    assert apart(*pictures) <= TOLERANCE
