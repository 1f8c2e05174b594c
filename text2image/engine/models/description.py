"""What a latent diffusion model tells of itself: its limits, its samplers, and the defaults of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from text2image.core.guidance import EVERYWHERE, parse_interval
from text2image.core.messages import SIDE_MULTIPLE, ModelInfo, Sampler, Schedule
from text2image.core.samplers import SCHEDULES_OF
from text2image.core.settings import EMBEDDED_MODEL, MAX_SIDE, Settings
from text2image.core.validation import MAX_STEPS
from text2image.engine.samplers.registry import limit_steps, own_sampler
from text2image.engine.samplers.tables import offered

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint


def describe(pipeline: Any, checkpoint: Checkpoint, family: str) -> ModelInfo:
    """The model's limits and defaults, as its configuration implies them and the settings override them.

    Raises:
        ValueError: the model cannot be drawn with the sampler that is set, or with any.
    """
    settings = checkpoint.settings
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    multiple = max(SIDE_MULTIPLE, scale)
    side = int(pipeline.unet.config.sample_size) * scale
    steps, guidance, suited = _defaults(pipeline, settings.model)
    samplers = offered(pipeline.scheduler.config)
    limits = {each: limit_steps(each, pipeline.scheduler.config) for each in samplers}
    return ModelInfo(
        id=checkpoint.name,
        revision=checkpoint.revision,
        family=family,
        width=side,
        height=side,
        min_side=min(-(-64 // multiple) * multiple, side),
        max_side=settings.max_side or min(2 * side, MAX_SIDE),
        steps=settings.default_steps or steps,
        guidance_scale=guidance
        if settings.default_guidance_scale is None
        else settings.default_guidance_scale,
        sampler=_default_sampler(settings, suited, samplers),
        samplers=samplers,
        schedules=tuple(
            each for each in Schedule if any(each in SCHEDULES_OF[sampler] for sampler in samplers)
        ),
        max_steps=tuple((each, limit) for each, limit in limits.items() if limit < MAX_STEPS),
        max_prompt_tokens=int(pipeline.tokenizer.model_max_length),
        device=str(checkpoint.device),
        dtype=str(checkpoint.dtype).removeprefix("torch."),
        quality=settings.quality,
        fast=_fast(pipeline, settings),
        side_multiple=multiple,
    )


def _fast(pipeline: Any, settings: Settings) -> str:
    """What fast pictures leave out; nothing, where a network that takes the scale as an input has no second row."""
    interval = parse_interval(settings.guidance_interval)
    if interval == EVERYWHERE or pipeline.unet.config.time_cond_proj_dim is not None:
        return ""
    return f"guidance outside of {interval} of the passes"


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


def _defaults(pipeline: Any, name: str) -> tuple[int, float, Sampler]:
    """Steps, guidance scale and sampler that suit the model."""
    if pipeline.unet.config.time_cond_proj_dim is not None:
        return 4, 8.5, Sampler.LCM
    if type(pipeline.scheduler).__name__ == "LCMScheduler":
        return 4, 1.0, Sampler.LCM
    if "turbo" in name.lower():
        # Adversarially distilled: few steps, and guidance would burn the picture.
        return 1, 0.0, Sampler.EULER_ANCESTRAL
    if name == EMBEDDED_MODEL:
        return 20, 3.0, Sampler.DPMPP_2M
    return 25, 7.5, own_sampler(pipeline.scheduler.config) or Sampler.DPMPP_2M
