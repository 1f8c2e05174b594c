"""Samplers and schedules: their names, ours and those of A1111, diffusers and ComfyUI, and which fits which."""

from __future__ import annotations

import re
from types import MappingProxyType

from text2image.core.messages import Sampler, Schedule

# As A1111 writes them, and after it every tool that reads pictures.
TITLES = MappingProxyType(
    {
        Sampler.DPMPP_2M: "DPM++ 2M",
        Sampler.DPMPP_2M_SDE: "DPM++ 2M SDE",
        Sampler.DPMPP_3M: "DPM++ 3M",
        Sampler.DPMPP_3M_SDE: "DPM++ 3M SDE",
        Sampler.EULER: "Euler",
        Sampler.EULER_ANCESTRAL: "Euler a",
        Sampler.HEUN: "Heun",
        Sampler.DPM2: "DPM2",
        Sampler.DPM2_ANCESTRAL: "DPM2 a",
        Sampler.LMS: "LMS",
        Sampler.PNDM: "PLMS",
        Sampler.DDIM: "DDIM",
        Sampler.DDPM: "DDPM",
        Sampler.UNIPC: "UniPC",
        Sampler.DEIS: "DEIS",
        Sampler.LCM: "LCM",
        Sampler.TCD: "TCD",
        Sampler.FLOW_EULER: "Flow Euler",
        Sampler.FLOW_HEUN: "Flow Heun",
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
        Sampler.DPMPP_2M_SDE: ("dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"),
        Sampler.DPMPP_3M: ("dpmpp_3m", "k_dpmpp_3m", "DPM-Solver++ 3M"),
        Sampler.DPMPP_3M_SDE: ("dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "k_dpmpp_3m_sde"),
        Sampler.EULER: ("k_euler", "EulerDiscrete", "EulerDiscreteScheduler"),
        Sampler.EULER_ANCESTRAL: (
            "k_euler_a",
            "k_euler_ancestral",
            "EulerAncestralDiscrete",
            "EulerAncestralDiscreteScheduler",
        ),
        Sampler.HEUN: ("k_heun", "HeunDiscrete", "HeunDiscreteScheduler"),
        Sampler.DPM2: (
            "dpm_2",
            "k_dpm_2",
            "kdpm_2",
            "KDPM2Discrete",
            "KDPM2DiscreteScheduler",
        ),
        Sampler.DPM2_ANCESTRAL: (
            "dpm_2_a",
            "dpm_2_ancestral",
            "k_dpm_2_a",
            "k_dpm_2_ancestral",
            "kdpm_2_a",
            "KDPM2AncestralDiscrete",
            "KDPM2AncestralDiscreteScheduler",
        ),
        Sampler.LMS: ("k_lms", "LMSDiscrete", "LMSDiscreteScheduler"),
        Sampler.PNDM: ("PNDMScheduler",),
        Sampler.DDIM: ("DDIMScheduler",),
        Sampler.DDPM: ("DDPMScheduler",),
        Sampler.UNIPC: (
            "uni_pc",
            "uni_pc_bh2",
            "UniPCMultistep",
            "UniPCMultistepScheduler",
        ),
        Sampler.DEIS: ("DEISMultistep", "DEISMultistepScheduler"),
        Sampler.LCM: ("LCMScheduler",),
        Sampler.TCD: ("TCDScheduler",),
        Sampler.FLOW_EULER: ("FlowMatchEuler", "FlowMatchEulerDiscreteScheduler"),
        Sampler.FLOW_HEUN: ("FlowMatchHeun", "FlowMatchHeunDiscreteScheduler"),
    }
)
_SIGMAS = (Schedule.KARRAS, Schedule.EXPONENTIAL, Schedule.BETA)
_NONE: tuple[Schedule, ...] = ()
# The schedules that each sampler can be drawn with beside the model's own: those of its scheduler in diffusers.
SCHEDULES_OF: MappingProxyType[Sampler, tuple[Schedule, ...]] = MappingProxyType(
    {
        Sampler.DPMPP_2M: (*_SIGMAS, Schedule.LU),
        Sampler.DPMPP_2M_SDE: (*_SIGMAS, Schedule.LU),
        Sampler.DPMPP_3M: (*_SIGMAS, Schedule.LU),
        Sampler.DPMPP_3M_SDE: (*_SIGMAS, Schedule.LU),
        Sampler.EULER: _SIGMAS,
        Sampler.EULER_ANCESTRAL: _NONE,
        Sampler.HEUN: _SIGMAS,
        Sampler.DPM2: _SIGMAS,
        Sampler.DPM2_ANCESTRAL: _SIGMAS,
        Sampler.LMS: _SIGMAS,
        Sampler.PNDM: _NONE,
        Sampler.DDIM: _NONE,
        Sampler.DDPM: _NONE,
        Sampler.UNIPC: _SIGMAS,
        Sampler.DEIS: _SIGMAS,
        Sampler.LCM: _NONE,
        Sampler.TCD: _NONE,
        Sampler.FLOW_EULER: _SIGMAS,
        Sampler.FLOW_HEUN: _NONE,
    }
)
# Samplers that ask the network twice in each step but the last.
_TWICE = frozenset({Sampler.HEUN, Sampler.DPM2, Sampler.DPM2_ANCESTRAL, Sampler.FLOW_HEUN})
# As A1111 writes schedules, in a line of their own or behind a sampler's name.
SCHEDULE_TITLES = MappingProxyType({schedule: schedule.value.title() for schedule in Schedule})
# What people call the schedule that a model came with.
OWN_SCHEDULES = ("Automatic", "Default", "Normal", "Uniform")
# Schedules that other tools have, and diffusers has not.
_OTHER_SCHEDULES = (
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
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
_SCHEDULES = {_folded(title): schedule for schedule, title in SCHEDULE_TITLES.items()}
_OWN = {"", *map(_folded, OWN_SCHEDULES)}
# Behind a sampler's name; InvokeAI writes Karras as `_k`.
_ENDINGS = {
    **{_folded(title): title for title in (*OWN_SCHEDULES, *_OTHER_SCHEDULES)},
    **{_folded(title): title for title in SCHEDULE_TITLES.values()},
    "k": SCHEDULE_TITLES[Schedule.KARRAS],
}


def network_calls(sampler: Sampler, steps: int) -> int:
    """How often a sampler asks the network in so many steps."""
    if asks_twice(sampler):
        return 2 * steps - 1
    # Its first step is made of two.
    return steps + 1 if sampler is Sampler.PNDM and steps > 1 else steps


def asks_twice(sampler: Sampler) -> bool:
    """Whether a sampler asks the network twice in each step but the last."""
    return sampler in _TWICE


def sampler_of(name: str) -> Sampler | None:
    """The sampler that somebody calls so, or None if there is none."""
    return _SAMPLERS.get(_folded(name))


def schedule_of(name: str) -> Schedule | None:
    """The schedule that somebody calls so, or None if there is none, or if it is the model's own."""
    return _SCHEDULES.get(_folded(name))


def is_own_schedule(name: str) -> bool:
    """Whether the schedule that somebody calls so is the one that a model came with."""
    return _folded(name) in _OWN


def split_schedule(name: str) -> tuple[Sampler, str] | None:
    """A sampler and the schedule that its name ends in, as `DPM++ 2M Karras`, or None if it is no such name.

    The schedule may be one that is not drawn with here.
    """
    folded = _folded(name)
    for ending, schedule in _ENDINGS.items():
        sampler = _SAMPLERS.get(folded.removesuffix(f" {ending}"))
        if sampler and folded.endswith(f" {ending}"):
            return sampler, schedule
    return None
