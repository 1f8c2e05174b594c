"""What a visitor asks for, and the names that the form and the errors call its fields by."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any, Self

from text2image.core.validation import RANDOM_SEED_BITS, compose_prompt

# By the fields' names in a request.
LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Not in the picture",
    "width": "Width",
    "height": "Height",
    "steps": "Steps",
    "guidance_scale": "Guidance",
    "sampler": "Sampler",
    "seed": "Seed",
    "n": "Pictures",
    "model": "Model",
    "clip_skip": "Clip skip",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request as the form was filled in; without a seed the server picks one, and without a model its default."""

    text: str
    context: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: str
    n: int
    seed: int | None
    model: str = ""
    clip_skip: int = 0

    @property
    def prompt(self) -> str:
        return compose_prompt(self.text, self.context)

    @property
    def fields(self) -> dict[str, Any]:
        """All but the prompt, as the client takes them."""
        fields = {name: getattr(self, name) for name in LABELS if name != "prompt"}
        # Servers of earlier versions know no models.
        return {
            name: value
            for name, value in fields.items()
            if value is not None and (name != "model" or value)
        }

    def again(self, seed: int) -> Self:
        """The order that draws one of its pictures again, alone."""
        return replace(self, n=1, seed=seed)

    def varied(self) -> Self:
        """The same once more, with another seed."""
        return replace(self, n=1, seed=fresh_seed())


def fresh_seed() -> int:
    """A random seed, as short as those that a server picks."""
    return secrets.randbits(RANDOM_SEED_BITS)
