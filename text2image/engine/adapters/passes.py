"""Passes that reach into the network: of rows with adapters, and of rows that ControlNets steer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch

from text2image.core.messages import ModelInfo, Request
from text2image.engine.adapters.model import LOAD, LOAD_APART, ModelAdapters
from text2image.engine.controls.model import ModelControls
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import Sample

E = TypeVar("E")


class OpenPasses(Generic[E]):
    """What a model's rows may have beside its network, and the passes over batches in which some have it."""

    def __init__(
        self,
        networks: Networks,
        adapters: ModelAdapters[E] | None = None,
        controls: ModelControls | None = None,
    ) -> None:
        self._networks = networks
        self.adapters = adapters
        self.controls = controls
        # What a row takes where the network is not the usual one, less what an adapter adds.
        self._apart = 1.0
        if controls and controls.opening.missing:
            self._apart = LOAD_APART / LOAD

    def described(self, info: ModelInfo) -> ModelInfo:
        """A model's description with what there is in its folders."""
        if self.adapters:
            info = replace(info, loras=self.adapters.folder.look())
        if self.controls:
            info = replace(info, controls=self.controls.folder.look())
        return info

    def load_of(self, request: Request, calls: int) -> float:
        """What a request's rows take against plain ones, as a mean over so many calls."""
        if not request.controls:
            return self._load(request, 0, calls)
        return sum(self._load(request, call, calls) for call in range(calls)) / calls

    def load_next(self, sample: Sample) -> float:
        """The same of the next pass of a sample that has begun."""
        trajectory = sample.state.trajectory
        return self._load(sample.generation.request, trajectory.call, trajectory.table.calls)

    def _load(self, request: Request, call: int, calls: int) -> float:
        steered = self.controls.load_of(request, call, calls) if self.controls else 0.0
        if request.loras and self.adapters:
            return self.adapters.load_of(request) + steered
        return self._apart + steered if steered else 1.0

    def are_needed(self, samples: Sequence[Sample]) -> bool:
        """Whether a pass over these samples needs `predict`."""
        worn = self.adapters is not None and self.adapters.are_worn(samples)
        return worn or (self.controls is not None and self.controls.are_steering(samples))

    def predict(
        self,
        samples: Sequence[Sample],
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """As `Networks.predict`, each sample's rows with its own adapters and ControlNets."""
        inputs = latents, timesteps, embeddings
        residuals = self.controls.residuals(samples, *inputs, **more) if self.controls else ()
        if self.adapters:
            # Also where no row has any: hooks of earlier batches are taken off.
            return self.adapters.predict(samples, *inputs, guidance, residuals=residuals, **more)
        return self._networks.open().predict(*inputs, guidance, residuals=residuals, **more)
