"""Stable Diffusion 1.x and 2.x, their Turbo and LCM forms, and all else with a UNet2DConditionModel and one encoder.

The mathematics is that of diffusers' `StableDiffusionPipeline.__call__`, taken apart into steps; a sample drawn here
alone equals the pipeline's picture for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.guidance import EVERYWHERE, Interval, parse_interval
from text2image.core.messages import ModelInfo, Pixels, Quality, Request
from text2image.core.samplers import network_calls
from text2image.engine import devices
from text2image.engine.models.contract import DeviceLost, Pending
from text2image.engine.models.description import describe
from text2image.engine.models.previews import Projection
from text2image.engine.models.prompts import PromptEncoder
from text2image.engine.runtimes.choice import networks_of
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import BatchKey, Plan, Sample
from text2image.engine.samplers import update
from text2image.engine.samplers.tables import Tables
from text2image.engine.samplers.update import Trajectory

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

# Latent pixels to decode at once on a GPU: four pictures of 512 x 512.
_DECODE_AREA = 4 * 64 * 64


@dataclass(slots=True)
class State:
    """A sample's tensors: its latents are the trajectory's, `embeddings` are (rows, tokens, width).

    `guided` are the network calls, counted from 0, that take all of these rows; the others take the last alone.
    Latents stay in fp32 whatever the network's precision is: what half of it loses adds up over the steps.
    """

    trajectory: Trajectory
    embeddings: torch.Tensor
    guidance_embedding: torch.Tensor | None
    guided: range


class StableDiffusion:
    """A loaded pipeline that keeps the model contract."""

    def __init__(
        self,
        pipeline: Any,
        networks: Networks,
        info: ModelInfo,
        device: torch.device,
        interval: Interval = EVERYWHERE,
    ) -> None:
        """Takes the parts of a diffusers pipeline; of its U-Net and autoencoder the configurations alone.

        Args:
            interval: where fast pictures are guided.
        """
        self.info = info
        self.max_rows = devices.max_rows(device)
        self.memory = devices.memory_of(device)
        self._device = device
        self._interval = interval
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
        height, width = request.height // self._latent_scale, request.width // self._latent_scale
        passes = network_calls(request.sampler, request.steps)
        guided = len(self._guided(request, passes))
        rows = 2 if guided else 1
        load = (passes + guided) / (rows * passes)
        return Plan(BatchKey((height, width), size=height * width), rows, passes, load)

    def _guided(self, request: Request, passes: int) -> range:
        """Those of so many passes that take a second, unconditional row, counted from 0."""
        # A network that takes the scale as an input (LCM) needs none.
        if self._config.time_cond_proj_dim is not None or request.guidance_scale <= 1:
            return range(0)
        interval = self._interval if request.quality is Quality.FAST else EVERYWHERE
        return interval.passes(passes)

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
            _set_rows(sample)

    def _initial(self, sample: Sample) -> State:
        request = sample.generation.request
        try:
            table = self._tables.table(request.sampler, request.steps, request.schedule)
        except ValueError as error:
            raise InvalidRequest(FieldViolation("sampler", str(error))) from error
        # On the CPU, so that a seed means the same noise on every device.
        generator = torch.Generator("cpu").manual_seed(sample.seed)
        height, width = request.height // self._latent_scale, request.width // self._latent_scale
        shape = (1, self._config.in_channels, height, width)
        noise = torch.randn(shape, generator=generator, dtype=self._dtype)
        latents = devices.moved(noise.float() * table.noise_scale, self._device)
        # For a few numbers of steps the sampler makes one more than its formula says.
        sample.passes = table.calls
        return State(
            Trajectory(table, latents, generator, self._dtype),
            embeddings=sample.state,
            guidance_embedding=self._embed_guidance(request.guidance_scale),
            guided=self._guided(request, table.calls),
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
        embedding = torch.cat([angles.sin(), angles.cos()])[None].to(self._dtype)
        return devices.moved(embedding, self._device)

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        states: list[State] = [sample.state for sample in samples]
        trajectories = [state.trajectory for state in states]
        # The place of each row's sample. A list first, since to count the repeats of a tensor on a GPU waits for it.
        owners = [place for place, sample in enumerate(samples) for _ in range(sample.rows)]
        with devices.device_errors():
            rows = devices.placed(owners, self._device, torch.int64)
            output = self._networks.predict(
                update.inputs_of(trajectories).index_select(0, rows),
                update.timesteps_of(trajectories)[owners],
                torch.cat([sample.state.embeddings[-sample.rows :] for sample in samples]),
                self._guidance_rows(states),
            )
            predictions = _guided(output.float(), samples)
            devices.wait(self._device)
        return list(torch.split(predictions, 1))

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
        failures = self._advanced(samples, predictions)
        for sample, failure in zip(samples, failures, strict=True):
            sample.done = failure is None and sample.state.trajectory.done
            _set_rows(sample)
        return failures

    def _advanced(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        trajectories = [sample.state.trajectory for sample in samples]
        try:
            with devices.device_errors():
                update.advance(trajectories, predictions)
        except DeviceLost:
            raise
        except Exception as error:
            if len(samples) == 1:
                return [error]
            # Nothing has changed, and the noise is drawn: alone only those fail that must.
            return [
                self._advanced([sample], [prediction])[0]
                for sample, prediction in zip(samples, predictions, strict=True)
            ]
        return [None] * len(samples)

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample]) -> Sequence[Pixels | Pending]:
        with devices.device_errors():
            latents = torch.cat([sample.state.trajectory.latents for sample in samples])
            with self._side.work(latents):
                decoded = self._networks.decode(latents / self._scaling_factor)
                # The warm-up decodes noise, from which no preview is to be learned.
                learn = all(sample.done for sample in samples)
                drawn = self._drawn(latents, decoded, learn=learn)
            return drawn if self._side.is_apart else [each.pixels() for each in drawn]

    def _drawn(self, latents: torch.Tensor, decoded: torch.Tensor, *, learn: bool) -> list[_Drawn]:
        """Sends pictures (N, 3, H, W), about -1 to 1, and all else that is wanted of them, on their way to the CPU."""
        # Catches a decoder that overflows in half precision as well as latents that were broken before.
        finite = latents.isfinite().flatten(1).all(1) & decoded.isfinite().flatten(1).all(1)
        pictures = (decoded.float() / 2 + 0.5).clamp(0, 1)
        wanted = [_rgb(pictures.movedim(1, -1)), finite]
        if learn and not self._projection.knows_enough:
            wanted += [latents, self._projection.reduced(latents, pictures)]
        fetched = devices.Fetched(*wanted)
        return [_Drawn(fetched, place, self._projection) for place in range(len(latents))]

    def decode_limit(self, sample: Sample) -> int:
        # On a CPU one picture fills the cores; more at once would only keep the steps waiting.
        return 1 if self._device.type == "cpu" else max(1, int(_DECODE_AREA / sample.key.size))

    @torch.inference_mode()
    def preview(self, sample: Sample) -> Pixels:
        return _pixels(_rgb(self._projection.draw(sample.state.trajectory.predicted)))

    def release(self, sample: Sample) -> None:
        """Nothing is held but the state."""

    def free_memory(self) -> None:
        self._networks.free_memory()


def _set_rows(sample: Sample) -> None:
    """Sets what the next pass takes, of which the plan knew the mean alone."""
    state: State = sample.state
    sample.rows = 2 if state.trajectory.call in state.guided else 1
    sample.load = 1.0


def _guided(output: torch.Tensor, samples: Sequence[Sample]) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): the rows (N, C, h, w) of all samples to one for each sample.

    A sample's first row is unconditional and its last conditional; one that has a single row keeps it as it is.
    """
    last = list(accumulate(sample.rows for sample in samples))
    first = [end - sample.rows for end, sample in zip(last, samples, strict=True)]
    places = devices.placed([*first, *(end - 1 for end in last)], output.device, torch.int64)
    unconditional, conditional = output.index_select(0, places).chunk(2)
    scales = [sample.generation.request.guidance_scale for sample in samples]
    column = devices.placed(scales, output.device, output.dtype).view(-1, 1, 1, 1)
    return unconditional + column * (conditional - unconditional)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Picture number `place` of those that were decoded together, and what is to be learned from all of them."""

    fetched: devices.Fetched
    place: int
    projection: Projection

    def ready(self) -> bool:
        return self.fetched.ready()

    @torch.inference_mode()
    def pixels(self) -> Pixels:
        rgb, finite, *examples = self.fetched.tensors()
        if not finite[self.place]:
            raise ValueError("the picture holds numbers that are not finite")
        if self.place == 0 and examples and finite.all():
            self.projection.learn(*examples)
        return _pixels(rgb[self.place])


def _rgb(pictures: torch.Tensor) -> torch.Tensor:
    """8 bit numbers of pictures (..., H, W, 3) in 0 to 1."""
    return (pictures * 255).round().to(torch.uint8).contiguous()


def _pixels(rgb: torch.Tensor) -> Pixels:
    """8 bit RGB (H, W, 3) on the CPU."""
    height, width, _ = rgb.shape
    return Pixels(width, height, rgb.numpy().tobytes())


def load(checkpoint: Checkpoint) -> StableDiffusion:
    """Loads a pipeline of this family, without the parts that do not draw.

    Raises:
        ValueError, OSError: a part of the pipeline is missing or cannot be read, or the settings do not fit it.
        OutOfMemory: it does not fit on the device.
    """
    with devices.device_errors():
        pipeline, networks = networks_of(checkpoint)
    info = describe(pipeline, checkpoint, "stable-diffusion")
    interval = parse_interval(checkpoint.settings.guidance_interval)
    return StableDiffusion(pipeline, networks, info, checkpoint.device, interval)
