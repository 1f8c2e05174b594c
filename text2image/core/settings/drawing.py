"""What is drawn where a request leaves it open, and how."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from text2image.core.guidance import parse_interval
from text2image.core.messages import PromptSyntax, Quality, Sampler
from text2image.core.samplers import sampler_of
from text2image.core.settings.group import MAX_SIDE, Group

# Layers of the largest text encoder there is.
MAX_CLIP_SKIP = 64


class Drawing(Group):
    """Defaults of requests, how prompts are read, and what fast pictures leave out."""

    default_steps: int | None = Field(
        None, ge=1, le=150, description="Steps when a request names none; the model's own if unset."
    )
    default_guidance_scale: float | None = Field(
        None,
        ge=0,
        le=30,
        description="Guidance scale when a request names none; the model's own if unset.",
    )
    default_sampler: Sampler | None = Field(
        None, description="Sampler when a request names none; the model's own if unset."
    )
    default_clip_skip: int | None = Field(
        None,
        ge=1,
        le=MAX_CLIP_SKIP,
        description="Layer of the text encoder when a request names none, where 1 is the last; the model's own if "
        "unset.",
    )
    prompt_syntax: PromptSyntax = Field(
        PromptSyntax.A1111,
        description="How prompts are read: `a1111`, where brackets weigh words, or `plain`, as they stand.",
    )
    max_prompt_chunks: int = Field(
        4,
        ge=1,
        le=16,
        description="Chunks of 75 tokens that CLIP reads of a prompt; the rest is told and not drawn.",
    )
    embeddings: Path | None = Field(
        None,
        description="Folder of textual inversions, which prompts name as their files are called; none if unset.",
    )
    quality: Quality = Field(
        Quality.EXACT,
        description="Quality when a request names none: `exact`, or `fast`, which approximates.",
    )
    guidance_interval: str = Field(
        "0-0.3",
        description="Part of its passes in which a `fast` picture is guided, as in `0.1-0.6`: 0 is before the first, 1 "
        "after the last; with `0-1` it is the exact one.",
    )
    deep_cache: int = Field(
        1,
        ge=1,
        le=20,
        description="A `fast` picture of Stable Diffusion 1.x and 2.x computes the deep part of the U-Net in the first "
        "of so many of its passes alone; 1 is in each.",
    )
    guidance_rescale: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How far guided predictions are brought back to their size without guidance, against pictures that "
        "are burnt by it: 0 is not at all, 1 altogether; if unset what suits the model.",
    )
    true_cfg_scale: float | None = Field(
        None,
        gt=1,
        le=30,
        description="Scale of the guidance away from a negative prompt by Flux, whose own `guidance_scale` is another; "
        "its pictures with one take twice the time, and if unset it is refused.",
    )
    max_side: int | None = Field(
        None,
        ge=64,
        le=MAX_SIDE,
        description="Largest width and height in pixels; twice the model's own if unset.",
    )

    @field_validator("default_sampler", mode="before")
    @classmethod
    def _check_sampler(cls, value: str | None) -> str | None:
        return (sampler_of(value) or value) if value else None

    @field_validator("prompt_syntax")
    @classmethod
    def _check_syntax(cls, value: PromptSyntax) -> PromptSyntax:
        if value not in tuple(PromptSyntax):
            raise ValueError(f"it must be one of {', '.join(PromptSyntax)}")
        return value

    @field_validator("guidance_interval")
    @classmethod
    def _check_interval(cls, value: str) -> str:
        return str(parse_interval(value))
