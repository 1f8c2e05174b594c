"""Which scheduler of diffusers a sampler is, for a model whose own scheduler configuration names its noise."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

from text2image.core.messages import Sampler, Schedule
from text2image.core.samplers import SCHEDULES_OF, TITLES
from text2image.core.validation import MAX_STEPS
from text2image.engine.samplers.closed_forms import beta_sigmas, lms_coefficient

# Each schedule is an option of its own, of which at most one may be set.
_OPTIONS = {
    Schedule.KARRAS: "use_karras_sigmas",
    Schedule.EXPONENTIAL: "use_exponential_sigmas",
    Schedule.BETA: "use_beta_sigmas",
    Schedule.LU: "use_lu_lambdas",
}
# As diffusers has it.
_DEFAULT_TRAIN_TIMESTEPS = 1000
_DEFAULT_ORIGINAL_STEPS = 50


@dataclass(frozen=True, slots=True)
class Kind:
    """A scheduler class, and what the sampler overrides in the model's configuration.

    Attributes:
        multistep: one of diffusers' solvers that spread n + 1 timesteps and leave the last one out.
        flow: for models that predict a flow, and for no others.
    """

    scheduler: Any
    overrides: Mapping[str, Any] = field(default_factory=dict)
    multistep: bool = False
    flow: bool = False


def _dpm(algorithm: str, order: int) -> Kind:
    overrides = {"algorithm_type": algorithm, "solver_order": order}
    return Kind(diffusers.DPMSolverMultistepScheduler, overrides, multistep=True)


def _quick(scheduler: Any) -> Any:
    """A scheduler class whose constructor does not set as many timesteps as the model was trained with.

    Nobody asks for those, and for DPM2 they take a third of a second. Only constructors name that number to
    `set_timesteps`, and then keep its `sigmas` on the CPU.
    """

    def set_timesteps(
        self: Any, num_inference_steps: int, device: Any = None, trained: int | None = None
    ) -> None:
        if trained is None:
            scheduler.set_timesteps(self, num_inference_steps, device)
        else:
            self.sigmas = torch.empty(0)

    return type(scheduler.__name__, (scheduler,), {"set_timesteps": set_timesteps})


# Latents are not confined to [-1, 1]: the clipping that some schedulers do to pixels by default would maim them.
_UNCLIPPED = {"clip_sample": False}
KINDS: Mapping[Sampler, Kind] = {
    Sampler.DPMPP_2M: _dpm("dpmsolver++", 2),
    Sampler.DPMPP_2M_SDE: _dpm("sde-dpmsolver++", 2),
    Sampler.DPMPP_3M: _dpm("dpmsolver++", 3),
    Sampler.DPMPP_3M_SDE: _dpm("sde-dpmsolver++", 3),
    Sampler.EULER: Kind(diffusers.EulerDiscreteScheduler),
    Sampler.EULER_ANCESTRAL: Kind(diffusers.EulerAncestralDiscreteScheduler),
    Sampler.HEUN: Kind(_quick(diffusers.HeunDiscreteScheduler), _UNCLIPPED),
    Sampler.DPM2: Kind(_quick(diffusers.KDPM2DiscreteScheduler)),
    Sampler.DPM2_ANCESTRAL: Kind(_quick(diffusers.KDPM2AncestralDiscreteScheduler)),
    Sampler.LMS: Kind(LMSDiscreteScheduler),
    # Without the Runge-Kutta steps, as every pipeline for latents has it.
    Sampler.PNDM: Kind(diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    Sampler.DDIM: Kind(diffusers.DDIMScheduler, _UNCLIPPED),
    Sampler.DDPM: Kind(diffusers.DDPMScheduler, _UNCLIPPED),
    Sampler.UNIPC: Kind(diffusers.UniPCMultistepScheduler, multistep=True),
    Sampler.DEIS: Kind(
        diffusers.DEISMultistepScheduler,
        {"algorithm_type": "deis", "solver_type": "logrho"},
        multistep=True,
    ),
    Sampler.LCM: Kind(diffusers.LCMScheduler, _UNCLIPPED),
    Sampler.TCD: Kind(diffusers.TCDScheduler, _UNCLIPPED),
    Sampler.FLOW_EULER: Kind(diffusers.FlowMatchEulerDiscreteScheduler, flow=True),
    Sampler.FLOW_HEUN: Kind(diffusers.FlowMatchHeunDiscreteScheduler, flow=True),
}
_DISTILLED = {Sampler.LCM, Sampler.TCD}


def scheduler_for(sampler: Sampler, config: Mapping[str, Any], schedule: Schedule | None) -> Any:
    """A scheduler of diffusers, made from the model's configuration; its timesteps are not set.

    Args:
        schedule: None leaves the noise levels to the configuration.

    Raises:
        ValueError: the sampler or its schedule does not fit the model, and the text says why.
    """
    kind = KINDS[sampler]
    title = TITLES[sampler]
    if str(config.get("_class_name", "")).startswith("EDM"):
        # Its network takes and gives what the others' schedulers cannot scale (Karras et al. 2022).
        raise ValueError(f"{title} is not for models that are preconditioned as EDM's")
    if kind.flow != is_flow(config):
        raise ValueError(f"{title} is {'' if kind.flow else 'not '}for models that predict a flow")
    if schedule is None:
        named = [each for each, option in _OPTIONS.items() if config.get(option)]
        schedule = named[0] if named and named[0] in SCHEDULES_OF[sampler] else None
    elif schedule not in SCHEDULES_OF[sampler]:
        raise ValueError(f"{title} has no {schedule} schedule")
    options = {option: each is schedule for each, option in _OPTIONS.items()}
    # diffusers' constructors would ask for SciPy; what it is needed for is replaced below.
    options[_OPTIONS[Schedule.BETA]] = False
    known = inspect.signature(kind.scheduler.__init__).parameters
    overrides = {**options, **kind.overrides}
    scheduler = kind.scheduler.from_config(
        config, **{name: value for name, value in overrides.items() if name in known}
    )
    if schedule is Schedule.BETA:
        scheduler.register_to_config(**{_OPTIONS[schedule]: True})
        scheduler._convert_to_beta = partial(beta_sigmas, scheduler)
    if sampler is Sampler.LMS:
        scheduler.get_lms_coefficient = partial(lms_coefficient, scheduler)
    return scheduler


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the model predicts a flow from noise to data."""
    named = str(config.get("_class_name", ""))
    return named.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"


def own_sampler(config: Mapping[str, Any]) -> Sampler | None:
    """The sampler that a model's own scheduler is; None if there is no name for it here."""
    named = config.get("_class_name")
    fitting = [each for each, kind in KINDS.items() if kind.scheduler.__name__ == named]
    for sampler in fitting:
        overrides = KINDS[sampler].overrides
        if all(config.get(name, value) == value for name, value in overrides.items()):
            return sampler
    return fitting[0] if fitting else None


def limit_steps(sampler: Sampler, config: Mapping[str, Any]) -> int:
    """The most steps that a sampler takes for a model: up to it every number works; 0 if none does."""
    trained = int(config.get("num_train_timesteps", _DEFAULT_TRAIN_TIMESTEPS))
    limit = min(MAX_STEPS, trained)
    if sampler in _DISTILLED:
        # They walk a subset of the steps that the network was distilled from.
        original = int(config.get("original_inference_steps", _DEFAULT_ORIGINAL_STEPS))
        return min(limit, original) if original <= trained else 0
    kind = KINDS[sampler]
    more = 1 if kind.multistep else 0
    offset = int(config.get("steps_offset", 0))
    if kind.flow:
        return limit
    for steps in range(1, limit + 1):
        # Spaced as "leading", the first timestep must be one that the model was trained at, and no two may be the same.
        # The other spacings need no more.
        apart = trained // (steps + more)
        if apart < 1 or (steps + more - 1) * apart + offset > trained - 1:
            return steps - 1
    return limit


def flux_levels(steps: int) -> tuple[float, ...]:
    """The noise levels that Flux is drawn at, before they are shifted; as in diffusers' `FluxPipeline`."""
    return tuple(np.linspace(1.0, 1 / steps, steps).tolist())
