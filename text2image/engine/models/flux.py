"""Flux.1 dev and schnell: a transformer that predicts a flow and has its guidance built in, or needs none.

The mathematics is that of diffusers' `FluxPipeline.__call__`, taken apart into steps; a sample drawn here alone equals
the pipeline's picture for the same seed. Guidance by a second text, diffusers' `true_cfg_scale`, is a second row of the
same pass. Latents are packed into patches where the network is called, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.guidance import EVERYWHERE
from text2image.core.messages import ModelInfo, Pixels, Request
from text2image.engine import devices
from text2image.engine.adapters.model import adapters_of
from text2image.engine.adapters.passes import OpenPasses
from text2image.engine.models import latents
from text2image.engine.models.contract import Pending, Unread
from text2image.engine.models.description import describe, vae_factor
from text2image.engine.models.init_images import ImageEncoder
from text2image.engine.models.previews import Projection
from text2image.engine.models.prompts import FluxPromptEncoder, stacked, unread_ends
from text2image.engine.runtimes.choice import networks_of
from text2image.engine.runtimes.forward import FLUX_PATCH
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import Plan, Sample
from text2image.engine.samplers.registry import flux_levels
from text2image.engine.samplers.tables import Tables
from text2image.engine.samplers.update import Trajectory

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

FAMILY = "flux"
# Of noise levels, for large pictures, where the scheduler shifts them by size and names no limit; as in diffusers.
_MAX_SHIFT = 1.15


@dataclass(slots=True)
class State:
    """A sample's tensors, as `latents` wants them.

    Attributes:
        embeddings: of the prompts, (rows, tokens, width).
        pooled: of the prompts, (rows, D).
        scale: of guidance, (1, 1), for a network that takes it as an input.
    """

    trajectory: Trajectory
    guided: range
    embeddings: torch.Tensor
    pooled: torch.Tensor
    scale: torch.Tensor | None


class Flux:
    """A loaded pipeline that keeps the model contract."""

    def __init__(
        self,
        pipeline: Any,
        networks: Networks,
        info: ModelInfo,
        device: torch.device,
        true_scale: float | None = None,
        opened: OpenPasses[FluxPromptEncoder] | None = None,
    ) -> None:
        """Takes the parts of a diffusers pipeline; of its transformer and autoencoder the configurations alone.

        Args:
            true_scale: of guidance away from a negative prompt; None for a model that is not asked to read one.
            opened: passes with adapters that pictures may be drawn with.
        """
        self.info = info
        self.max_rows = devices.max_rows(device)
        self.memory = devices.memory_of(device)
        self._device = device
        self._networks = networks
        self._open: OpenPasses[FluxPromptEncoder] = opened or OpenPasses(networks)
        self.adapters, self.controls = self._open.adapters, self._open.controls
        self._true_scale = true_scale
        self._takes_scale = bool(pipeline.transformer.config.guidance_embeds)
        self._channels = pipeline.transformer.config.in_channels // FLUX_PATCH**2
        self._dtype: torch.dtype = pipeline.transformer.dtype
        self._unscale = latents.unscaling(pipeline.vae.config)
        self._latent_scale = vae_factor(pipeline.vae.config)
        self._images = ImageEncoder(
            networks, device, latents.scaling(pipeline.vae.config), scale=self._latent_scale
        )
        self._scheduler = pipeline.scheduler.config
        self._tables = Tables(self._scheduler)
        self._prompts = FluxPromptEncoder(pipeline, device)
        self._projection = Projection(self._channels)
        self._side = devices.SideStream(device)

    def plan(self, request: Request) -> Plan:
        if request.negative_prompt.strip() and self._true_scale is None:
            reason = (
                "is not read by this model, which draws from one text alone; leave it out, or have the server set "
                "T2I_TRUE_CFG_SCALE, the scale of guidance away from it"
            )
            raise InvalidRequest(FieldViolation("negative_prompt", reason))
        self._images.prepare(request)
        plan = latents.plan(request, *self._sides(request), EVERYWHERE, self._scale_of(request))
        return replace(plan, load=plan.load * self._open.load_of(request, plan.passes))

    def _scale_of(self, request: Request) -> float:
        """The scale of guidance by a second row, which a picture has if it has a negative prompt."""
        negative = request.negative_prompt.strip()
        return self._true_scale if negative and self._true_scale is not None else 1.0

    def _sides(self, request: Request) -> tuple[int, int]:
        """Height and width in latent pixels."""
        return request.height // self._latent_scale, request.width // self._latent_scale

    @torch.inference_mode()
    def encode(self, samples: Sequence[Sample]) -> list[Unread]:
        if self.adapters is None:
            return self._encode(samples, self._prompts)
        return self.adapters.encode(samples, self._prompts, self._encode)

    def _encode(self, samples: Sequence[Sample], encoder: FluxPromptEncoder) -> list[Unread]:
        requests = [sample.generation.request for sample in samples]
        prompts = [request.prompt for request in requests]
        # Of a picture with one row nothing reads the negative prompt.
        negatives = [
            each.generation.request.negative_prompt if each.rows == 2 else "" for each in samples
        ]
        texts = prompts + [text for text in negatives if text]
        with devices.device_errors():
            self._images.encode(requests)
            encoded = dict(zip(texts, encoder.encode(texts), strict=True))
        for sample, prompt, negative in zip(samples, prompts, negatives, strict=True):
            sample.state = encoded[prompt]
            if sample.rows == 2:
                sample.state = stacked(encoded[negative], sample.state)
        ends = [unread_ends(encoder.truncated, each) for each in (prompts, negatives)]
        return [Unread(*each) for each in zip(*ends, strict=True)]

    @torch.inference_mode()
    def start(self, samples: Sequence[Sample]) -> None:
        latents.start(samples, self._initial, self._set_next)

    def _set_next(self, sample: Sample) -> None:
        latents.set_rows(sample)
        sample.load = self._open.load_next(sample)

    def _initial(self, sample: Sample) -> State:
        request, encoded = sample.generation.request, sample.state
        height, width = self._sides(request)
        tokens = (height // FLUX_PATCH) * (width // FLUX_PATCH)
        own_levels = self._scheduler.get("use_flow_sigmas")
        trajectory = latents.trajectory(
            sample,
            self._tables,
            (1, self._channels, height, width),
            self._dtype,
            self._device,
            mu=latents.shift(self._scheduler, tokens, _MAX_SHIFT),
            sigmas=None if own_levels else flux_levels(request.steps),
            image=self._images.of(request),
        )
        scale = devices.placed([request.guidance_scale], self._device, torch.float32)[None]
        return State(
            trajectory,
            guided=latents.guided_calls(
                request, sample.passes, EVERYWHERE, self._scale_of(request)
            ),
            embeddings=encoded.embeddings,
            pooled=encoded.pooled,
            scale=scale if self._takes_scale else None,
        )

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        states: list[State] = [sample.state for sample in samples]
        with devices.device_errors():
            inputs, timesteps, owners = latents.rows_of(samples, self._device)
            predict: Callable[..., torch.Tensor] = self._networks.predict
            if self._open.are_needed(samples):
                predict = partial(self._open.predict, samples)
            output = predict(
                inputs,
                timesteps,
                torch.cat([sample.state.embeddings[-sample.rows :] for sample in samples]),
                latents.joined([states[owner].scale for owner in owners]),
                pooled=torch.cat([sample.state.pooled[-sample.rows :] for sample in samples]),
            )
            predictions = latents.guided(output.float(), samples, scale=self._true_scale or 1.0)
            devices.wait(self._device)
        return list(torch.split(predictions, 1))

    @torch.inference_mode()
    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        return latents.advance(samples, predictions, self._set_next)

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample]) -> Sequence[Pixels | Pending]:
        return latents.decode(self._networks, samples, self._unscale, self._projection, self._side)

    def decode_limit(self, sample: Sample) -> int:
        return latents.decode_limit(self._device, sample)

    @torch.inference_mode()
    def preview(self, sample: Sample) -> Pixels:
        return latents.preview(sample, self._projection)

    def release(self, sample: Sample) -> None:
        """Nothing is held but the state."""

    def free_memory(self) -> None:
        self._networks.free_memory()


def load(checkpoint: Checkpoint) -> Flux:
    """Loads a pipeline of this family, without the parts that do not draw.

    Raises:
        ValueError, OSError: a part of the pipeline is missing or cannot be read, or the settings do not fit it.
        OutOfMemory: it does not fit on the device.
    """
    with devices.device_errors():
        pipeline, networks = networks_of(checkpoint)
    info = describe(pipeline, checkpoint, FAMILY)
    scale = checkpoint.settings.true_cfg_scale
    adapters = adapters_of(
        checkpoint, pipeline, networks, lambda: FluxPromptEncoder(pipeline, checkpoint.device)
    )
    opened = OpenPasses(networks, adapters)
    return Flux(pipeline, networks, opened.described(info), checkpoint.device, scale, opened)
