"""Stable Diffusion 1.5 and the networks of SDXL with random weights, at true size or tiny.

Sizes are those of the published configurations, runwayml/stable-diffusion-v1-5 and
stabilityai/stable-diffusion-xl-base-1.0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from text2image.engine.models.loading import EMBEDDED_PATH

TOKENS = 77
# Numbers that tell an SDXL network of a picture's size and cropping.
TIME_IDS = 6
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_TINY = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
}
NETWORKS: dict[tuple[str, str], dict[str, Any]] = {
    ("sd15", "true"): {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    ("sdxl", "true"): _SDXL,
    ("sd15", "tiny"): _TINY,
    ("sdxl", "tiny"): {
        **_TINY,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + TIME_IDS * 8,
    },
}
_DECODERS: dict[str, dict[str, Any]] = {
    "true": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    "tiny": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4},
}
_SCALING = {"sd15": 0.18215, "sdxl": 0.13025}
_ENCODERS: dict[str, dict[str, int]] = {
    "true": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
}
_HEADS = {"true": 12, "tiny": 2}
# Of CLIP's vocabulary; the tokenizer that comes along, the embedded model's, knows fewer.
_VOCABULARY = 49408


def network(kind: str, size: str, device: str, dtype: torch.dtype) -> Any:
    """The U-Net, its weights as torch initialises them."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**NETWORKS[kind, size])
    return unet.to(dtype, memory_format=torch.channels_last).eval()


def autoencoder(kind: str, size: str, device: str, dtype: torch.dtype) -> Any:
    """The VAE; both kinds have the same."""
    torch.manual_seed(0)
    with torch.device(device):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            scaling_factor=_SCALING[kind],
            **_DECODERS[size],
        )
    return vae.to(dtype, memory_format=torch.channels_last).eval()


def inputs(unet: Any, rows: int) -> dict[str, Any]:
    """What a U-Net is called with for so many rows, each at a timestep of its own."""
    config, like = unet.config, {"device": unet.device, "dtype": unet.dtype}
    side = config.sample_size
    sample = torch.randn(rows, config.in_channels, side, side, **like)
    given = {
        "sample": sample.contiguous(memory_format=torch.channels_last),
        "timestep": torch.linspace(999, 1, rows, device=unet.device),
        "encoder_hidden_states": torch.randn(rows, TOKENS, config.cross_attention_dim, **like),
    }
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim
        width -= TIME_IDS * config.addition_time_embed_dim
        given["added_cond_kwargs"] = {
            "text_embeds": torch.randn(rows, width, **like),
            "time_ids": torch.full((rows, TIME_IDS), float(8 * side), **like),
        }
    return given


def forward_of(unet: Any) -> Callable[..., torch.Tensor]:
    """The network as a function of tensors alone, those that `tensors_of` makes of `inputs`."""

    def forward(
        sample: torch.Tensor, timestep: torch.Tensor, embeddings: torch.Tensor, *added: torch.Tensor
    ) -> torch.Tensor:
        conditions = dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None
        output: torch.Tensor = unet(
            sample, timestep, embeddings, added_cond_kwargs=conditions, return_dict=False
        )[0]
        return output

    return forward


def tensors_of(given: dict[str, Any]) -> list[torch.Tensor]:
    """Inputs of a network in a row."""
    added = given.get("added_cond_kwargs", {}).values()
    return [given["sample"], given["timestep"], given["encoder_hidden_states"], *added]


def save_pipeline(folder: Path, size: str, device: str, dtype: torch.dtype) -> None:
    """Writes Stable Diffusion 1.5 in diffusers format."""
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_PATH / "tokenizer", model_max_length=TOKENS)
    with torch.device(device):
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=_VOCABULARY,
                max_position_embeddings=TOKENS,
                num_attention_heads=_HEADS[size],
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **_ENCODERS[size],
            )
        ).to(dtype)
    StableDiffusionPipeline(
        unet=network("sd15", size, device, dtype),
        vae=autoencoder("sd15", size, device, dtype),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        # What the server takes for such a model if nobody names a sampler.
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
