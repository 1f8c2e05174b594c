"""Stable Diffusion XL and what is distilled from it: Turbo, Lightning, Hyper, LCM; v-prediction and zero terminal SNR.

The mathematics is that of diffusers' `StableDiffusionXLPipeline.__call__` with the sizes and crops that it takes if
none are named, taken apart into steps; a sample drawn here alone equals the pipeline's picture for the same seed. What
differs from Stable Diffusion 1.x is what the network is told: two text encoders, of one a pooled embedding too, and
the picture's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.guidance import EVERYWHERE, Interval, parse_interval
from text2image.core.messages import ModelInfo, Pixels, Request
from text2image.engine import devices
from text2image.engine.adapters.model import adapters_of
from text2image.engine.adapters.passes import OpenPasses
from text2image.engine.controls.model import controls_of
from text2image.engine.models import latents, refiner
from text2image.engine.models.contract import Pending, Unread
from text2image.engine.models.description import describe, reading_of, rescale_of, vae_factor
from text2image.engine.models.init_images import ImageEncoder
from text2image.engine.models.previews import Projection
from text2image.engine.models.prompts import DualPromptEncoder, Encoded
from text2image.engine.models.refiner import Refiner
from text2image.engine.prompts.chunks import Language
from text2image.engine.prompts.inversions import Inversion
from text2image.engine.prompts.lengths import grouped, joined
from text2image.engine.runtimes.choice import networks_of
from text2image.engine.runtimes.networks import SIZE_NUMBERS, Networks
from text2image.engine.sample import BatchKey, Plan, Sample
from text2image.engine.samplers.tables import Tables
from text2image.engine.samplers.update import Trajectory

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

FAMILY = "stable-diffusion-xl"


@dataclass(slots=True)
class State:
    """A sample's tensors, as `latents` wants them.

    Attributes:
        embeddings: of the prompts, (rows, tokens, width).
        pooled: of the prompts, (rows, D).
        time_ids: (1, 6): height and width of the original, top and left of the crop, height and width of the picture;
            with the refiner what that is told, (rows, 5).
        refined: what the refiner reads, as long as its turn has yet to come; None without one.
        refining: whether its turn has come.
    """

    trajectory: Trajectory
    guided: range
    embeddings: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    guidance_embedding: torch.Tensor | None
    refined: Encoded | None = None
    refining: bool = False


class StableDiffusionXL:
    """A loaded pipeline that keeps the model contract."""

    def __init__(
        self,
        pipeline: Any,
        networks: Networks,
        info: ModelInfo,
        device: torch.device,
        interval: Interval = EVERYWHERE,
        rescale: float = 0.0,
        language: Language | None = None,
        inversions: Sequence[Inversion] = (),
        opened: OpenPasses[DualPromptEncoder] | None = None,
        refiner: Refiner | None = None,
    ) -> None:
        """Takes the parts of a diffusers pipeline; of its U-Net and autoencoder the configurations alone.

        Args:
            interval: where fast pictures are guided.
            rescale: of guidance; see `latents.guided`.
            language: how prompts are read, and `inversions` the words in it that files teach the model.
            opened: passes with adapters and ControlNets that pictures may be drawn with.
            refiner: takes the last steps, if there is one.
        """
        self.info = info
        self.max_rows = devices.max_rows(device)
        self.memory = devices.memory_of(device)
        self._device = device
        self._interval = interval
        self._rescale = rescale
        self._refiner = refiner
        self._networks = networks
        self._open: OpenPasses[DualPromptEncoder] = opened or OpenPasses(networks)
        self.adapters, self.controls = self._open.adapters, self._open.controls
        self._config = pipeline.unet.config
        self._dtype: torch.dtype = pipeline.unet.dtype
        self._scale = _Scale(pipeline.vae.config, device)
        self._latent_scale = vae_factor(pipeline.vae.config)
        self._tables = Tables(pipeline.scheduler.config)
        self._prompts = DualPromptEncoder(pipeline, device, language, inversions)
        self._channels = int(pipeline.vae.config.latent_channels)
        self._images = ImageEncoder(
            networks,
            device,
            self._scale.done,
            scale=self._latent_scale,
            conditions=self._config.in_channels != self._channels,
        )
        self._projection = Projection(self._channels)
        self._side = devices.SideStream(device)

    def plan(self, request: Request) -> Plan:
        self._images.prepare(request)
        plan = latents.plan(request, *self._sides(request), self._guided_in)
        load = plan.load * self._open.load_of(request, plan.passes)
        return replace(plan, load=load, encoding=self._prompts.work(request))

    def _sides(self, request: Request) -> tuple[int, int]:
        """Height and width in latent pixels."""
        return request.height // self._latent_scale, request.width // self._latent_scale

    @property
    def _guided_in(self) -> Interval | None:
        return self._interval if self._config.time_cond_proj_dim is None else None

    @torch.inference_mode()
    def encode(self, samples: Sequence[Sample]) -> list[Unread]:
        if self.adapters is None:
            return self._encode(samples, self._prompts)
        return self.adapters.encode(samples, self._prompts, self._encode)

    def _encode(self, samples: Sequence[Sample], encoder: DualPromptEncoder) -> list[Unread]:
        with devices.device_errors():
            self._images.encode([sample.generation.request for sample in samples])
            read = encoder.encode_samples(samples)
            for sample, (rows, _) in zip(samples, read, strict=True):
                sample.state = rows
            if self._refiner:
                for sample, refined in zip(samples, self._refiner.encode(samples), strict=True):
                    sample.state = (sample.state, refined)
        return [unread for _, unread in read]

    @torch.inference_mode()
    def start(self, samples: Sequence[Sample]) -> None:
        latents.start(samples, self._initial, self._set_next)

    def _initial(self, sample: Sample) -> State:
        request, encoded, refined = sample.generation.request, sample.state, None
        if self._refiner:
            encoded, refined = sample.state
        shape = (1, self._channels, *self._sides(request))
        image = self._images.of(request)
        trajectory = latents.trajectory(
            sample, self._tables, shape, self._dtype, self._device, image=image
        )
        if image is not None:
            # Pictures from pictures are the base's alone.
            refined = None
        elif self._refiner:
            trajectory = self._until_switch(sample, trajectory, self._refiner)
        size = (request.height, request.width)
        return State(
            trajectory,
            guided=latents.guided_calls(request, sample.passes, self._guided_in),
            embeddings=encoded.embeddings,
            pooled=encoded.pooled,
            time_ids=devices.placed([*size, 0, 0, *size], self._device, self._dtype)[None],
            guidance_embedding=latents.embedded_scale(
                request.guidance_scale, self._config.time_cond_proj_dim, self._dtype, self._device
            ),
            refined=refined,
        )

    @staticmethod
    def _until_switch(sample: Sample, trajectory: Trajectory, refiner: Refiner) -> Trajectory:
        """A sample's way as far as the base goes; sets its `passes` to those of both."""
        calls = refiner.base_calls(trajectory.table)
        try:
            rest = refiner.table(sample.generation.request)
        except ValueError as error:
            raise InvalidRequest(FieldViolation("sampler", str(error))) from error
        sample.passes = calls + (rest.calls if rest else 0)
        return trajectory.along(trajectory.table.until(calls))

    def _set_next(self, sample: Sample) -> None:
        """Sets what the next pass takes, and hands the sample to the refiner where the base is through with it."""
        state: State = sample.state
        if self._refiner and state.refined is not None and state.trajectory.done:
            self._hand_over(sample, state, state.refined, self._refiner)
        latents.set_rows(sample)
        # Adapters and ControlNets are the base's.
        sample.load = 1.0 if state.refining else self._open.load_next(sample)

    def _hand_over(self, sample: Sample, state: State, refined: Encoded, refiner: Refiner) -> None:
        request, begun = sample.generation.request, state.trajectory.table.calls
        table = refiner.table(request)
        sample.done = table is None
        if table is None:
            return
        state.trajectory = state.trajectory.along(table)
        guided = latents.guided_calls(request, sample.passes, self._guided_in)
        state.guided = range(max(0, guided.start - begun), max(0, guided.stop - begun))
        state.embeddings, state.pooled = refined.embeddings, refined.pooled
        state.refined, state.refining = None, True
        state.time_ids = refiner.time_ids(request, len(refined.pooled))
        sample.key = BatchKey((*self._sides(request), "refiner"), size=sample.key.size)

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        predictions: dict[Sample, Any] = {}
        for group in grouped(samples, _text_length):
            predictions.update(zip(group, self._predicted(group), strict=True))
        return [predictions[sample] for sample in samples]

    def _predicted(self, samples: Sequence[Sample]) -> list[Any]:
        states: list[State] = [sample.state for sample in samples]
        networks = self._networks
        if self._refiner and states[0].refining:
            networks = self._refiner.networks
        with devices.device_errors():
            inputs, timesteps, _ = latents.rows_of(samples, self._device)
            predict: Callable[..., torch.Tensor] = networks.predict
            # Adapters and ControlNets are the base model's; the refiner has another network.
            if not states[0].refining and self._open.are_needed(samples):
                predict = partial(self._open.predict, samples)
            output = predict(
                inputs,
                timesteps,
                joined([sample.state.embeddings[-sample.rows :] for sample in samples]),
                latents.joined([state.guidance_embedding for state in states]),
                pooled=torch.cat([sample.state.pooled[-sample.rows :] for sample in samples]),
                time_ids=torch.cat([_told(sample) for sample in samples]),
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
        return latents.decode(
            self._networks, samples, self._scale.undone, self._projection, self._side
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
        if self._refiner:
            self._refiner.networks.free_memory()


def _told(sample: Sample) -> torch.Tensor:
    """What the rows of a sample's next pass tell the network of the picture: (rows, numbers)."""
    told: torch.Tensor = sample.state.time_ids
    return told.expand(sample.rows, -1) if len(told) == 1 else told[-sample.rows :]


def _text_length(sample: Sample) -> int:
    return int(sample.state.embeddings.shape[1])


class _Scale:
    """From latents as the autoencoder has them to latents as they are drawn, and back."""

    def __init__(self, config: Any, device: torch.device) -> None:
        """Takes an autoencoder's configuration; some have a mean and a standard deviation for each channel."""
        self._factor = float(config.scaling_factor)
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        known = mean is not None and deviation is not None
        self._mean, self._deviation = (
            torch.tensor(numbers, device=device).view(1, -1, 1, 1)
            for numbers in ((mean, deviation) if known else ([0.0], [1.0]))
        )

    def done(self, latents: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) in fp32 to the same."""
        scaled: torch.Tensor = (latents - self._mean) * self._factor / self._deviation
        return scaled

    def undone(self, latents: torch.Tensor) -> torch.Tensor:
        """The way back."""
        unscaled: torch.Tensor = latents * self._deviation / self._factor + self._mean
        return unscaled


def load(checkpoint: Checkpoint) -> StableDiffusionXL:
    """Loads a pipeline of this family, without the parts that do not draw.

    Raises:
        ValueError, OSError: a part of the pipeline is missing, does not fit the others or cannot be read, or the
            settings do not fit it.
        OutOfMemory: it does not fit on the device.
    """
    with devices.device_errors():
        pipeline, networks = networks_of(checkpoint, upcast_decoder=True)
    _check(pipeline, checkpoint.name)
    info = describe(pipeline, checkpoint, FAMILY)
    interval = parse_interval(checkpoint.settings.guidance_interval)
    rescale = rescale_of(pipeline, checkpoint.settings, FAMILY)
    language, inversions = reading_of(pipeline, checkpoint.settings)
    adapters = adapters_of(
        checkpoint,
        pipeline,
        networks,
        lambda: DualPromptEncoder(pipeline, checkpoint.device, language, inversions),
    )
    controls = controls_of(checkpoint, pipeline, networks, vae_factor(pipeline.vae.config))
    opened = OpenPasses(networks, adapters, controls)
    second = None
    if checkpoint.refiner:
        channels = pipeline.vae.config.latent_channels
        second = refiner.load(checkpoint.refiner, channels, language, inversions)
    return StableDiffusionXL(
        pipeline,
        networks,
        opened.described(info),
        checkpoint.device,
        interval,
        rescale,
        language,
        inversions,
        opened,
        second,
    )


def _check(pipeline: Any, name: str) -> None:
    """
    Raises:
        ValueError: the U-Net is told something else than a pooled text and sizes, or as many numbers as there are not.
    """
    config, encoder = pipeline.unet.config, pipeline.text_encoder_2
    if encoder is None or pipeline.tokenizer_2 is None:
        raise ValueError(
            f"{name} lacks text_encoder_2 or tokenizer_2, which SDXL reads prompts with"
        )
    if config.addition_embed_type != "text_time":
        raise ValueError(
            f"the U-Net of {name} has addition_embed_type {config.addition_embed_type!r}; SDXL has 'text_time'"
        )
    given = SIZE_NUMBERS * config.addition_time_embed_dim + encoder.config.projection_dim
    if config.projection_class_embeddings_input_dim != given:
        raise ValueError(
            f"the U-Net of {name} takes {config.projection_class_embeddings_input_dim} numbers of text and size; its "
            f"configuration and text_encoder_2 make {given}"
        )
