"""What any pipeline of diffusers tells of itself: limits and defaults from its signature and configurations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from text2image.core.messages import SIDE_MULTIPLE, ModelInfo, Sampler
from text2image.core.settings import MAX_SIDE
from text2image.engine.models.description import tiled_above
from text2image.engine.samplers.registry import own_sampler

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

FAMILY = "general"
# Of pipelines that have no network to pause at: they are drawn in one go.
WHOLE = "general, whole"
# The networks that a pipeline asks in each step, by their names in it.
_NETWORKS = ("transformer", "transformer_2", "unet", "prior", "decoder")
_DEFAULT_SIDE = 1024
_DEFAULT_STEPS = 30
_DEFAULT_TOKENS = 77
# Tokenizers that know no limit name a huge one.
_MOST_TOKENS = 4096


def networks_of(pipeline: Any) -> list[str]:
    """Names of the networks whose calls are its steps."""
    return [
        name for name in _NETWORKS if isinstance(getattr(pipeline, name, None), torch.nn.Module)
    ]


def guidance_of(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """The argument that the scale of guidance is; None if there is none.

    Of Qwen-Image's two it is the one that its models have: `guidance_scale` is None there.
    """
    for name in ("guidance_scale", "true_cfg_scale"):
        if name in parameters and isinstance(parameters[name].default, int | float):
            return name
    return None


def describe(pipeline: Any, checkpoint: Checkpoint) -> ModelInfo:
    """The pipeline's limits and defaults, less what the settings override.

    Raises:
        ValueError: the settings name a sampler that is not its own.
    """
    settings = checkpoint.settings
    parameters = inspect.signature(pipeline.__call__).parameters
    multiple = _multiple(pipeline)
    most = settings.max_side or MAX_SIDE
    height, width = (
        max(multiple, min(_side(pipeline, parameters, name), most) // multiple * multiple)
        for name in ("height", "width")
    )
    sampler = _sampler(pipeline)
    if settings.default_sampler not in (None, sampler):
        raise ValueError(
            f"T2I_DEFAULT_SAMPLER is {settings.default_sampler}; {settings.model} is drawn with its own, {sampler}"
        )
    steps = parameters["num_inference_steps"].default
    guidance = guidance_of(parameters)
    scale = 1.0 if guidance is None else float(parameters[guidance].default)
    largest = settings.max_side or min(2 * max(height, width), MAX_SIDE)
    return ModelInfo(
        id=checkpoint.name,
        revision=checkpoint.saving.revised(checkpoint.revision),
        family=FAMILY if networks_of(pipeline) else WHOLE,
        width=width,
        height=height,
        min_side=min(-(-64 // multiple) * multiple, width, height),
        max_side=largest,
        steps=settings.default_steps or (steps if isinstance(steps, int) else _DEFAULT_STEPS),
        guidance_scale=scale
        if settings.default_guidance_scale is None
        else settings.default_guidance_scale,
        sampler=sampler,
        samplers=(sampler,),
        max_prompt_tokens=_max_tokens(pipeline, parameters),
        device=str(checkpoint.device),
        dtype=str(checkpoint.dtype).removeprefix("torch."),
        quality=settings.quality,
        side_multiple=multiple,
        quantization=checkpoint.saving.quantize,
        tiled_above=tiled_above(checkpoint, largest)
        if hasattr(getattr(pipeline, "vae", None), "enable_tiling")
        else 0,
    )


def _sampler(pipeline: Any) -> Sampler:
    """The model's own scheduler; one that has no name here goes by its class's."""
    config = pipeline.scheduler.config
    named = type(pipeline.scheduler).__name__.removesuffix("Scheduler")
    return own_sampler({**config, "_class_name": type(pipeline.scheduler).__name__}) or (
        Sampler.named(named.lower())
    )


def _multiple(pipeline: Any) -> int:
    """Pixels that a side is a multiple of: what a token stands for, which is two latent pixels or more."""
    if hasattr(pipeline, "movq"):
        # Kandinsky's round a side up to the square of the factor.
        return SIDE_MULTIPLE**2
    factor = getattr(pipeline, "vae_scale_factor", None) or SIDE_MULTIPLE
    patch = _network_config(pipeline).get("patch_size") or 2
    patch = patch[-1] if isinstance(patch, list | tuple) else patch
    return max(SIDE_MULTIPLE, int(factor) * max(2, int(patch)))


def _side(pipeline: Any, parameters: Mapping[str, inspect.Parameter], name: str) -> int:
    """The side of pictures that ask for none, in pixels."""
    default = parameters[name].default
    factor = int(getattr(pipeline, "vae_scale_factor", None) or SIDE_MULTIPLE)
    size = getattr(pipeline, "default_sample_size", None) or _network_config(pipeline).get(
        "sample_size"
    )
    if isinstance(default, int):
        return default
    if isinstance(size, list | tuple):
        size = size[0 if name == "height" else -1]
    return int(size) * factor if size else _DEFAULT_SIDE


def _network_config(pipeline: Any) -> Mapping[str, Any]:
    networks = networks_of(pipeline)
    return getattr(pipeline, networks[0]).config if networks else {}


def _max_tokens(pipeline: Any, parameters: Mapping[str, inspect.Parameter]) -> int:
    """Tokens of a prompt that are read whole."""
    longest = parameters.get("max_sequence_length")
    if longest is not None and isinstance(longest.default, int):
        return longest.default
    tokenizer = getattr(pipeline, "tokenizer", None)
    return min(int(getattr(tokenizer, "model_max_length", _DEFAULT_TOKENS)), _MOST_TOKENS)
