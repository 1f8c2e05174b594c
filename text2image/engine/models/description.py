"""What a latent diffusion model tells of itself: its limits, its samplers, and the defaults of a request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from text2image.core.guidance import EVERYWHERE, parse_interval
from text2image.core.messages import (
    SIDE_MULTIPLE,
    Input,
    ModelInfo,
    PromptSyntax,
    Sampler,
    Schedule,
)
from text2image.core.samplers import SCHEDULES_OF
from text2image.core.settings import EMBEDDED_MODEL, MAX_SIDE, Settings
from text2image.core.validation import MAX_STEPS
from text2image.engine.models import refiner
from text2image.engine.models.prompts import FLUX_TOKENS, T5_TOKENS
from text2image.engine.prompts.chunks import Language
from text2image.engine.prompts.inversions import Encoders, Inversion, find
from text2image.engine.runtimes.choice import network_of, sample_size
from text2image.engine.runtimes.forward import is_flux, is_sd3, patch_size
from text2image.engine.samplers.registry import flux_levels, limit_steps, own_sampler
from text2image.engine.samplers.tables import offered

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint


@dataclass(frozen=True, slots=True)
class Profile:
    """What suits a kind of model where a request names nothing.

    Attributes:
        sampler: None is the model's own scheduler, or what comes next to it.
        rescale: of guidance; see `latents.guided`.
    """

    steps: int
    guidance_scale: float
    sampler: Sampler | None = None
    rescale: float = 0.0


# By family, and by what `_kind` sees in a pipeline's configurations.
_PROFILES = {
    "stable-diffusion": {
        "": Profile(25, 7.5),
        "zero terminal snr": Profile(25, 7.5),
        "scale as an input": Profile(4, 8.5, Sampler.LCM),
        "lcm": Profile(4, 1.0, Sampler.LCM),
        "tcd": Profile(4, 0.0, Sampler.TCD),
        # SD-Turbo.
        "few steps": Profile(1, 0.0, Sampler.EULER_ANCESTRAL),
        "few noisy steps": Profile(1, 0.0, Sampler.EULER_ANCESTRAL),
    },
    "stable-diffusion-xl": {
        "": Profile(30, 5.0),
        # As the paper on zero terminal SNR advises (Lin et al. 2024).
        "zero terminal snr": Profile(30, 5.0, rescale=0.7),
        "scale as an input": Profile(4, 8.0, Sampler.LCM),
        "lcm": Profile(4, 1.0, Sampler.LCM),
        "tcd": Profile(4, 0.0, Sampler.TCD),
        # Lightning and Hyper-SDXL.
        "few steps": Profile(4, 0.0),
        # SDXL-Turbo.
        "few noisy steps": Profile(1, 0.0),
    },
    "stable-diffusion-3": {
        "": Profile(28, 7.0),
        # SD 3.5.
        "normalized attention": Profile(28, 3.5),
    },
    "flux": {
        # Flux.1 schnell, and dev.
        "few steps": Profile(4, 0.0),
        "scale as an input": Profile(28, 3.5),
    },
}
# Autoencoders whose encoder gives latents as these families have them.
_ENCODING = ("AutoencoderKL", "AutoencoderTiny")
_USUAL_CHUNKS: int = Settings.model_fields["max_prompt_chunks"].default
_EMBEDDED = Profile(20, 3.0, Sampler.DPMPP_2M)


def vae_factor(config: Any) -> int:
    """Pixels to a latent pixel, of a side, by the configuration of an autoencoder."""
    return int(2 ** (len(config.block_out_channels) - 1))


def describe(pipeline: Any, checkpoint: Checkpoint, family: str) -> ModelInfo:
    """The model's limits and defaults, as its configuration implies them and the settings override them.

    Raises:
        ValueError: the model cannot be drawn with the sampler that is set, or with any.
    """
    settings = checkpoint.settings
    scale = vae_factor(pipeline.vae.config)
    multiple = max(SIDE_MULTIPLE, scale * patch_size(network_of(pipeline).config))
    most = settings.max_side or MAX_SIDE
    side = min(sample_size(network_of(pipeline).config) * scale, most // multiple * multiple)
    profile = _profile(pipeline, settings.model, family)
    samplers = _samplers(pipeline)
    max_side = _max_side(pipeline, settings.max_side or min(2 * side, MAX_SIDE), scale)
    if checkpoint.refiner is not None:
        both = offered(refiner.config_of(checkpoint.refiner.folder))
        samplers = tuple(each for each in samplers if each in both)
    limits = {each: limit_steps(each, pipeline.scheduler.config) for each in samplers}
    return ModelInfo(
        id=checkpoint.name,
        revision=_revision(checkpoint, profile, family, chunked=reads_chunks(pipeline)),
        family=family,
        width=side,
        height=side,
        min_side=min(-(-64 // multiple) * multiple, side),
        max_side=max_side,
        steps=settings.default_steps or profile.steps,
        guidance_scale=profile.guidance_scale
        if settings.default_guidance_scale is None
        else settings.default_guidance_scale,
        sampler=_default_sampler(settings, _suited(pipeline, profile), samplers),
        samplers=samplers,
        schedules=tuple(
            each for each in Schedule if any(each in SCHEDULES_OF[sampler] for sampler in samplers)
        ),
        max_steps=tuple((each, limit) for each, limit in limits.items() if limit < MAX_STEPS),
        max_prompt_tokens=_max_tokens(pipeline, settings),
        device=str(checkpoint.device),
        dtype=str(checkpoint.dtype).removeprefix("torch."),
        quality=settings.quality,
        fast=_fast(pipeline, settings, family),
        side_multiple=multiple,
        quantization=checkpoint.saving.quantize,
        tiled_above=tiled_above(checkpoint, max_side),
        inputs=_inputs(pipeline, family),
        **_reading(pipeline, settings),
    )


def tiled_above(checkpoint: Checkpoint, max_side: int) -> int:
    """Pixels of the largest picture that is decoded whole; 0 if all are."""
    return checkpoint.tiles.above if checkpoint.tiles.above < max_side**2 else 0


def _samplers(pipeline: Any) -> tuple[Sampler, ...]:
    """What the model can be drawn with; Flux names its own noise levels, which only some schedulers take."""
    levels = flux_levels(2) if is_flux(network_of(pipeline).config) else None
    return offered(pipeline.scheduler.config, levels)


def _max_side(pipeline: Any, wanted: int, scale: int) -> int:
    """The largest side, no larger than the positions that a transformer has learned, in pixels."""
    config = network_of(pipeline).config
    positions = config.get("pos_embed_max_size")
    return min(wanted, positions * config.patch_size * scale) if positions else wanted


def reads_chunks(pipeline: Any) -> bool:
    """Whether CLIP alone reads prompts, in chunks, which a U-Net takes in any number."""
    return not (is_flux(network_of(pipeline).config) or is_sd3(network_of(pipeline).config))


def reading_of(pipeline: Any, settings: Settings) -> tuple[Language, list[Inversion]]:
    """How a model with CLIP alone reads prompts, and the words in them that files teach it.

    Raises:
        ValueError: the folder of these is not there.
    """
    inversions = []
    if settings.prompt_syntax is PromptSyntax.A1111:
        inversions = find(settings.embeddings, Encoders.of(pipeline))
    sizes = tuple((each.name, each.size) for each in inversions)
    return Language(settings.prompt_syntax, settings.max_prompt_chunks, sizes), inversions


def _reading(pipeline: Any, settings: Settings) -> dict[str, Any]:
    """What requests may say of how prompts are read.

    Raises:
        ValueError: the settings name a layer that is not there.
    """
    if not reads_chunks(pipeline):
        return {}
    most, asked = _layers(pipeline), settings.default_clip_skip or 0
    if most and asked > most:
        raise ValueError(
            f"T2I_DEFAULT_CLIP_SKIP is {asked}; the text encoder of {settings.model} has {most} layers"
        )
    _, inversions = reading_of(pipeline, settings)
    return {
        "embeddings": tuple(each.described for each in inversions),
        "clip_skip": asked if most else 0,
        "max_clip_skip": most,
        "prompt_syntax": settings.prompt_syntax,
    }


def _layers(pipeline: Any) -> int:
    """Layers of the text encoder with the fewest; 0 where one is not CLIP's."""
    parts = (getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2"))
    configs = [part.config for part in parts if part]
    if not all(str(getattr(each, "model_type", "")).startswith("clip") for each in configs):
        return 0
    return min(int(getattr(each, "num_hidden_layers", 12)) for each in configs)


def _max_tokens(pipeline: Any, settings: Settings) -> int:
    """Tokens of a prompt that are read, with one start and end mark: by T5 more than by CLIP, unless that is alone."""
    if is_flux(network_of(pipeline).config):
        return FLUX_TOKENS
    if getattr(pipeline, "text_encoder_3", None):
        return T5_TOKENS
    tokenizers = (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None))
    least = min(int(each.model_max_length) for each in tokenizers if each)
    marks = 2
    return settings.max_prompt_chunks * (least - marks) + marks if reads_chunks(pipeline) else least


def _inputs(pipeline: Any, family: str) -> tuple[Input, ...]:
    """What a request may give it beside a text."""
    known = family in _PROFILES
    # Of a model that is not loaded there is the name of the class alone.
    kind = getattr(pipeline.vae, "kind", type(pipeline.vae).__name__)
    return tuple(Input) if known and kind in _ENCODING else (Input.TEXT,)


def _fast(pipeline: Any, settings: Settings, family: str) -> str:
    """What fast pictures leave out."""
    left_out = []
    interval = parse_interval(settings.guidance_interval)
    # A network that takes the scale as an input has no second row, and Flux never has.
    one_row = _takes_scale(pipeline) or is_flux(network_of(pipeline).config)
    if interval != EVERYWHERE and not one_row:
        left_out.append(f"guidance outside of {interval} of the passes")
    if settings.deep_cache > 1 and family == "stable-diffusion":
        left_out.append(f"deep features in all but one of {settings.deep_cache} passes")
    return ", ".join(left_out)


def _default_sampler(settings: Settings, suited: Sampler, samplers: tuple[Sampler, ...]) -> Sampler:
    """The sampler of requests that name none: the one that is set, or else the one that suits the model.

    Raises:
        ValueError: the model cannot be drawn with the one that is set, or with any.
    """
    if not samplers:
        raise ValueError(f"{settings.model} has a scheduler that no sampler here can stand in for")
    if settings.default_sampler is None:
        return suited if suited in samplers else samplers[0]
    if settings.default_sampler not in samplers:
        raise ValueError(
            f"T2I_DEFAULT_SAMPLER is {settings.default_sampler}; {settings.model} is drawn with one of "
            f"{', '.join(samplers)}"
        )
    return settings.default_sampler


def rescale_of(pipeline: Any, settings: Settings, family: str) -> float:
    """How far guided predictions are brought back to their size without: as it is set, or else as suits the model."""
    if settings.guidance_rescale is not None:
        return settings.guidance_rescale
    return _profile(pipeline, settings.model, family).rescale


def _revision(checkpoint: Checkpoint, profile: Profile, family: str, *, chunked: bool) -> str:
    """The revision of the files, or another where a setting has the same request give another picture."""
    settings, revision = checkpoint.settings, checkpoint.saving.revised(checkpoint.revision)
    different = []
    if settings.guidance_rescale not in (None, profile.rescale):
        different.append(str(settings.guidance_rescale))
    if chunked and settings.max_prompt_chunks != _USUAL_CHUNKS:
        different.append(f"chunks {settings.max_prompt_chunks}")
    if checkpoint.refiner is not None:
        different.append(f"refiner {checkpoint.refiner.revision} {settings.refiner_switch}")
    if settings.true_cfg_scale is not None and family == "flux":
        different.append(f"true cfg {settings.true_cfg_scale}")
    if not different:
        return revision
    told = " ".join((revision, *different))
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _profile(pipeline: Any, name: str, family: str) -> Profile:
    return _EMBEDDED if name == EMBEDDED_MODEL else _PROFILES[family][_kind(pipeline)]


def _suited(pipeline: Any, profile: Profile) -> Sampler:
    return profile.sampler or own_sampler(pipeline.scheduler.config) or Sampler.DPMPP_2M


def _takes_scale(pipeline: Any) -> bool:
    """Whether the guidance scale is an input of the network (LCM, Flux dev)."""
    config = network_of(pipeline).config
    return config.get("time_cond_proj_dim") is not None or bool(config.get("guidance_embeds"))


def _kind(pipeline: Any) -> str:
    """What a model was made for, by the configurations of its network and its scheduler; empty if nothing in special.

    Models that are distilled to a few steps are published with schedulers whose last timestep is their first
    ("trailing"); of others that are spaced so, zero terminal SNR asks for it.
    """
    config = pipeline.scheduler.config
    network = network_of(pipeline).config
    if is_sd3(network):
        return "normalized attention" if network.qk_norm else ""
    if _takes_scale(pipeline):
        return "scale as an input"
    if is_flux(network):
        return "few steps"
    match type(pipeline.scheduler).__name__:
        case "LCMScheduler":
            return "lcm"
        case "TCDScheduler":
            return "tcd"
    if config.get("rescale_betas_zero_snr"):
        return "zero terminal snr"
    if config.get("timestep_spacing") != "trailing" or config.get("prediction_type") != "epsilon":
        return ""
    match type(pipeline.scheduler).__name__:
        case "EulerAncestralDiscreteScheduler":
            return "few noisy steps"
        case "EulerDiscreteScheduler":
            return "few steps"
    return ""
