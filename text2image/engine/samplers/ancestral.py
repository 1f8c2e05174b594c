"""Ancestral steps between noise levels far apart, where diffusers takes the root of less than nothing.

An ancestral step from noise level s to s' goes down to s'^2 / s and adds noise up to s' again (Karras et al. 2022 and
k-diffusion's `get_ancestral_step`). diffusers computes the first as sqrt(s'^2 - up^2), in fp32: where s is much
larger, the two are equal but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch


def is_ancestral(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers takes ancestral steps."""
    return "Ancestral" in type(scheduler).__name__


def use_double_precision(scheduler: Any) -> None:
    """Gives an ancestral scheduler, whose timesteps are set, its noise levels in float64."""
    levels = scheduler.sigmas.double()
    if not hasattr(scheduler, "sigmas_down"):
        scheduler.sigmas = levels
        return
    # DPM2 has each level but the first and the last twice, and between two of them one half way down in the logarithm
    # of the noise: the root of s times s'^2 / s, which is s'.
    levels = torch.cat([levels[:1], levels[1:-1:2]])
    following = torch.cat([levels[1:], levels.new_zeros(1)])
    down = torch.where(levels > 0, following**2 / levels, 0.0)
    between = torch.cat([following[:-2], levels.new_zeros(2)])
    scheduler.sigmas = _twice(levels)
    scheduler.sigmas_down = _twice(down)
    scheduler.sigmas_up = _twice((following**2 - down**2).sqrt())
    scheduler.sigmas_interpol = _twice(between)
    timesteps = scheduler.timesteps.clone()
    timesteps[1::2] = timesteps[2::2]
    scheduler.timesteps = timesteps


def _twice(levels: torch.Tensor) -> torch.Tensor:
    return torch.cat([levels[:1], levels[1:].repeat_interleave(2), levels[-1:]])
