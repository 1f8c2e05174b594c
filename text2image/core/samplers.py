"""The names of samplers: ours, and what A1111, diffusers, ComfyUI and others call the same."""

from __future__ import annotations

import re
from types import MappingProxyType

from text2image.core.messages import Sampler

# As A1111 writes them, and after it every tool that reads pictures.
TITLES = MappingProxyType(
    {
        Sampler.DPMPP_2M: "DPM++ 2M",
        Sampler.EULER: "Euler",
        Sampler.EULER_ANCESTRAL: "Euler a",
        Sampler.DDIM: "DDIM",
        Sampler.LCM: "LCM",
        Sampler.UNIPC: "UniPC",
    }
)
# Beside our own names and the titles. Case counts nowhere, and a space is the same as `_` and `-`.
ALIASES: MappingProxyType[Sampler, tuple[str, ...]] = MappingProxyType(
    {
        Sampler.DPMPP_2M: (
            "dpmpp_2m",
            "k_dpmpp_2m",
            "dpm++2m",
            "DPM-Solver++",
            "DPM-Solver++ 2M",
            "DPMSolverMultistep",
            "DPMSolverMultistepScheduler",
        ),
        Sampler.EULER: ("k_euler", "EulerDiscrete", "EulerDiscreteScheduler"),
        Sampler.EULER_ANCESTRAL: (
            "k_euler_a",
            "k_euler_ancestral",
            "EulerAncestralDiscrete",
            "EulerAncestralDiscreteScheduler",
        ),
        Sampler.DDIM: ("DDIMScheduler",),
        Sampler.LCM: ("LCMScheduler",),
        Sampler.UNIPC: (
            "uni_pc",
            "uni_pc_bh2",
            "UniPCMultistep",
            "UniPCMultistepScheduler",
        ),
    }
)
# Noise schedules that people add to a sampler's name.
SCHEDULES = (
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Beta",
    "Simple",
    "Trailing",
    "Turbo",
    "DDIM Uniform",
)


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


_SAMPLERS = {
    _folded(name): sampler
    for sampler in Sampler
    for name in (sampler.value, TITLES[sampler], *ALIASES[sampler])
}
_SCHEDULES = {_folded(schedule): schedule for schedule in SCHEDULES}


def sampler_of(name: str) -> Sampler | None:
    """The sampler that somebody calls so, or None if there is none."""
    return _SAMPLERS.get(_folded(name))


def split_schedule(name: str) -> tuple[Sampler, str] | None:
    """A sampler and the noise schedule that its name ends in, as `DPM++ 2M Karras`, or None if it is no such name."""
    folded = _folded(name)
    for ending, schedule in _SCHEDULES.items():
        sampler = _SAMPLERS.get(folded.removesuffix(f" {ending}"))
        if sampler and folded.endswith(f" {ending}"):
            return sampler, schedule
    return None
