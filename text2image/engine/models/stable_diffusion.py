"""Stable Diffusion 1.x and 2.x, their Turbo and LCM forms, and all else with a UNet2DConditionModel and one encoder.

The mathematics is that of diffusers' `StableDiffusionPipeline.__call__`, taken apart into steps; a sample drawn here
alone equals the pipeline's picture for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from text2image.core.guidance import EVERYWHERE, Interval, parse_interval
from text2image.core.messages import ModelInfo, Pixels, Quality, Request
from text2image.core.passes import Pass, schedule, work
from text2image.core.samplers import network_calls
from text2image.engine import devices
from text2image.engine.adapters.model import adapters_of
from text2image.engine.adapters.passes import OpenPasses
from text2image.engine.controls.model import controls_of
from text2image.engine.models import latents
from text2image.engine.models.contract import Pending, Unread
from text2image.engine.models.description import describe, reading_of, rescale_of, vae_factor
from text2image.engine.models.init_images import ImageEncoder, load_with
from text2image.engine.models.previews import Projection
from text2image.engine.models.prompts import PromptEncoder, Wording
from text2image.engine.prompts.chunks import Language
from text2image.engine.prompts.inversions import Inversion
from text2image.engine.prompts.lengths import grouped, joined
from text2image.engine.runtimes.choice import networks_of
from text2image.engine.runtimes.deep import outer_share
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import BatchKey, Plan, Sample
from text2image.engine.samplers.tables import Tables
from text2image.engine.samplers.update import Trajectory

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

FAMILY = "stable-diffusion"


@dataclass(slots=True)
class State:
    """A sample's tensors, as `latents` wants them; `embeddings` are (rows, tokens, width).

    Of the `passes` those with one row take the last of these. `features` are the deep ones (rows, D, h, w) of the last
    whole pass, if a later one takes them.
    """

    trajectory: Trajectory
    embeddings: torch.Tensor
    guidance_embedding: torch.Tensor | None
    passes: tuple[Pass, ...]
    features: torch.Tensor | None = None

    @property
    def next(self) -> Pass:
        """The pass that comes next."""
        return self.passes[self.trajectory.call]


class Prediction(NamedTuple):
    """A sample's: `guided` is (1, C, h, w), `features` those to be kept in its state."""

    guided: torch.Tensor
    features: torch.Tensor | None


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
        whole_every: int = 1,
        language: Language | None = None,
        inversions: Sequence[Inversion] = (),
        opened: OpenPasses[PromptEncoder] | None = None,
    ) -> None:
        """Takes the parts of a diffusers pipeline; of its U-Net and autoencoder the configurations alone.

        Args:
            interval: where fast pictures are guided.
            rescale: of guidance; see `latents.guided`.
            whole_every: of so many passes of a fast picture, one computes the deep part of the network.
            language: how prompts are read, and `inversions` the words in it that files teach the model.
            opened: passes with adapters and ControlNets that pictures may be drawn with.
        """
        self.info = info
        self.max_rows = devices.max_rows(device)
        self.memory = devices.memory_of(device)
        self._device = device
        self._interval = interval
        self._rescale = rescale
        self._whole_every = whole_every
        self._outer_load = outer_share(pipeline.unet) if whole_every > 1 else 1.0
        self._networks = networks
        self._open: OpenPasses[PromptEncoder] = opened or OpenPasses(networks)
        self.adapters, self.controls = self._open.adapters, self._open.controls
        self._config = pipeline.unet.config
        self._dtype: torch.dtype = pipeline.unet.dtype
        self._scaling_factor = float(pipeline.vae.config.scaling_factor)
        self._latent_scale = vae_factor(pipeline.vae.config)
        self._tables = Tables(pipeline.scheduler.config)
        self._prompts = PromptEncoder(
            pipeline.tokenizer, pipeline.text_encoder, device, language, inversions
        )
        self._channels = int(pipeline.vae.config.latent_channels)
        self._images = ImageEncoder(
            networks,
            device,
            lambda each: each * self._scaling_factor,
            scale=self._latent_scale,
            conditions=self._config.in_channels != self._channels,
        )
        self._projection = Projection(self._channels)
        self._side = devices.SideStream(device)

    def plan(self, request: Request) -> Plan:
        height, width = self._sides(request)
        self._images.prepare(request)
        passes = self._passes(request, network_calls(request.sampler, request.steps_drawn))
        rows = max(each.rows for each in passes)
        load = work(passes, self._outer_load) / (rows * len(passes))
        load *= self._open.load_of(request, len(passes))
        load = load_with(load, request, rows, len(passes))
        return Plan(
            BatchKey((height, width), size=height * width),
            rows,
            len(passes),
            load,
            self._prompts.work(request),
        )

    def _passes(self, request: Request, total: int) -> tuple[Pass, ...]:
        """What so many passes of a picture compute."""
        is_deep = request.quality is Quality.FAST and not _reaches_in(request)
        every = self._whole_every if is_deep else 1
        return schedule(total, latents.guided_calls(request, total, self._guided_in), every)

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

    def _encode(self, samples: Sequence[Sample], encoder: PromptEncoder) -> list[Unread]:
        requests = [sample.generation.request for sample in samples]
        prompts = [Wording(each.prompt, each.clip_skip) for each in requests]
        negatives = [Wording(each.negative_prompt, each.clip_skip) for each in requests]
        with devices.device_errors():
            self._images.encode(requests)
            texts = encoder.encode(prompts + negatives)
        unread = []
        for sample, positive, negative in zip(
            samples, texts[: len(samples)], texts[len(samples) :], strict=True
        ):
            is_guided = sample.rows == 2
            rows = (
                [negative.embeddings, positive.embeddings] if is_guided else [positive.embeddings]
            )
            sample.state = joined(rows)
            unread.append(Unread(positive.unread, negative.unread if is_guided else ""))
        return unread

    @torch.inference_mode()
    def start(self, samples: Sequence[Sample]) -> None:
        latents.start(samples, self._initial, self._set_next)

    def _initial(self, sample: Sample) -> State:
        request = sample.generation.request
        shape = (1, self._channels, *self._sides(request))
        image = self._images.of(request)
        trajectory = latents.trajectory(
            sample, self._tables, shape, self._dtype, self._device, image=image
        )
        return State(
            trajectory,
            embeddings=sample.state,
            guidance_embedding=latents.embedded_scale(
                request.guidance_scale, self._config.time_cond_proj_dim, self._dtype, self._device
            ),
            passes=self._passes(request, sample.passes),
        )

    def _set_next(self, sample: Sample) -> None:
        """Sets what the next pass takes, of which the plan knew the mean alone; a picture that is done keeps it."""
        if not sample.done:
            sample.rows, whole = sample.state.next
            sample.load = self._open.load_next(sample) if whole else self._outer_load

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        outer = [sample for sample in samples if not sample.state.next.whole]
        whole = [sample for sample in samples if sample.state.next.whole]
        open_ = []
        if self._open.are_needed(samples):
            # All of them, unless others need deep features of this pass.
            deep = self._whole_every > 1
            open_ = [each for each in whole if not deep or _reaches_in(each.generation.request)]
            whole = [each for each in whole if each not in open_]
        parts = (
            (whole, self._predict_whole),
            (outer, self._predict_outer),
            (open_, self._predict_open),
        )
        predictions: dict[Sample, Prediction] = {}
        with devices.device_errors():
            for part, predict in parts:
                for group in grouped(part, _text_length):
                    predictions.update(zip(group, predict(group), strict=True))
            devices.wait(self._device)
        return [predictions[sample] for sample in samples]

    def _predict_whole(self, samples: Sequence[Sample]) -> list[Prediction]:
        inputs, guidance = self._inputs(samples)
        if self._whole_every == 1:
            output = self._networks.predict(*inputs, guidance)
            return self._predictions(output, samples, [None] * len(samples))
        output, features = self._networks.predict_whole(*inputs, guidance)
        each = torch.split(features, [sample.rows for sample in samples])
        # Copies, since a part of the batch's would keep all of it in memory.
        return self._predictions(output, samples, [own.clone() for own in each])

    def _predict_open(self, samples: Sequence[Sample]) -> list[Prediction]:
        inputs, guidance = self._inputs(samples)
        output = self._open.predict(samples, *inputs, guidance)
        return self._predictions(output, samples, [None] * len(samples))

    def _predict_outer(self, samples: Sequence[Sample]) -> list[Prediction]:
        inputs, guidance = self._inputs(samples)
        features = torch.cat([sample.state.features[-sample.rows :] for sample in samples])
        output = self._networks.predict_outer(*inputs, features, guidance)
        return self._predictions(output, samples, [sample.state.features for sample in samples])

    def _inputs(
        self, samples: Sequence[Sample]
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | None]:
        """Latents, timesteps and embeddings of all rows, and what guidance the network takes as an input."""
        inputs, timesteps, _ = latents.rows_of(samples, self._device)
        embeddings = joined([sample.state.embeddings[-sample.rows :] for sample in samples])
        guidance = latents.joined([sample.state.guidance_embedding for sample in samples])
        return (inputs, timesteps, embeddings), guidance

    def _predictions(
        self,
        output: torch.Tensor,
        samples: Sequence[Sample],
        features: Sequence[torch.Tensor | None],
    ) -> list[Prediction]:
        """Of the rows (N, C, h, w) of all samples; features are kept for those whose next pass takes them."""
        guided = torch.split(latents.guided(output.float(), samples, self._rescale), 1)
        following = (sample.state.passes[sample.state.trajectory.call + 1 :] for sample in samples)
        return [
            Prediction(own, None if not after or after[0].whole else kept)
            for own, kept, after in zip(guided, features, following, strict=True)
        ]

    @torch.inference_mode()
    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        guided = [each.guided for each in predictions]
        failures = latents.advance(samples, guided, self._set_next)
        for sample, prediction in zip(samples, predictions, strict=True):
            sample.state.features = prediction.features
        return failures

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


def _text_length(sample: Sample) -> int:
    return int(sample.state.embeddings.shape[1])


def _reaches_in(request: Request) -> bool:
    """Whether a picture's deep features are changed in each pass, so that all are whole: adapters and nets do that."""
    return bool(request.loras or request.controls)


def load(checkpoint: Checkpoint) -> StableDiffusion:
    """Loads a pipeline of this family, without the parts that do not draw.

    Raises:
        ValueError, OSError: a part of the pipeline is missing or cannot be read, or the settings do not fit it.
        OutOfMemory: it does not fit on the device.
    """
    with devices.device_errors():
        pipeline, networks = networks_of(checkpoint, deep=checkpoint.settings.deep_cache > 1)
    info = describe(pipeline, checkpoint, FAMILY)
    language, inversions = reading_of(pipeline, checkpoint.settings)
    adapters = adapters_of(
        checkpoint,
        pipeline,
        networks,
        lambda: PromptEncoder(
            pipeline.tokenizer, pipeline.text_encoder, checkpoint.device, language, inversions
        ),
    )
    controls = controls_of(checkpoint, pipeline, networks, vae_factor(pipeline.vae.config))
    opened = OpenPasses(networks, adapters, controls)
    return StableDiffusion(
        pipeline,
        networks,
        opened.described(info),
        checkpoint.device,
        parse_interval(checkpoint.settings.guidance_interval),
        rescale_of(pipeline, checkpoint.settings, FAMILY),
        checkpoint.settings.deep_cache,
        language,
        inversions,
        opened,
    )
