"""Pipelines as a single file holds them: their weights by the names that the original training code gave them.

The way back from what diffusers' `convert_ldm_unet_checkpoint`, `convert_ldm_vae_checkpoint` and
`convert_open_clip_checkpoint` do.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.integration.engine.pipelines import SD_BETAS
from text2image.engine.layouts.structure import CLIP, OPEN_CLIP

Weights = dict[str, torch.Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def tiny_pipeline(kind: str, tokenizer: Any) -> StableDiffusionPipeline:
    """A small pipeline of the structure of Stable Diffusion 1.x or 2.x: `sd1` or `sd2`."""
    torch.manual_seed(0)
    second = kind == "sd2"
    # Heads have 64 channels in 2.x, and there are 8 of them in 1.x.
    widths, heads = ((64, 128), [1, 2]) if second else ((32, 64), 8)
    unet = UNet2DConditionModel(
        sample_size=96 if second else 64,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=heads,
        use_linear_projection=second,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=23 if second else 2,
            num_attention_heads=1,
            hidden_act="gelu" if second else "quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )
    betas = {**SD_BETAS, "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
    scheduler = (
        DDIMScheduler(**betas, prediction_type="v_prediction")
        if second
        else PNDMScheduler(
            **{key: value for key, value in betas.items() if key != "clip_sample"},
            skip_prk_steps=True,
        )
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_xl(tokenizer: Any, tokenizer_2: Any) -> StableDiffusionXLPipeline:
    """A small pipeline of the structure of Stable Diffusion XL."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=192,
        attention_head_dim=[1, 2],
        use_linear_projection=True,
        transformer_layers_per_block=[1, 2],
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=256 * 6 + 128,
    )
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        scaling_factor=0.13025,
    )
    text = {"vocab_size": 49408, "num_hidden_layers": 2, "intermediate_size": 64}
    text |= {"bos_token_id": 49406, "eos_token_id": 49407}
    first = CLIPTextConfig(**text, hidden_size=64, num_attention_heads=1)
    second = CLIPTextConfig(
        **text, hidden_size=128, num_attention_heads=2, projection_dim=128, hidden_act="gelu"
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def original_weights(pipeline: StableDiffusionPipeline) -> Weights:
    """All weights of a pipeline by their original names."""
    second = pipeline.unet.config.use_linear_projection
    text = open_clip_weights if second else clip_weights
    prefix = OPEN_CLIP if second else CLIP
    weights = {
        **unet_weights(pipeline.unet),
        **vae_weights(pipeline.vae),
        **text(pipeline.text_encoder, prefix),
        # As training leaves it behind.
        "betas": torch.linspace(0, 1, 10),
    }
    if second:
        # One layer more, as OpenCLIP's encoder has it and Stable Diffusion 2.x does not use it.
        last = f"{OPEN_CLIP}transformer.resblocks.22."
        weights |= {
            name.replace("resblocks.22.", "resblocks.23."): torch.randn_like(value)
            for name, value in weights.items()
            if name.startswith(last)
        }
    return {name: value.clone().contiguous() for name, value in weights.items()}


def text_state(encoder: Any) -> Weights:
    """The weights of an encoder; since version 5.6 of transformers not all have the word in front."""
    return {name.removeprefix("text_model."): each for name, each in encoder.state_dict().items()}


def _renamed(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        name = name.replace(new, old)
    return name


def unet_weights(unet: UNet2DConditionModel) -> Weights:
    layers = unet.config.layers_per_block
    weights = {}
    for name, value in unet.state_dict().items():
        words = name.split(".")
        if words[0] == "down_blocks":
            block, layer, rest = int(words[1]), int(words[3]), ".".join(words[4:])
            place = 1 + block * (layers + 1) + layer
            if words[2] == "downsamplers":
                old = f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
            elif words[2] == "resnets":
                old = f"input_blocks.{place}.0.{_renamed(rest, RESNET)}"
            else:
                old = f"input_blocks.{place}.1.{rest}"
        elif words[0] == "up_blocks":
            block, layer, rest = int(words[1]), int(words[3]), ".".join(words[4:])
            place = block * (layers + 1) + layer
            if words[2] == "upsamplers":
                attends = "CrossAttn" in unet.config.up_block_types[block]
                last = (block + 1) * (layers + 1) - 1
                old = f"output_blocks.{last}.{2 if attends else 1}.{rest}"
            elif words[2] == "resnets":
                old = f"output_blocks.{place}.0.{_renamed(rest, RESNET)}"
            else:
                old = f"output_blocks.{place}.1.{rest}"
        elif words[0] == "mid_block":
            rest = ".".join(words[3:])
            place = 1 if words[1] == "attentions" else 2 * int(words[2])
            changed = rest if words[1] == "attentions" else _renamed(rest, RESNET)
            old = f"middle_block.{place}.{changed}"
        else:
            old = _renamed(
                name,
                {
                    "time_embedding.linear_1": "time_embed.0",
                    "time_embedding.linear_2": "time_embed.2",
                    "conv_in": "input_blocks.0.0",
                    "conv_norm_out": "out.0",
                    "conv_out": "out.2",
                    "add_embedding.linear_1": "label_emb.0.0",
                    "add_embedding.linear_2": "label_emb.0.2",
                },
            )
        weights[f"model.diffusion_model.{old}"] = value
    return weights


def vae_weights(vae: AutoencoderKL) -> Weights:
    last = len(vae.config.block_out_channels) - 1
    weights = {}
    for name, value in vae.state_dict().items():
        words = name.split(".")
        if words[1] == "down_blocks":
            kind = "block" if words[3] == "resnets" else "downsample"
            rest = ".".join(words[4:] if kind == "block" else words[5:])
            old = f"encoder.down.{words[2]}.{kind}.{rest}"
        elif words[1] == "up_blocks":
            kind = "block" if words[3] == "resnets" else "upsample"
            rest = ".".join(words[4:] if kind == "block" else words[5:])
            old = f"decoder.up.{last - int(words[2])}.{kind}.{rest}"
        elif words[1] == "mid_block" and words[2] == "resnets":
            old = f"{words[0]}.mid.block_{int(words[3]) + 1}.{'.'.join(words[4:])}"
        elif words[1] == "mid_block":
            attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}
            rest = _renamed(".".join(words[4:]), {**attention, "to_out.0": "proj_out"})
            old = f"{words[0]}.mid.attn_1.{rest}"
            # Where diffusers has linear layers, the original has convolutions of one pixel.
            value = value[:, :, None, None] if value.ndim == 2 else value
        else:
            old = name.replace("conv_norm_out", "norm_out")
        weights[f"first_stage_model.{old.replace('conv_shortcut', 'nin_shortcut')}"] = value
    return weights


def clip_weights(encoder: Any, prefix: str) -> Weights:
    """As transformers names them, and once kept them."""
    return {
        **{f"{prefix}{name}": value for name, value in text_state(encoder).items()},
        f"{prefix}embeddings.position_ids": torch.arange(77)[None],
    }


def open_clip_weights(encoder: Any, prefix: str) -> Weights:
    """As OpenCLIP names them; queries, keys and values are one matrix there."""
    text = text_state(encoder)
    names = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding": "token_embedding",
        "final_layer_norm": "ln_final",
        "encoder.layers.": "transformer.resblocks.",
        **TEXT_LAYER,
    }
    weights = {}
    for name, value in text.items():
        if ".self_attn.q_proj." in name:
            parts = [text[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            place, kind = _renamed(name.partition(".self_attn.")[0], names), name.rpartition(".")[2]
            weights[f"{prefix}{place}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif name == "text_projection.weight":
            weights[f"{prefix}text_projection"] = value.T
        elif not any(f".self_attn.{each}_proj." in name for each in "kv"):
            weights[prefix + _renamed(name, names)] = value
    width = text["final_layer_norm.weight"].shape[0]
    unused = torch.zeros(width, width)
    return {f"{prefix}text_projection": unused, **weights}
