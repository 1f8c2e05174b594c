"""Small diffusers pipelines with random weights, one for each kind of the family that we serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from text2image.core.messages import Request
from text2image.engine.models.loading import EMBEDDED_PATH
from text2image.engine.samplers.registry import scheduler_for

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
    # A network for inpainting takes a mask and a masked picture besides.
    "sd1-inpaint": (
        PNDMScheduler(**SD_BETAS, skip_prk_steps=True, steps_offset=1),
        {"in_channels": 9},
    ),
}


_TRAILING = {**SD_BETAS, "timestep_spacing": "trailing"}
# The same of SDXL; "second" has a single encoder, encodes the empty text, and latents of a mean and deviation.
XL_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "xl": (EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"), {}),
    "xl-turbo": (EulerAncestralDiscreteScheduler(**_TRAILING), {}),
    "xl-lightning": (EulerDiscreteScheduler(**_TRAILING), {}),
    "xl-hyper": (TCDScheduler(**SD_BETAS), {}),
    "xl-lcm": (LCMScheduler(**SD_BETAS), {"time_cond_proj_dim": 32}),
    "xl-v": (EulerDiscreteScheduler(**SD_BETAS, prediction_type="v_prediction"), {}),
    "xl-zero-snr": (
        EulerDiscreteScheduler(
            **_TRAILING, prediction_type="v_prediction", rescale_betas_zero_snr=True
        ),
        {},
    ),
    "xl-inpaint": (
        EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"),
        {"in_channels": 9},
    ),
    "xl-second": (DDIMScheduler(**SD_BETAS, clip_sample=False, steps_offset=1), {}),
}
# The same of SD3: "sd3" has T5, and "sd3-bare" has none, as many users leave it out.
SD3_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sd3": (FlowMatchEulerDiscreteScheduler(shift=3.0), {}),
    "sd3-bare": (
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=1.5),
        {"qk_norm": "rms_norm"},
    ),
}
# The same of Flux.1; only dev takes a guidance scale.
FLUX_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "flux-dev": (
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, max_shift=1.15),
        {"guidance_embeds": True},
    ),
    "flux-schnell": (FlowMatchEulerDiscreteScheduler(shift=1.0), {"guidance_embeds": False}),
}
_WIDTH = 32
_TIME_WIDTH = 8


def save_pipeline(kind: str, folder: Path) -> Path:
    """Writes a pipeline of this kind, its name ending in the kind's, as a hub model's would."""
    torch.manual_seed(0)
    target = folder / kind
    makers = {_xl: XL_KINDS, _sd3: SD3_KINDS, _flux: FLUX_KINDS, _stable_diffusion: KINDS}
    make = next(maker for maker, kinds in makers.items() if kind in kinds)
    make(kind).save_pretrained(target)
    return target


def _stable_diffusion(kind: str) -> Any:
    scheduler, extras = KINDS[kind]
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_PATH / "tokenizer")
    unet = _unet(cross_attention_dim=_WIDTH, **{"attention_head_dim": 2, **extras})
    vae = _vae()
    text_encoder = _text_encoder(CLIPTextModel, tokenizer)
    kinds = {"lcm": LatentConsistencyModelPipeline, "sd1-inpaint": StableDiffusionInpaintPipeline}
    return kinds.get(kind, StableDiffusionPipeline)(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _xl(kind: str) -> Any:
    scheduler, extras = XL_KINDS[kind]
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_PATH / "tokenizer")
    # As published: what fills a prompt up is another token for each encoder.
    tokenizer_2 = CLIPTokenizer.from_pretrained(EMBEDDED_PATH / "tokenizer", pad_token="!")
    alone = kind == "xl-second"
    unet = _unet(
        cross_attention_dim=_WIDTH if alone else 2 * _WIDTH,
        attention_head_dim=[1, 2],
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_WIDTH,
        projection_class_embeddings_input_dim=_WIDTH + 6 * _TIME_WIDTH,
        **extras,
    )
    # As torch initialises it, a network hardly says what it was told.
    torch.nn.init.normal_(unet.conv_out.weight, std=0.2)
    make = StableDiffusionXLInpaintPipeline if kind == "xl-inpaint" else StableDiffusionXLPipeline
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.2, 0.8]}
    return make(
        vae=_vae(scaling_factor=0.13025, **(statistics if alone else {})),
        text_encoder=None if alone else _text_encoder(CLIPTextModel, tokenizer),
        tokenizer=None if alone else tokenizer,
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=not alone,
        add_watermarker=False,
    )


def save_refiner(base: Path, folder: Path) -> Path:
    """Writes a refiner of SDXL, which decodes with the base's autoencoder."""
    torch.manual_seed(1)
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer_2")
    unet = _unet(
        cross_attention_dim=_WIDTH,
        attention_head_dim=[1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_WIDTH,
        projection_class_embeddings_input_dim=_WIDTH + 5 * _TIME_WIDTH,
    )
    torch.nn.init.normal_(unet.conv_out.weight, std=0.2)
    StableDiffusionXLImg2ImgPipeline(
        vae=AutoencoderKL.from_pretrained(base / "vae"),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder / "refiner")
    return folder / "refiner"


def _sd3(kind: str) -> Any:
    scheduler, extras = SD3_KINDS[kind]
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_PATH / "tokenizer")
    tokenizer_2 = CLIPTokenizer.from_pretrained(EMBEDDED_PATH / "tokenizer", pad_token="!")
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        # As many as diffusers' pipeline for inpainting asks for.
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=2 * _WIDTH + 8,
        pooled_projection_dim=2 * _WIDTH,
        pos_embed_max_size=12,
        **extras,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    t5_tokenizer, t5 = (None, None) if kind == "sd3-bare" else _t5(2 * _WIDTH + 8)
    return StableDiffusion3Pipeline(
        vae=_vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=_text_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer_2=tokenizer_2,
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
        transformer=transformer,
        scheduler=scheduler,
    )


def _flux(kind: str) -> Any:
    scheduler, extras = FLUX_KINDS[kind]
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_PATH / "tokenizer")
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
        axes_dims_rope=(4, 4, 8),
        **extras,
    )
    # Without guidance by a second row a text says still less.
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.3)
    t5_tokenizer, t5 = _t5(_WIDTH)
    return FluxPipeline(
        vae=_vae(scaling_factor=0.3611, shift_factor=1.5),
        text_encoder=_text_encoder(CLIPTextModel, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
        scheduler=scheduler,
    )


def _t5(width: int) -> tuple[Any, Any]:
    letters = "\N{LOWER ONE EIGHTH BLOCK}abcdefghijklmnopqrstuvwxyz"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((each, -1.0) for each in letters)]
    config = T5Config(
        vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return T5Tokenizer(pieces, extra_ids=0), T5EncoderModel(config)


def _unet(**more: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=16,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        **{"in_channels": 4, **more},
    )


def _vae(**more: Any) -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        layers_per_block=1,
        **{"latent_channels": 4, **more},
    )


def _text_encoder(kind: Any, tokenizer: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        projection_dim=_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return kind(config)


class Reference:
    """A folder's own pipeline of diffusers, drawing one request after another."""

    def __init__(self, folder: Path) -> None:
        parts = DiffusionPipeline.load_config(folder)
        absent = {name: None for name, of in parts.items() if of == [None, None]}
        self.pipeline: Any = DiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, **absent
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self._config = self.pipeline.scheduler.config

    def draw(self, request: Request, **more: Any) -> np.ndarray:
        self.pipeline.scheduler = scheduler_for(request.sampler, self._config, request.schedule)
        return draw_with_pipeline(self.pipeline, request, **more)


def draw_with_pipeline(pipeline: Any, request: Request, **more: Any) -> np.ndarray:
    """What diffusers draws for a request, (height, width, 3) integers wide enough to subtract."""
    if request.negative_prompt:
        more["negative_prompt"] = request.negative_prompt
    output = pipeline(
        request.prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
        **more,
    )
    picture: np.ndarray = (output.images[0] * 255).round().astype(np.int16)
    return picture
