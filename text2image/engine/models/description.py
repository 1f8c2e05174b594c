"""What a latent diffusion model tells of itself: its limits, its samplers, and the defaults of a request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from text2image.core.guidance import EVERYWHERE, parse_interval
from text2image.core.messages import SIDE_MULTIPLE, ModelInfo, Sampler, Schedule
from text2image.core.samplers import SCHEDULES_OF
from text2image.core.settings import EMBEDDED_MODEL, MAX_SIDE, Settings
from text2image.core.validation import MAX_STEPS
from text2image.engine.models.prompts import FLUX_TOKENS, T5_TOKENS
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
    side = sample_size(network_of(pipeline).config) * scale
    profile = _profile(pipeline, settings.model, family)
    samplers = _samplers(pipeline)
    max_side = _max_side(pipeline, settings.max_side or min(2 * side, MAX_SIDE), scale)
    limits = {each: limit_steps(each, pipeline.scheduler.config) for each in samplers}
    return ModelInfo(
        id=checkpoint.name,
        revision=_revision(checkpoint, profile),
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
        max_prompt_tokens=_max_tokens(pipeline),
        device=str(checkpoint.device),
        dtype=str(checkpoint.dtype).removeprefix("torch."),
        quality=settings.quality,
        fast=_fast(pipeline, settings, family),
        side_multiple=multiple,
        quantization=checkpoint.saving.quantize,
        tiled_above=tiled_above(checkpoint, max_side),
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


def _max_tokens(pipeline: Any) -> int:
    """Tokens of a prompt that are read whole: T5 reads more than CLIP, and the others of a family as many."""
    if is_flux(network_of(pipeline).config):
        return FLUX_TOKENS
    if getattr(pipeline, "text_encoder_3", None):
        return T5_TOKENS
    tokenizers = (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None))
    return min(int(each.model_max_length) for each in tokenizers if each)


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


def _revision(checkpoint: Checkpoint, profile: Profile) -> str:
    """The revision of the files, or another where a setting has the same request give another picture."""
    revision = checkpoint.saving.revised(checkpoint.revision)
    rescale = checkpoint.settings.guidance_rescale
    if rescale is None or rescale == profile.rescale:
        return revision
    return hashlib.sha256(f"{revision} {rescale}".encode()).hexdigest()[:12]


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
