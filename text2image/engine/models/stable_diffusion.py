"""Stable Diffusion 1.x and 2.x, their Turbo and LCM forms, and all else with a UNet2DConditionModel and one encoder.

The mathematics is that of diffusers' `StableDiffusionPipeline.__call__`, taken apart into steps; a sample drawn here
alone equals the pipeline's picture for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline

from text2image.core.messages import ModelInfo, Pixels, Request, Sampler
from text2image.core.settings import EMBEDDED_MODEL, MAX_SIDE
from text2image.engine import devices
from text2image.engine.models import packing
from text2image.engine.models.contract import DeviceLost
from text2image.engine.models.previews import Projection
from text2image.engine.models.prompts import PromptEncoder
from text2image.engine.models.samplers import Samplers, Trajectory
from text2image.engine.sample import BatchKey, Plan, Sample

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

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
        info: ModelInfo,
        device: torch.device,
        *,
        network: Any = None,
    ) -> None:
        """Takes the parts of a diffusers pipeline; `network` stands in for its U-Net, when it was compiled."""
        self.info = info
        self.max_rows = devices.max_rows(device)
        self.memory = devices.memory_of(device)
        self._device = device
        self._unet = pipeline.unet if network is None else network
        self._config = pipeline.unet.config
        self._dtype: torch.dtype = pipeline.unet.dtype
        self._vae = pipeline.vae
        self._latent_scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self._samplers = Samplers(pipeline.scheduler.config)
        self._prompts = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, device)
        self._projection = Projection(self._config.in_channels)

    def plan(self, request: Request) -> Plan:
        height, width = request.height // self._latent_scale, request.width // self._latent_scale
        # A network that takes the scale as an input (LCM) needs no second, unconditional row.
        embeds_guidance = self._config.time_cond_proj_dim is not None
        rows = 1 if embeds_guidance or request.guidance_scale <= 1 else 2
        return Plan(BatchKey((height, width), size=height * width), rows, passes=request.steps)

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

    def _initial(self, sample: Sample) -> State:
        request = sample.generation.request
        trajectory = self._samplers.trajectory(request.sampler, request.steps)
        # On the CPU, so that a seed means the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(sample.seed)
        height, width = request.height // self._latent_scale, request.width // self._latent_scale
        shape = (1, self._config.in_channels, height, width)
        noise = torch.randn(shape, generator=generator, dtype=self._dtype).to(self._device)
        latents = noise.float() * trajectory.noise_scale
        return State(
            latents=latents,
            predicted=latents,
            embeddings=sample.state,
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
            output = self._unet(
                inputs.repeat_interleave(repeats.to(self._device), 0).to(
                    self._dtype, memory_format=torch.channels_last
                ),
                timesteps.repeat_interleave(repeats).to(self._device),
                encoder_hidden_states=torch.cat([state.embeddings for state in states]),
                timestep_cond=self._guidance_rows(states),
                return_dict=False,
            )[0]
            predictions = [
                _guided(rows.float(), sample.generation.request.guidance_scale)
                for sample, rows in zip(samples, output.split(repeats.tolist()), strict=True)
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
    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        failures: list[Exception | None] = []
        for sample, prediction in zip(samples, predictions, strict=True):
            state: State = sample.state
            try:
                with devices.device_errors():
                    state.latents, state.predicted = state.trajectory.step(
                        prediction, sample.step, state.latents, state.generator
                    )
            except DeviceLost:
                raise
            except Exception as error:
                failures.append(error)
                continue
            sample.done = sample.step + 1 == sample.passes
            failures.append(None)
        return failures

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample]) -> list[Pixels]:
        with devices.device_errors():
            latents = torch.cat([sample.state.latents for sample in samples])
            scaled = (latents / self._vae.config.scaling_factor).to(
                self._vae.dtype, memory_format=torch.channels_last
            )
            decoded = self._vae.decode(scaled, return_dict=False)[0]
            # Catches a decoder that overflows in half precision as well as latents that were broken before.
            if not bool(torch.isfinite(latents).all() and torch.isfinite(decoded).all()):
                raise ValueError("the picture holds numbers that are not finite")
            pictures = (decoded.float() / 2 + 0.5).clamp(0, 1)
            # The warm-up decodes noise, from which no preview is to be learned.
            if all(sample.done for sample in samples):
                self._projection.learn(latents, pictures)
            return [_pixels(picture.movedim(0, -1)) for picture in pictures]

    def decode_limit(self, sample: Sample) -> int:
        # On a CPU one picture fills the cores; more at once would only keep the steps waiting.
        return 1 if self._device.type == "cpu" else max(1, int(_DECODE_AREA / sample.key.size))

    @torch.inference_mode()
    def preview(self, sample: Sample) -> Pixels:
        return _pixels(self._projection.draw(sample.state.predicted))

    def release(self, sample: Sample) -> None:
        """Nothing is held but the state."""

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


def load(checkpoint: Checkpoint) -> StableDiffusion:
    """Loads a pipeline of this family, without the parts that do not draw.

    Raises:
        ValueError, OSError: a part of the pipeline is missing or cannot be read.
        OutOfMemory: it does not fit on the device.
    """
    device = checkpoint.device
    with devices.device_errors():
        pipeline = StableDiffusionPipeline.from_pretrained(
            checkpoint.folder,
            dtype=checkpoint.dtype,
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
            local_files_only=True,
        ).to(device)
    for part in (pipeline.unet, pipeline.vae):
        part.eval().to(memory_format=torch.channels_last)
    network = pipeline.unet
    if checkpoint.settings.compile:
        checkpoint.report("compiling the U-Net")
        network = torch.compile(pipeline.unet, dynamic=True)
    else:
        memory = devices.memory_of(device)
        packing.pack(pipeline.unet, pipeline.vae.decoder, free=memory.free() if memory else None)
    return StableDiffusion(pipeline, describe(pipeline, checkpoint), device, network=network)


def describe(pipeline: Any, checkpoint: Checkpoint) -> ModelInfo:
    """The model's limits and defaults, as its configuration implies them and the settings override them."""
    settings = checkpoint.settings
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    side = int(pipeline.unet.config.sample_size) * scale
    steps, guidance, sampler = _defaults(pipeline, settings.model)
    return ModelInfo(
        id=checkpoint.name,
        revision=checkpoint.revision,
        family="stable-diffusion",
        width=side,
        height=side,
        min_side=min(64, side),
        max_side=settings.max_side or min(2 * side, MAX_SIDE),
        steps=settings.default_steps or steps,
        guidance_scale=guidance
        if settings.default_guidance_scale is None
        else settings.default_guidance_scale,
        sampler=settings.default_sampler or sampler,
        samplers=tuple(Sampler),
        max_prompt_tokens=int(pipeline.tokenizer.model_max_length),
        device=str(checkpoint.device),
        dtype=str(checkpoint.dtype).removeprefix("torch."),
    )


def _defaults(pipeline: Any, name: str) -> tuple[int, float, Sampler]:
    """Steps, guidance scale and sampler that suit the model."""
    if pipeline.unet.config.time_cond_proj_dim is not None:
        return 4, 8.5, Sampler.LCM
    if type(pipeline.scheduler).__name__ == "LCMScheduler":
        return 4, 1.0, Sampler.LCM
    if "turbo" in name.lower():
        # Adversarially distilled: few steps, and guidance would burn the picture.
        return 1, 0.0, Sampler.EULER_ANCESTRAL
    if name == EMBEDDED_MODEL:
        return 20, 3.0, Sampler.DPMPP_2M
    return 25, 7.5, Sampler.DPMPP_2M
