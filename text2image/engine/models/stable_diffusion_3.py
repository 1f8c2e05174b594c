"""Stable Diffusion 3 and 3.5: a transformer that predicts a flow, with two text encoders or three.

The mathematics is that of diffusers' `StableDiffusion3Pipeline.__call__`, taken apart into steps; a sample drawn here
alone equals the pipeline's picture for the same seed. Text and picture attend to each other, so texts are all of one
length: that of the two CLIP encoders and T5's behind it, zeros where there is no T5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from text2image.core.guidance import EVERYWHERE, Interval, parse_interval
from text2image.core.messages import ModelInfo, Pixels, Request
from text2image.engine import devices
from text2image.engine.adapters.model import adapters_of
from text2image.engine.adapters.passes import OpenPasses
from text2image.engine.models import latents
from text2image.engine.models.contract import Pending, Unread
from text2image.engine.models.description import describe, rescale_of, vae_factor
from text2image.engine.models.init_images import ImageEncoder
from text2image.engine.models.previews import Projection
from text2image.engine.models.prompts import TriplePromptEncoder, stacked, unread_ends
from text2image.engine.runtimes.choice import networks_of
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import Plan, Sample
from text2image.engine.samplers.tables import Tables
from text2image.engine.samplers.update import Trajectory

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

FAMILY = "stable-diffusion-3"
# Of noise levels, for large pictures, where the scheduler shifts them by size and names no limit; as in diffusers.
_MAX_SHIFT = 1.16


@dataclass(slots=True)
class State:
    """A sample's tensors, as `latents` wants them: of the prompts (rows, tokens, width), and (rows, D) pooled."""

    trajectory: Trajectory
    guided: range
    embeddings: torch.Tensor
    pooled: torch.Tensor


class StableDiffusion3:
    """A loaded pipeline that keeps the model contract."""

    def __init__(
        self,
        pipeline: Any,
        networks: Networks,
        info: ModelInfo,
        device: torch.device,
        interval: Interval = EVERYWHERE,
        rescale: float = 0.0,
        opened: OpenPasses[TriplePromptEncoder] | None = None,
    ) -> None:
        """Takes the parts of a diffusers pipeline; of its transformer and autoencoder the configurations alone.

        Args:
            interval: where fast pictures are guided.
            rescale: of guidance; see `latents.guided`.
            opened: passes with adapters that pictures may be drawn with.
        """
        self.info = info
        self.max_rows = devices.max_rows(device)
        self.memory = devices.memory_of(device)
        self._device = device
        self._interval = interval
        self._rescale = rescale
        self._networks = networks
        self._open: OpenPasses[TriplePromptEncoder] = opened or OpenPasses(networks)
        self.adapters, self.controls = self._open.adapters, self._open.controls
        self._config = pipeline.transformer.config
        self._dtype: torch.dtype = pipeline.transformer.dtype
        self._unscale = latents.unscaling(pipeline.vae.config)
        self._latent_scale = vae_factor(pipeline.vae.config)
        self._images = ImageEncoder(
            networks, device, latents.scaling(pipeline.vae.config), scale=self._latent_scale
        )
        self._scheduler = pipeline.scheduler.config
        self._tables = Tables(self._scheduler)
        self._prompts = TriplePromptEncoder(pipeline, self._config.joint_attention_dim, device)
        self._projection = Projection(self._config.in_channels)
        self._side = devices.SideStream(device)

    def plan(self, request: Request) -> Plan:
        self._images.prepare(request)
        plan = latents.plan(request, *self._sides(request), self._interval)
        return replace(plan, load=plan.load * self._open.load_of(request, plan.passes))

    def _sides(self, request: Request) -> tuple[int, int]:
        """Height and width in latent pixels."""
        return request.height // self._latent_scale, request.width // self._latent_scale

    @torch.inference_mode()
    def encode(self, samples: Sequence[Sample]) -> list[Unread]:
        if self.adapters is None:
            return self._encode(samples, self._prompts)
        return self.adapters.encode(samples, self._prompts, self._encode)

    def _encode(self, samples: Sequence[Sample], encoder: TriplePromptEncoder) -> list[Unread]:
        requests = [sample.generation.request for sample in samples]
        prompts = [request.prompt for request in requests]
        guided = [each.generation.request for each in samples if each.rows == 2]
        texts = prompts + [request.negative_prompt for request in guided]
        with devices.device_errors():
            self._images.encode(requests)
            encoded = dict(zip(texts, encoder.encode(texts), strict=True))
            for sample, request in zip(samples, requests, strict=True):
                sample.state = encoded[request.prompt]
                if sample.rows == 2:
                    sample.state = stacked(encoded[request.negative_prompt], sample.state)
        ends = dict(zip(texts, unread_ends(encoder.truncated, texts), strict=True))
        return [
            Unread(ends[each.prompt], ends[each.negative_prompt] if sample.rows == 2 else "")
            for sample, each in zip(samples, requests, strict=True)
        ]

    @torch.inference_mode()
    def start(self, samples: Sequence[Sample]) -> None:
        latents.start(samples, self._initial, self._set_next)

    def _set_next(self, sample: Sample) -> None:
        latents.set_rows(sample)
        sample.load = self._open.load_next(sample)

    def _initial(self, sample: Sample) -> State:
        request, encoded = sample.generation.request, sample.state
        height, width = self._sides(request)
        tokens = (height // self._config.patch_size) * (width // self._config.patch_size)
        trajectory = latents.trajectory(
            sample,
            self._tables,
            (1, self._config.in_channels, height, width),
            self._dtype,
            self._device,
            mu=latents.shift(self._scheduler, tokens, _MAX_SHIFT),
            image=self._images.of(request),
        )
        return State(
            trajectory,
            guided=latents.guided_calls(request, sample.passes, self._interval),
            embeddings=encoded.embeddings,
            pooled=encoded.pooled,
        )

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        with devices.device_errors():
            inputs, timesteps, _ = latents.rows_of(samples, self._device)
            predict: Callable[..., torch.Tensor] = self._networks.predict
            if self._open.are_needed(samples):
                predict = partial(self._open.predict, samples)
            output = predict(
                inputs,
                timesteps,
                torch.cat([sample.state.embeddings[-sample.rows :] for sample in samples]),
                pooled=torch.cat([sample.state.pooled[-sample.rows :] for sample in samples]),
            )
            predictions = latents.guided(output.float(), samples, self._rescale)
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


def load(checkpoint: Checkpoint) -> StableDiffusion3:
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
    width = pipeline.transformer.config.joint_attention_dim
    adapters = adapters_of(
        checkpoint,
        pipeline,
        networks,
        lambda: TriplePromptEncoder(pipeline, width, checkpoint.device),
    )
    opened = OpenPasses(networks, adapters)
    return StableDiffusion3(
        pipeline, networks, opened.described(info), checkpoint.device, interval, rescale, opened
    )
