"""Pictures that begin from another one, over every transport, and files that are none."""

from __future__ import annotations

import base64
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.e2e.harness import ROOT, Server
from tests.init_images import file_of, hole, picture
from text2image.client import Client
from text2image.core.errors import InvalidRequest, PayloadTooLarge
from text2image.core.messages import Input
from text2image.gateway import metadata

SECONDS = 120
SIZE = (128, 128)
ASKED: dict[str, Any] = {"steps": 4, "seed": 5, "strength": 0.5}
IMAGE, MASK = file_of(picture(SIZE)), file_of(hole(SIZE))


def shown(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def text_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


def by_json(server: Server, folder: Path) -> bytes:
    body = {"text": "a cat", "image": text_of(IMAGE), "mask": text_of(MASK), **ASKED}
    return first(httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS))


def by_form(server: Server, folder: Path) -> bytes:
    files = {"image": ("a.png", IMAGE), "mask": ("b.png", MASK)}
    url = f"{server.url}/generate"
    return first(httpx.post(url, data={"text": "a cat", **ASKED}, files=files, timeout=SECONDS))


def first(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["images"][0]["image_base64"])


def by_grpc(server: Server, folder: Path) -> bytes:
    with server.client() as client:
        (drawn,) = client.generate("a cat", image=IMAGE, mask=MASK, **ASKED)
    return drawn.png


def by_command(server: Server, folder: Path) -> bytes:
    (folder / "image.png").write_bytes(IMAGE)
    (folder / "mask.png").write_bytes(MASK)
    options = [f"--{name}={value}" for name, value in ASKED.items()]
    options += [f"--{name}={folder / name}.png" for name in ("image", "mask")]
    command = [sys.executable, "-m", "text2image", "a cat", *options, "--output", "drawn.png"]
    subprocess.run(
        [*command, "--server", server.address],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    return (folder / "drawn.png").read_bytes()


def test_every_way_to_ask_gives_the_same_picture(server: Server, tmp_path: Path) -> None:
    ways: list[Callable[[Server, Path], bytes]] = [by_json, by_form, by_grpc, by_command]
    drawn = [shown(way(server, tmp_path)) for way in ways]
    for other in drawn[1:]:
        assert np.abs(drawn[0] - other).max() <= 2
    inside = np.array(hole(SIZE)) > 0
    changed = np.abs(drawn[0] - np.array(picture(SIZE))).mean(-1)
    assert changed[~inside].mean() < changed[inside].mean() / 2


def test_a_picture_tells_what_it_began_from(server: Server, tmp_path: Path) -> None:
    text = Image.open(io.BytesIO(by_json(server, tmp_path))).info[metadata.CHUNK]
    assert ", Denoising strength: 0.5, Init image hash: " in text
    assert metadata.parse(text).strength == 0.5


def test_openais_client_edits_what_is_transparent_in_a_mask(server: Server) -> None:
    mask = picture(SIZE).convert("RGBA")
    mask.putalpha(hole(SIZE).point(lambda value: 255 - value))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.images.edit(
            image=("image.png", IMAGE),
            mask=("mask.png", file_of(mask)),
            prompt="a cat",
            n=2,
            size="auto",  # type: ignore[arg-type]
            response_format="b64_json",
            user="somebody",
            extra_body={"steps": 3, "seed": 5},
        )
        assert answer.data is not None
        one, other = (shown(base64.b64decode(each.b64_json or "")) for each in answer.data)
        assert np.abs(one - other).max() > 0
        inside = np.array(hole(SIZE)) > 0
        changed = np.abs(one - np.array(picture(SIZE))).mean(-1)
        assert changed[~inside].mean() < changed[inside].mean() / 2
        with pytest.raises(openai.BadRequestError, match="image: is there 2 times"):
            client.images.edit(image=[("a.png", IMAGE), ("b.png", IMAGE)], prompt="a cat")
        with pytest.raises(openai.BadRequestError, match="mask: has no transparent part"):
            client.images.edit(image=("a.png", IMAGE), mask=("b.png", MASK), prompt="a cat")


def test_openais_client_streams_an_edit(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        events = client.images.edit(
            image=("image.png", IMAGE), prompt="a cat", stream=True, extra_body={"steps": 3}
        )
        assert [event.type for event in events] == ["image_edit.completed"]


def test_openais_client_varies_a_picture_without_a_prompt(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.images.create_variation(image=("image.png", IMAGE), extra_body={"steps": 4})
    assert answer.data is not None
    drawn = shown(base64.b64decode(answer.data[0].b64_json or ""))
    assert np.abs(drawn - np.array(picture(SIZE))).max() > 2


def test_a_picture_is_enlarged_and_drawn_on(server: Server, client: Client) -> None:
    asked: dict[str, Any] = {"width": 64, "height": 64, "steps": 3, "seed": 5}
    body = {"text": "a cat", **asked, "hires_scale": 2, "hires_strength": 0.7}
    large = first(httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS))
    assert (
        "Hires upscale: 2, Hires steps: 3, " in Image.open(io.BytesIO(large)).info[metadata.CHUNK]
    )
    (small,) = client.generate("a cat", **asked)
    enlarged = Image.open(io.BytesIO(small.png)).resize(SIZE, Image.Resampling.LANCZOS)
    on = {"image": file_of(enlarged), "strength": 0.7, "steps": 3, "seed": 5}
    (by_hand,) = client.generate("a cat", **on)
    assert np.abs(shown(large) - shown(by_hand.png)).max() <= 2


def test_a_model_says_what_it_draws_from(server: Server, client: Client) -> None:
    assert client.model().inputs == tuple(Input)
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert model["inputs"] == ["text", "image", "mask"]


def noise(side: int) -> bytes:
    """A large file, since noise cannot be compressed."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return file_of(Image.fromarray(pixels))


def test_a_picture_may_be_larger_than_any_other_body(server: Server, client: Client) -> None:
    large = noise(700)
    assert len(large) > 1 << 20
    asked = {"width": 64, "height": 64, "steps": 2}
    body = {"text": "a cat", "image": text_of(large), **asked}
    assert first(httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS))
    files = {"image": ("a.png", large)}
    form = {"text": "a cat", **asked}
    url = f"{server.url}/generate"
    assert first(httpx.post(url, data=form, files=files, timeout=SECONDS))
    assert client.generate("a cat", image=large, **asked)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"strength": 0.5}, "strength: is of no use without an image"),
        ({"mask": text_of(MASK)}, "mask: is of no use without an image"),
        ({"image": "%"}, "image: is no base64"),
        ({"image": text_of(b"GIF89a")}, "image: is no picture"),
        ({"image": text_of(IMAGE), "strength": 0.1, "steps": 4}, "strength: is 0.1, and of 4"),
        ({"image": text_of(IMAGE), "mask": text_of(file_of(hole((64, 64))))}, "mask: has 64x64"),
        ({"image": text_of(IMAGE), "width": 100}, "width: is 100 pixels"),
    ],
)
def test_what_is_wrong_is_told(server: Server, fields: dict[str, Any], told: str) -> None:
    answer = httpx.post(f"{server.url}/generate", json={"text": "a cat", **fields}, timeout=SECONDS)
    assert answer.status_code == 400
    assert told in answer.json()["message"]


def hostile(count: int) -> list[bytes]:
    """Files that were sound once, cut off and changed."""
    random_ = random.Random(0)
    sound = [IMAGE, file_of(picture(SIZE), "JPEG"), file_of(picture(SIZE), "WEBP"), MASK]
    files = [b"", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBPVP8X"]
    while len(files) < count:
        file = bytearray(random_.choice(sound))
        for _ in range(random_.randint(1, 20)):
            file[random_.randrange(len(file))] = random_.randrange(256)
        files.append(bytes(file[: random_.randrange(1, len(file))]))
    return files


def test_no_file_ends_in_a_fault_of_the_server(server: Server, client: Client) -> None:
    """The rest of them are given to what reads them alone, in `unit/gateway/test_init_images.py`."""
    with httpx.Client(base_url=server.url, timeout=SECONDS) as http:
        for number, file in enumerate(hostile(48)):
            asked = {"steps": 1, "strength": 1.0, "width": 64, "height": 64}
            files = {"image": ("a", file if number % 2 else IMAGE), "mask": ("b", file)}
            if number % 3:
                url, text = ("/generate", "text") if number % 2 else ("/v1/images/edits", "prompt")
                data = {text: "a cat", "steps": 1}
                answer = http.post(url, data=data, files=files)
                assert answer.status_code in (200, 400, 413), answer.text
            else:
                try:
                    client.generate("a cat", image=file, **asked)
                except (InvalidRequest, PayloadTooLarge) as refusal:
                    told = str(refusal)
                    assert told.startswith("image"), told
