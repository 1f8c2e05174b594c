"""Models at their published sizes, with random weights: they load in half precision, step, and say what they take.

`pytest -m slow -s` runs it, with 12 GB of memory and of disk, in some minutes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from loadtests.gpu import models
from tests.doubles import make_request
from tests.integration.engine.conftest import draw_alone
from text2image.core.messages import Sampler
from text2image.core.settings import Settings
from text2image.engine.models.loading import EMBEDDED_PATH, load_model

BF16 = torch.bfloat16
GB = 1e9
# As published: stabilityai/stable-diffusion-xl-base-1.0.
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}


@torch.no_grad()
def filled(network: Any) -> Any:
    """A network that has shapes only, with weights of a size that keeps what passes through it finite."""
    network = network.to(BF16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, weights in network.named_parameters():
        if "norm" in name:
            weights.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            weights.uniform_(-0.02, 0.02, generator=generator)
    for name, numbers in network.named_buffers():
        if name.endswith("position_ids"):
            numbers.copy_(torch.arange(numbers.shape[-1])[None])
    return network.eval()


def clip(kind: Any, heads: int, **sizes: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408,
        projection_dim=1280,
        num_attention_heads=heads,
        bos_token_id=2326,
        eos_token_id=2327,
        **sizes,
    )
    with torch.device("meta"):
        return kind(config)


def save_sd15(target: Path) -> None:
    models.save_pipeline(target, "true", "cpu", BF16)


def save_sdxl(target: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_PATH / "tokenizer", model_max_length=77)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**models.NETWORKS["sdxl", "true"])
        vae = AutoencoderKL(**_VAE)
    StableDiffusionXLPipeline(
        unet=filled(unet),
        vae=filled(vae),
        text_encoder=filled(clip(CLIPTextModel, 12, **_CLIP_L)),
        text_encoder_2=filled(clip(CLIPTextModelWithProjection, 20, **_CLIP_G)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    ).save_pretrained(target)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("save", "side"), [(save_sd15, 512), (save_sdxl, 1024)])
def test_a_model_of_true_size_loads_and_steps(
    tmp_path: Path, save: Callable[[Path], None], side: int
) -> None:
    save(tmp_path)
    try:
        # In a process of its own, whose memory is this model's alone.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
            told = worker.submit(load_and_step, tmp_path, side).result()
        print(f"\n{save.__name__.removeprefix('save_')} in bf16: {told}")
    finally:
        # Gigabytes, of which pytest would keep three.
        shutil.rmtree(tmp_path)


def load_and_step(folder: Path, side: int) -> str:
    """What it took, in words."""
    settings = Settings(model=str(folder), device="cpu", dtype="bfloat16", runtime="torch")
    process = psutil.Process()
    before, started = process.memory_info().rss, time.monotonic()
    model = load_model(settings, 0, lambda detail: None)
    seconds = time.monotonic() - started
    assert (model.info.width, model.info.max_prompt_tokens) == (side, 302)
    started = time.monotonic()
    request = make_request("a red fox", steps=2, width=256, height=256, sampler=Sampler.EULER)
    picture = draw_alone(model, request)
    drawing, taken = time.monotonic() - started, process.memory_info().rss - before
    assert picture.shape == (256, 256, 3)
    assert np.ptp(picture) > 0, "the picture is one colour"
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    # What is added is for the activations of a step and of the decoder, which the allocator keeps.
    assert taken < 1.1 * weights + 2 * GB
    return (
        f"{weights / GB:.1f} GB of weights, loaded in {seconds:.0f} s; 2 guided steps of 256 x 256 in {drawing:.0f} s, "
        f"after which {taken / GB:.1f} GB are taken"
    )
