"""What a visitor asks for, and the names that the form and the errors call its fields by."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any, Self

from frontend.starts import Start
from text2image.core.messages import Control, LoraWeight, Sampler, steps_drawn
from text2image.core.samplers import sampler_of
from text2image.core.validation import (
    HIRES_STRENGTH,
    RANDOM_SEED_BITS,
    STRENGTH,
    compose_prompt,
)

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
    "loras": "Adapters",
    "image": "Picture",
    "strength": "Strength",
    "mask": "Mask",
    "controls": "ControlNets",
    "hires_scale": "Enlarge",
    "hires_strength": "Change while enlarging",
    "hires_steps": "Steps while enlarging",
    "hires_upscaler": "Enlarge by",
}
# Those that an order has under the same name, and always.
_PLAIN = (
    "negative_prompt",
    "width",
    "height",
    "steps",
    "guidance_scale",
    "sampler",
    "seed",
    "n",
    "model",
    "clip_skip",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request as the form was filled in; without a seed the server picks one, and without a model its default.

    With a `start` it begins from that picture, with so much `strength`; a `hires_scale` of 1 enlarges nothing.
    """

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
    loras: tuple[LoraWeight, ...] = ()
    start: Start | None = None
    strength: float = STRENGTH
    controls: tuple[Control, ...] = ()
    hires_scale: float = 1.0
    hires_strength: float = HIRES_STRENGTH
    hires_steps: int | None = None
    hires_upscaler: str = ""

    @property
    def prompt(self) -> str:
        return compose_prompt(self.text, self.context)

    @property
    def enlarges(self) -> bool:
        return self.hires_scale > 1

    @property
    def steps_taken(self) -> int:
        """Those of one picture, of all its passes; 1 where the server refuses since there would be none."""
        if self.start:
            return max(1, self._steps_drawn(self.steps, self.strength))
        if self.enlarges:
            again = self._steps_drawn(self.hires_steps or self.steps, self.hires_strength)
            return self.steps + again
        return self.steps

    def _steps_drawn(self, steps: int, strength: float) -> int:
        # One that only a server of a later version knows takes what is said of most.
        return steps_drawn(steps, strength, sampler_of(self.sampler) or Sampler.EULER)

    @property
    def fields(self) -> dict[str, Any]:
        """All but the prompt, as the client takes them; what asks for nothing is left out."""
        fields = {name: getattr(self, name) for name in _PLAIN}
        if self.loras:
            fields["loras"] = list(self.loras)
        if self.controls:
            fields["controls"] = list(self.controls)
        if self.start:
            fields |= {"image": self.start.png, "strength": self.strength, "mask": self.start.mask}
        if self.enlarges:
            names = ("hires_scale", "hires_strength", "hires_steps")
            fields |= {name: getattr(self, name) for name in names}
            fields["hires_upscaler"] = self.hires_upscaler or None
        # Servers of earlier versions know no models.
        return {
            name: value
            for name, value in fields.items()
            if value is not None and (name != "model" or value)
        }

    @property
    def files(self) -> set[bytes]:
        """What was brought for it, which is kept with it."""
        begun = (self.start.png, self.start.mask) if self.start else ()
        steered = (control.image for control in self.controls)
        return {file for file in (*begun, *steered) if isinstance(file, bytes)}

    def again(self, seed: int) -> Self:
        """The order that draws one of its pictures again, alone."""
        return replace(self, n=1, seed=seed)

    def varied(self) -> Self:
        """The same once more, with another seed."""
        return replace(self, n=1, seed=fresh_seed())


def fresh_seed() -> int:
    """A random seed, as short as those that a server picks."""
    return secrets.randbits(RANDOM_SEED_BITS)
