"""Stable Diffusion 1.x and 2.x, their Turbo and LCM forms, and all else with a UNet2DConditionModel and one encoder.

The mathematics is that of diffusers' `StableDiffusionPipeline.__call__`, taken apart into steps; a sample drawn here
alone equals the pipeline's picture for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from text2image.core.messages import ModelInfo, Pixels, Request
from text2image.engine import devices
from text2image.engine.models.previews import Projection
from text2image.engine.models.prompts import PromptEncoder
from text2image.engine.models.samplers import Samplers, Trajectory
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import Group, Sample

# Latent pixels to decode at once on a GPU: four pictures of 512 x 512.
_DECODE_AREA = 4 * 64 * 64


@dataclass(slots=True)
class State:
    """A sample's tensors. `latents` and `predicted` are (1, C, h, w), `embeddings` (rows, tokens, width).

    Latents stay in fp32 whatever the network's precision is: what half of it loses adds up over the steps.
    """

    latents: torch.Tensor
    predicted: torch.Tensor
    embeddings: torch.Tensor
    trajectory: Trajectory
    generator: torch.Generator
    guidance_embedding: torch.Tensor | None


class StableDiffusion:
    """A loaded pipeline that keeps the model contract."""

    def __init__(
        self,
        pipeline: Any,
        networks: Networks,
        info: ModelInfo,
        device: torch.device,
    ) -> None:
        """Takes the parts of a diffusers pipeline; of its U-Net and autoencoder the configurations alone."""
        self.info = info
        self.max_rows = devices.max_rows(device)
        self.memory = devices.memory_of(device)
        self._device = device
        self._networks = networks
        self._config = pipeline.unet.config
        self._dtype: torch.dtype = pipeline.unet.dtype
        self._scaling_factor = float(pipeline.vae.config.scaling_factor)
        self._latent_scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self._samplers = Samplers(pipeline.scheduler.config)
        self._prompts = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, device)
        self._projection = Projection(self._config.in_channels)

    def group_of(self, request: Request) -> Group:
        return Group(request.height // self._latent_scale, request.width // self._latent_scale)

    def rows_of(self, request: Request) -> int:
        # A network that takes the scale as an input (LCM) needs no second, unconditional row.
        embeds_guidance = self._config.time_cond_proj_dim is not None
        return 1 if embeds_guidance or request.guidance_scale <= 1 else 2

    @torch.inference_mode()
    def prepare(self, samples: Sequence[Sample]) -> list[str]:
        requests = [sample.generation.request for sample in samples]
        with devices.device_errors():
            positive = self._prompts.encode([request.prompt for request in requests])
            negative = self._prompts.encode([request.negative_prompt for request in requests])
            for sample, prompt, unwanted in zip(samples, positive, negative, strict=True):
                sample.state = self._initial(sample, prompt, unwanted)
        return [self._prompts.truncated(request.prompt) for request in requests]

    def _initial(self, sample: Sample, positive: torch.Tensor, negative: torch.Tensor) -> State:
        request = sample.generation.request
        trajectory = self._samplers.trajectory(request.sampler, request.schedule, request.steps)
        # On the CPU, so that a seed means the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(sample.seed)
        shape = (1, self._config.in_channels, sample.group.height, sample.group.width)
        noise = torch.randn(shape, generator=generator, dtype=self._dtype).to(self._device)
        latents = noise.float() * trajectory.noise_scale
        guided = sample.rows == 2
        return State(
            latents=latents,
            predicted=latents,
            embeddings=torch.cat([negative, positive]) if guided else positive,
            trajectory=trajectory,
            generator=generator,
            guidance_embedding=self._embed_guidance(request.guidance_scale),
        )

    def _embed_guidance(self, scale: float) -> torch.Tensor | None:
        """The sinusoidal embedding (1, D) that LCM networks take the scale as.

        From `LatentConsistencyModelPipeline.get_guidance_scale_embedding` in diffusers.
        """
        width = self._config.time_cond_proj_dim
        if width is None:
            return None
        half = width // 2
        frequencies = torch.exp(
            torch.arange(half, dtype=torch.float32)
            * -(torch.log(torch.tensor(10000.0)) / (half - 1))
        )
        angles = (scale - 1) * 1000.0 * frequencies
        return torch.cat([angles.sin(), angles.cos()])[None].to(self._device, self._dtype)

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        states: list[State] = [sample.state for sample in samples]
        repeats = torch.tensor([sample.rows for sample in samples])
        with devices.device_errors():
            inputs = torch.cat(
                [
                    state.trajectory.scale(state.latents, sample.step)
                    for sample, state in zip(samples, states, strict=True)
                ]
            )
            timesteps = torch.tensor(
                [
                    state.trajectory.timestep(sample.step)
                    for sample, state in zip(samples, states, strict=True)
                ]
            )
            output = self._networks.predict(
                inputs.repeat_interleave(repeats.to(self._device), 0),
                timesteps.repeat_interleave(repeats),
                torch.cat([state.embeddings for state in states]),
                self._guidance_rows(states),
            )
            predictions = [
                _guided(rows.float(), sample.generation.request.guidance_scale)
                for sample, rows in zip(samples, torch.split(output, repeats.tolist()), strict=True)
            ]
            devices.wait(self._device)
        return predictions

    @staticmethod
    def _guidance_rows(states: Sequence[State]) -> torch.Tensor | None:
        rows = [
            state.guidance_embedding for state in states if state.guidance_embedding is not None
        ]
        return torch.cat(rows) if rows else None

    @torch.inference_mode()
    def advance(self, sample: Sample, prediction: Any) -> None:
        state: State = sample.state
        with devices.device_errors():
            state.latents, state.predicted = state.trajectory.step(
                prediction, sample.step, state.latents, state.generator
            )

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample]) -> list[Pixels]:
        with devices.device_errors():
            latents = torch.cat([sample.state.latents for sample in samples])
            decoded = self._networks.decode(latents / self._scaling_factor)
            # Catches a decoder that overflows in half precision as well as latents that were broken before.
            if not bool(torch.isfinite(latents).all() and torch.isfinite(decoded).all()):
                raise ValueError("the picture holds numbers that are not finite")
            pictures = (decoded.float() / 2 + 0.5).clamp(0, 1)
            # The warm-up decodes noise, from which no preview is to be learned.
            if all(sample.remaining == 0 for sample in samples):
                self._projection.learn(latents, pictures)
            return [_pixels(picture.movedim(0, -1)) for picture in pictures]

    def decode_limit(self, group: Group) -> int:
        # On a CPU one picture fills the cores; more at once would only keep the steps waiting.
        return 1 if self._device.type == "cpu" else max(1, _DECODE_AREA // group.area)

    @torch.inference_mode()
    def preview(self, sample: Sample) -> Pixels:
        return _pixels(self._projection.draw(sample.state.predicted))

    def free_memory(self) -> None:
        devices.free_memory(self._device)


def _guided(rows: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): (2, C, h, w) unconditional and conditional to (1, C, h, w)."""
    if len(rows) == 1:
        return rows
    unconditional, conditional = rows.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def _pixels(picture: torch.Tensor) -> Pixels:
    """8 bit RGB of a picture (H, W, 3) in 0 to 1."""
    height, width, _ = picture.shape
    rgb = (picture * 255).round().to("cpu", torch.uint8).contiguous()
    return Pixels(width, height, rgb.numpy().tobytes())
