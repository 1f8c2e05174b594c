"""Small pipelines of many classes with random weights, and the text encoders and tokenizers that they read with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from tests.integration.engine.pipelines import _t5, _vae

_FLOW = diffusers.FlowMatchEulerDiscreteScheduler
_WIDTH = 32
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;<>|_'\"-\n"


def save(named: str, folder: Path) -> Path:
    """Writes a pipeline of a class that `MAKERS` names."""
    torch.manual_seed(0)
    pipeline = MAKERS[named]()
    for network in (getattr(pipeline, part, None) for part in ("transformer", "unet")):
        if network is not None:
            _enliven(network)
    pipeline.save_pretrained(folder / named)
    return folder / named


def _enliven(network: Any) -> None:
    """As torch initialises it, a network hardly says what it was told."""
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and "norm" not in name:
            torch.nn.init.normal_(module.weight, std=0.15)


def t5_parts(number: str = "") -> dict[str, Any]:
    tokenizer, encoder = _t5(_WIDTH)
    return {f"tokenizer{number}": tokenizer, f"text_encoder{number}": encoder}


def gemma_tokenizer() -> Any:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *_LETTERS.replace("\n", "")]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = transformers.GemmaTokenizer(vocab=vocabulary)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return tokenizer


def gemma_parts() -> dict[str, Any]:
    config = transformers.Gemma2Config(
        head_dim=8,
        hidden_size=_WIDTH,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
    )
    return {"tokenizer": gemma_tokenizer(), "text_encoder": transformers.Gemma2Model(config)}


def qwen_tokenizer() -> Any:
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {
        word: number for number, word in enumerate([*marks, *sorted(ByteLevel.alphabet())])
    }
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": marks[1:]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def _pixart(kind: Any) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=_WIDTH,
        cross_attention_dim=24,
        in_channels=4,
        out_channels=8,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler()
    return kind(transformer=transformer, vae=_vae(), scheduler=scheduler, **t5_parts())


def _sana(kind: Any, scheduler: Any, **more: Any) -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=_WIDTH,
        sample_size=16,
        patch_size=1,
        **more,
    )
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    return kind(transformer=transformer, vae=vae, scheduler=scheduler, **gemma_parts())


def _aura_flow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=_WIDTH,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        transformer=transformer, vae=_vae(), scheduler=_FLOW(), **t5_parts()
    )


def _lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 32, 32),
        cap_feat_dim=_WIDTH,
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        vae=_vae(shift_factor=0.1),
        scheduler=_FLOW(shift=6.0),
        **gemma_parts(),
    )


def _hunyuan_dit() -> Any:
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=_WIDTH,
        cross_attention_dim_t5=_WIDTH,
        pooled_projection_dim=16,
        hidden_size=24,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS.strip()]
    words += [f"##{letter}" for letter in _LETTERS.strip()]
    bert = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return diffusers.HunyuanDiTPipeline(
        transformer=transformer,
        vae=_vae(),
        scheduler=diffusers.DDPMScheduler(clip_sample=False),
        text_encoder=transformers.BertModel(bert),
        tokenizer=transformers.BertTokenizer(
            vocab={word: number for number, word in enumerate(words)}, model_max_length=77
        ),
        **t5_parts("_2"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _cog_view3() -> Any:
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=_WIDTH,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=16,
        sample_size=8,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return diffusers.CogView3PlusPipeline(
        transformer=transformer, vae=_vae(), scheduler=scheduler, **t5_parts()
    )


def _cog_view4() -> Any:
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=_WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
    )
    config = transformers.GlmConfig(
        hidden_size=_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=64,
        pad_token_id=0,
        eos_token_id=1,
    )
    scheduler = _FLOW(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return diffusers.CogView4Pipeline(
        transformer=transformer,
        vae=_vae(),
        scheduler=scheduler,
        text_encoder=transformers.GlmModel(config),
        tokenizer=gemma_tokenizer(),
    )


def _chroma() -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    vae = _vae(scaling_factor=0.3611, shift_factor=1.5)
    return diffusers.ChromaPipeline(
        transformer=transformer, vae=vae, scheduler=_FLOW(), **t5_parts()
    )


def _qwen_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "mrope_section": [1, 1, 2],
                "rope_type": "default",
                "rope_theta": 1000000.0,
            },
            "vocab_size": 300,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
        vocab_size=300,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return diffusers.QwenImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=_FLOW(use_dynamic_shifting=True),
        text_encoder=_qwen_vl(),
        tokenizer=qwen_tokenizer(),
    )


def _qwen3(kind: Any, layers: int = 2) -> Any:
    config = transformers.Qwen3Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=300,
    )
    return kind(config)


def _z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    return diffusers.ZImagePipeline(
        transformer=transformer,
        vae=_vae(shift_factor=0.1),
        scheduler=_FLOW(shift=3.0),
        text_encoder=_qwen3(transformers.Qwen3Model),
        tokenizer=qwen_tokenizer(),
    )


def _ovis_image() -> Any:
    transformer = diffusers.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.OvisImagePipeline(
        transformer=transformer,
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1),
        scheduler=_FLOW(use_dynamic_shifting=True),
        text_encoder=_qwen3(transformers.Qwen3Model),
        tokenizer=qwen_tokenizer(),
    )


def _flux2_klein() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    return diffusers.Flux2KleinPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=_FLOW(use_dynamic_shifting=True),
        # It reads its 9th, 18th and 27th layer.
        text_encoder=_qwen3(transformers.Qwen3ForCausalLM, layers=28),
        tokenizer=qwen_tokenizer(),
    )


def _bria() -> Any:
    transformer = diffusers.BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    return diffusers.BriaPipeline(
        transformer=transformer,
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1),
        scheduler=_FLOW(use_dynamic_shifting=True),
        **t5_parts(),
    )


def _kandinsky3() -> Any:
    unet = diffusers.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=16,
        encoder_hid_dim=_WIDTH,
    )
    movq = diffusers.VQModel(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        num_vq_embeddings=12,
        norm_type="spatial",
        vq_embed_dim=4,
    )
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    return diffusers.Kandinsky3Pipeline(unet=unet, movq=movq, scheduler=scheduler, **t5_parts())


def _lumina() -> Any:
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=_WIDTH,
    )
    return diffusers.LuminaPipeline(
        transformer=transformer, vae=_vae(), scheduler=_FLOW(), **gemma_parts()
    )


def _hunyuan_image() -> Any:
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=_WIDTH,
        rope_axes_dim=(8, 8),
    )
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=64,
        scaling_factor=0.75,
    )
    letters = transformers.T5Config(
        vocab_size=384, d_model=_WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4
    )
    return diffusers.HunyuanImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=_FLOW(shift=5.0),
        text_encoder=_qwen_vl(),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=transformers.T5EncoderModel(letters),
        tokenizer_2=transformers.ByT5Tokenizer(),
        guider=diffusers.AdaptiveProjectedMixGuidance(),
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "PixArtAlphaPipeline": lambda: _pixart(diffusers.PixArtAlphaPipeline),
    "PixArtSigmaPipeline": lambda: _pixart(diffusers.PixArtSigmaPipeline),
    "SanaPipeline": lambda: _sana(diffusers.SanaPipeline, _FLOW(shift=7.0)),
    "SanaSprintPipeline": lambda: _sana(
        diffusers.SanaSprintPipeline,
        diffusers.SCMScheduler(),
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    ),
    "AuraFlowPipeline": _aura_flow,
    "Lumina2Pipeline": _lumina2,
    "HunyuanDiTPipeline": _hunyuan_dit,
    "CogView3PlusPipeline": _cog_view3,
    "CogView4Pipeline": _cog_view4,
    "ChromaPipeline": _chroma,
    "QwenImagePipeline": _qwen_image,
    "ZImagePipeline": _z_image,
    "OvisImagePipeline": _ovis_image,
    "Flux2KleinPipeline": _flux2_klein,
    "BriaPipeline": _bria,
    "Kandinsky3Pipeline": _kandinsky3,
    "LuminaPipeline": _lumina,
    "HunyuanImagePipeline": _hunyuan_image,
}
