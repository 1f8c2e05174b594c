"""Which model a single file is, by the names and shapes of its weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.integration.engine.conftest import settings_for
from tests.integration.engine.originals import (
    clip_weights,
    open_clip_weights,
    unet_weights,
    vae_weights,
)
from text2image.engine.layouts.headers import Header, Stored
from text2image.engine.layouts.single_file import configurations
from text2image.engine.layouts.structure import CLIP_XL, OPEN_CLIP_XL, unet_config
from text2image.engine.models.loading import load_model

# By kind of model: the U-Net as it is published, and what is read of its weights alone.
UNETS: dict[str, dict[str, Any]] = {
    "1.5": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "2.1": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "XL": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("version", UNETS)
def test_the_published_networks_are_read_from_the_shapes_of_their_weights(version: str) -> None:
    """At their true size, without weights."""
    with torch.device("meta"):
        published = UNet2DConditionModel(layers_per_block=2, **UNETS[version])
        weights = unet_weights(published)
        read = unet_config({name: tuple(value.shape) for name, value in weights.items()})
        again = UNet2DConditionModel.from_config(read)
    for name, value in UNETS[version].items():
        assert read[name] == (list(value) if isinstance(value, tuple) else value), name
    assert {name: each.shape for name, each in again.state_dict().items()} == {
        name: each.shape for name, each in published.state_dict().items()
    }


def test_a_stable_diffusion_xl_is_recognised_with_both_of_its_encoders(tmp_path: Path) -> None:
    def text(kind: Any, **values: Any) -> Any:
        return kind(CLIPTextConfig(vocab_size=49408, num_hidden_layers=2, **values))

    with torch.device("meta"):
        first = text(CLIPTextModel, hidden_size=768, intermediate_size=3072)
        second = text(
            CLIPTextModelWithProjection,
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1280,
            num_attention_heads=20,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        weights = {
            **unet_weights(UNet2DConditionModel(layers_per_block=2, **UNETS["XL"])),
            **vae_weights(vae),
            **clip_weights(first, CLIP_XL),
            **open_clip_weights(second, OPEN_CLIP_XL),
        }
    stored = {name: Stored("F16", tuple(value.shape)) for name, value in weights.items()}
    files = configurations(Header(stored, {}), tmp_path / "xl.safetensors")
    index = files["model_index.json"]
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
    assert index["tokenizer_2"] == ["transformers", "CLIPTokenizer"]
    encoder = files["text_encoder_2/config.json"]
    expected = {"hidden_size": 1280, "projection_dim": 1280, "num_attention_heads": 20}
    assert encoder.items() >= expected.items()
    assert files["text_encoder/config.json"]["hidden_act"] == "quick_gelu"
    assert (
        files["vae/config.json"]["scaling_factor"],
        files["unet/config.json"]["sample_size"],
    ) == (
        0.13025,
        128,
    )
    assert files["vae/config.json"]["block_out_channels"] == [128, 256, 512, 512]
    assert files["scheduler/scheduler_config.json"]["prediction_type"] == "epsilon"
    of_v = Header({**stored, "v_pred": Stored("F32", ()), "ztsnr": Stored("F32", ())}, {})
    scheduler = configurations(of_v, tmp_path / "v.safetensors")["scheduler/scheduler_config.json"]
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"]


OTHERS = {
    "an adapter": (["lora_unet_down.lora_up.weight"], "is an adapter"),
    "another adapter": (["unet.down_blocks.0.to_q.lora_A.weight"], "is an"),
    "a control network": (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
    "a diffusion transformer": (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
    "a flow transformer": (["double_blocks.0.img_attn.qkv.weight"], "is a Flux"),
    "a part of a folder": (["down_blocks.0.resnets.0.conv1.weight"], "name the folder"),
    "an autoencoder": (["decoder.conv_in.weight"], "is an autoencoder alone"),
    "something else": (["weight"], "is no checkpoint known here; read are Stable Diffusion 1.x"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_no_checkpoint_is_told_by_what_it_is(tmp_path: Path, name: str) -> None:
    names, told = OTHERS[name]
    file = tmp_path / "model.safetensors"
    save_file({each: torch.zeros(2, 2) for each in names}, file)
    with pytest.raises(OSError, match=rf"T2I_MODEL=.*model\.safetensors .*{told}"):
        load_model(settings_for(str(file)), 0, lambda detail: None)
