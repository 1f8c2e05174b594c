"""One sample's walk from noise to picture: a diffusers scheduler of its own for each sample."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from typing import Any

import torch

from text2image.core.messages import Sampler, Schedule
from text2image.engine.samplers.registry import scheduler_for

# Prepared schedules to copy from, by sampler, schedule and step count.
_MAX_TEMPLATES = 64


class Trajectory:
    """The timesteps of one sample and its scheduler's memory of the steps taken."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._takes = inspect.signature(scheduler.step).parameters
        # Schedules stay on the CPU: looking a timestep up on a GPU would wait for it at every step.
        self._timesteps: torch.Tensor = scheduler.timesteps

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the initial latents."""
        return float(self._scheduler.init_noise_sigma)

    def timestep(self, step: int) -> float:
        """The training timestep at which step number `step` evaluates the network."""
        return float(self._timesteps[step])

    def scale(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """The network's input for latents of shape (1, C, h, w)."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self._timesteps[step])
        return scaled

    def step(
        self,
        prediction: torch.Tensor,
        step: int,
        latents: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes a step; the next latents and the picture's latents as predicted now, both (1, C, h, w)."""
        # As diffusers' pipelines call it.
        options = {"generator": generator, "eta": 0.0}
        taken = {name: value for name, value in options.items() if name in self._takes}
        output = self._scheduler.step(prediction, self._timesteps[step], latents, **taken)
        return output.prev_sample, self._predicted(output)

    def _predicted(self, output: Any) -> torch.Tensor:
        for name in ("pred_original_sample", "denoised"):
            predicted = getattr(output, name, None)
            if predicted is not None:
                return torch.as_tensor(predicted)
        # The multistep solvers keep their data predictions instead of returning them.
        history = [
            kept for kept in getattr(self._scheduler, "model_outputs", []) if kept is not None
        ]
        return torch.as_tensor(history[-1] if history else output.prev_sample)


class Samplers:
    """Makes trajectories for one model, whose scheduler configuration names its noise schedule."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._templates: OrderedDict[tuple[Sampler, Schedule | None, int], Any] = OrderedDict()

    def trajectory(self, sampler: Sampler, schedule: Schedule | None, steps: int) -> Trajectory:
        """A fresh trajectory. Copied from a prepared one: building a noise schedule takes longer than copying it."""
        return Trajectory(copy.deepcopy(self._template(sampler, schedule, steps)))

    def _template(self, sampler: Sampler, schedule: Schedule | None, steps: int) -> Any:
        key = (sampler, schedule, steps)
        if key not in self._templates:
            scheduler = scheduler_for(sampler, self._config, schedule)
            scheduler.set_timesteps(steps, device="cpu")
            # Where the first two timesteps are the same, it would begin with the second.
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(0)
            self._templates[key] = scheduler
        self._templates.move_to_end(key)
        while len(self._templates) > _MAX_TEMPLATES:
            self._templates.popitem(last=False)
        return self._templates[key]
