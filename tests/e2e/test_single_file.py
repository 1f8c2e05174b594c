"""A server of a checkpoint in a single file draws what diffusers' own pipeline draws, for a crowd at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer

from tests.e2e.harness import Server
from tests.e2e.test_pictures import assert_same, image_of
from tests.integration.engine.originals import original_weights, tiny_pipeline
from text2image.engine.layouts.tokenizer import END, write_tokenizer
from text2image.gateway import metadata


def test_a_single_file_is_served(start_server: Callable[..., Server], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", padding=END)
    pipeline = tiny_pipeline("sd1", AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    file = tmp_path / "my model.v2.safetensors"
    save_file(original_weights(pipeline), file)
    server = start_server(T2I_MODEL=str(file), T2I_RUNTIME="torch", T2I_DTYPE="float32")
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert model["id"] == "my model.v2"
    prompts = ["a cat", "a dog on a hill", "two red birds"]

    def ask(prompt: str) -> Image.Image:
        body = {"text": prompt, "width": 64, "height": 96, "steps": 4, "seed": len(prompt)}
        answer = httpx.post(f"{server.url}/generate", json=body, timeout=120)
        return image_of(answer.json()["image_base64"])

    with ThreadPoolExecutor() as crowd:
        pictures = list(crowd.map(ask, prompts))
    pipeline.set_progress_bar_config(disable=True)
    for prompt, picture in zip(prompts, pictures, strict=True):
        params = metadata.parse(picture.text[metadata.CHUNK])
        assert (params.width, params.height) == picture.size == (64, 96)
        theirs = pipeline(
            prompt,
            width=64,
            height=96,
            num_inference_steps=4,
            guidance_scale=7.5,
            generator=torch.Generator("cpu").manual_seed(len(prompt)),
        ).images[0]
        assert_same(picture, theirs)
