"""Stable Diffusion 1.x and 2.x, their Turbo and LCM forms, and all else with a UNet2DConditionModel and one encoder.

The mathematics is that of diffusers' `StableDiffusionPipeline.__call__`, taken apart into steps; a sample drawn here
alone equals the pipeline's picture for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from text2image.core.guidance import EVERYWHERE, Interval, parse_interval
from text2image.core.messages import ModelInfo, Pixels, Request
from text2image.engine import devices
from text2image.engine.models import latents
from text2image.engine.models.contract import Pending
from text2image.engine.models.description import describe, rescale_of
from text2image.engine.models.previews import Projection
from text2image.engine.models.prompts import PromptEncoder
from text2image.engine.runtimes.choice import networks_of
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import Plan, Sample
from text2image.engine.samplers.tables import Tables
from text2image.engine.samplers.update import Trajectory

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

FAMILY = "stable-diffusion"


@dataclass(slots=True)
class State:
    """A sample's tensors, as `latents` wants them; `embeddings` are (rows, tokens, width)."""

    trajectory: Trajectory
    guided: range
    embeddings: torch.Tensor
    guidance_embedding: torch.Tensor | None


class StableDiffusion:
    """A loaded pipeline that keeps the model contract."""

    def __init__(
        self,
        pipeline: Any,
        networks: Networks,
        info: ModelInfo,
        device: torch.device,
        interval: Interval = EVERYWHERE,
        rescale: float = 0.0,
    ) -> None:
        """Takes the parts of a diffusers pipeline; of its U-Net and autoencoder the configurations alone.

        Args:
            interval: where fast pictures are guided.
            rescale: of guidance; see `latents.guided`.
        """
        self.info = info
        self.max_rows = devices.max_rows(device)
        self.memory = devices.memory_of(device)
        self._device = device
        self._interval = interval
        self._rescale = rescale
        self._networks = networks
        self._config = pipeline.unet.config
        self._dtype: torch.dtype = pipeline.unet.dtype
        self._scaling_factor = float(pipeline.vae.config.scaling_factor)
        self._latent_scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self._tables = Tables(pipeline.scheduler.config)
        self._prompts = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, device)
        self._projection = Projection(self._config.in_channels)
        self._side = devices.SideStream(device)

    def plan(self, request: Request) -> Plan:
        return latents.plan(request, *self._sides(request), self._guided_in)

    def _sides(self, request: Request) -> tuple[int, int]:
        """Height and width in latent pixels."""
        return request.height // self._latent_scale, request.width // self._latent_scale

    @property
    def _guided_in(self) -> Interval | None:
        return self._interval if self._config.time_cond_proj_dim is None else None

    @torch.inference_mode()
    def encode(self, samples: Sequence[Sample]) -> list[str]:
        requests = [sample.generation.request for sample in samples]
        prompts = [request.prompt for request in requests]
        with devices.device_errors():
            embeddings = self._prompts.encode(prompts + [each.negative_prompt for each in requests])
        for number, sample in enumerate(samples):
            positive, negative = embeddings[number], embeddings[len(samples) + number]
            sample.state = torch.cat([negative, positive]) if sample.rows == 2 else positive
        unread = {prompt: self._prompts.truncated(prompt) for prompt in dict.fromkeys(prompts)}
        return [unread[prompt] for prompt in prompts]

    @torch.inference_mode()
    def start(self, samples: Sequence[Sample]) -> None:
        with devices.device_errors():
            states = [self._initial(sample) for sample in samples]
        for sample, state in zip(samples, states, strict=True):
            sample.state = state
            latents.set_rows(sample)

    def _initial(self, sample: Sample) -> State:
        request = sample.generation.request
        shape = (1, self._config.in_channels, *self._sides(request))
        trajectory = latents.trajectory(sample, self._tables, shape, self._dtype, self._device)
        width = self._config.time_cond_proj_dim
        guidance = None if width is None else latents.embedded_scale(request.guidance_scale, width)
        return State(
            trajectory,
            guided=latents.guided_calls(request, sample.passes, self._guided_in),
            embeddings=sample.state,
            guidance_embedding=None
            if guidance is None
            else devices.moved(guidance.to(self._dtype), self._device),
        )

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        states: list[State] = [sample.state for sample in samples]
        with devices.device_errors():
            inputs, timesteps, _ = latents.rows_of(samples, self._device)
            output = self._networks.predict(
                inputs,
                timesteps,
                torch.cat([sample.state.embeddings[-sample.rows :] for sample in samples]),
                latents.joined([state.guidance_embedding for state in states]),
            )
            predictions = latents.guided(output.float(), samples, self._rescale)
            devices.wait(self._device)
        return list(torch.split(predictions, 1))

    @torch.inference_mode()
    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        return latents.advance(samples, predictions)

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample]) -> Sequence[Pixels | Pending]:
        return latents.decode(
            self._networks,
            samples,
            lambda each: each / self._scaling_factor,
            self._projection,
            self._side,
        )

    def decode_limit(self, sample: Sample) -> int:
        return latents.decode_limit(self._device, sample)

    @torch.inference_mode()
    def preview(self, sample: Sample) -> Pixels:
        return latents.preview(sample, self._projection)

    def release(self, sample: Sample) -> None:
        """Nothing is held but the state."""

    def free_memory(self) -> None:
        self._networks.free_memory()


def load(checkpoint: Checkpoint) -> StableDiffusion:
    """Loads a pipeline of this family, without the parts that do not draw.

    Raises:
        ValueError, OSError: a part of the pipeline is missing or cannot be read, or the settings do not fit it.
        OutOfMemory: it does not fit on the device.
    """
    with devices.device_errors():
        pipeline, networks = networks_of(checkpoint)
    info = describe(pipeline, checkpoint, FAMILY)
    interval = parse_interval(checkpoint.settings.guidance_interval)
    rescale = rescale_of(pipeline, checkpoint.settings, FAMILY)
    return StableDiffusion(pipeline, networks, info, checkpoint.device, interval, rescale)
