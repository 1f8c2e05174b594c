"""Small diffusers pipelines with random weights, one for each kind of the family that we serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from text2image.engine.models.loading import EMBEDDED_PATH

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# What each kind differs in: the scheduler that the model is published with, and the U-Net's extras.
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sd1": (PNDMScheduler(**SD_BETAS, skip_prk_steps=True, steps_offset=1), {}),
    "sd2": (
        DDIMScheduler(
            **SD_BETAS, prediction_type="v_prediction", clip_sample=False, steps_offset=1
        ),
        {"use_linear_projection": True, "attention_head_dim": [1, 2]},
    ),
    "turbo": (EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="trailing"), {}),
    "lcm": (LCMScheduler(**SD_BETAS), {"time_cond_proj_dim": 32}),
}


def save_pipeline(kind: str, folder: Path) -> Path:
    """Writes a pipeline of this kind, its name ending in the kind's, as a hub model's would."""
    torch.manual_seed(0)
    scheduler, extras = KINDS[kind]
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_PATH / "tokenizer")
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=8,
        **{"attention_head_dim": 2, **extras},
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    make = LatentConsistencyModelPipeline if kind == "lcm" else StableDiffusionPipeline
    target = folder / kind
    make(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(target)
    return target
