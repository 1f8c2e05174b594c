"""Names that requests and models share, of which later versions may know more."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class _Open(StrEnum):
    """Names of which later versions may know more."""

    @classmethod
    def named(cls, name: str) -> Self:
        """The member of this name: one that only later versions know is its name and nothing more."""
        known = {member.value: member for member in cls}
        if name in known:
            return known[name]
        later = str.__new__(cls, name)
        later._name_ = later._value_ = name
        return later


class Sampler(_Open):
    """How the denoising trajectory is integrated, by the names that people use."""

    DPMPP_2M = "dpm++ 2m"
    DPMPP_2M_SDE = "dpm++ 2m sde"
    DPMPP_3M = "dpm++ 3m"
    DPMPP_3M_SDE = "dpm++ 3m sde"
    EULER = "euler"
    EULER_ANCESTRAL = "euler ancestral"
    HEUN = "heun"
    DPM2 = "dpm2"
    DPM2_ANCESTRAL = "dpm2 ancestral"
    LMS = "lms"
    PNDM = "pndm"
    DDIM = "ddim"
    DDPM = "ddpm"
    UNIPC = "unipc"
    DEIS = "deis"
    LCM = "lcm"
    TCD = "tcd"
    FLOW_EULER = "flow euler"
    FLOW_HEUN = "flow heun"


class Schedule(_Open):
    """How noise levels are spread over the steps, where it is not as the model's own configuration has it."""

    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    BETA = "beta"
    LU = "lu"


class Quality(_Open):
    """Whether a picture is the model's own to the last step, or may be approximated for less work."""

    EXACT = "exact"
    FAST = "fast"


class PromptSyntax(_Open):
    """What characters of a prompt may mean besides themselves: nothing, or what they do in A1111's web UI."""

    PLAIN = "plain"
    A1111 = "a1111"


class Input(_Open):
    """What a model draws from beside a text alone: a picture to begin with, and a mask of what to draw anew in it."""

    TEXT = "text"
    IMAGE = "image"
    MASK = "mask"


class ModelState(_Open):
    """Whether a model of a catalogue can be drawn with at once."""

    IDLE = "idle"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"
