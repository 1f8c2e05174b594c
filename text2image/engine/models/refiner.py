"""SDXL's refiner: a second network that takes a picture's last, least noisy steps ("ensemble of experts").

As in diffusers: `StableDiffusionXLPipeline` with `denoising_end`, whose latents `StableDiffusionXLImg2ImgPipeline` goes
on from with the same `denoising_start`. It reads the prompt with SDXL's second encoder alone, and in the place of the
picture's size it is told how well the picture is to be liked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from text2image.core.messages import Request
from text2image.core.samplers import asks_twice
from text2image.engine import devices
from text2image.engine.layouts.folder import read_json
from text2image.engine.models.prompts import DualPromptEncoder, Encoded
from text2image.engine.prompts.chunks import Language
from text2image.engine.prompts.inversions import Inversion
from text2image.engine.runtimes.choice import networks_of
from text2image.engine.runtimes.networks import SCORE_NUMBERS, SIZE_NUMBERS, Networks
from text2image.engine.sample import Sample
from text2image.engine.samplers.tables import Table, Tables

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

# How well pictures are to be liked, and those that are not wanted; diffusers' defaults.
_SCORE, _NEGATIVE_SCORE = 6.0, 2.5


class Refiner:
    """A loaded refiner, which SDXL asks in the place of its own network from the switch on.

    Attributes:
        networks: its U-Net; pictures are decoded by the base's autoencoder.
    """

    def __init__(
        self,
        pipeline: Any,
        networks: Networks,
        switch: float,
        device: torch.device,
        language: Language | None = None,
        inversions: Sequence[Inversion] = (),
    ) -> None:
        """Takes the parts of a diffusers pipeline; `switch` is the share of the noise that the base takes away."""
        self.networks = networks
        self._device = device
        self._dtype: torch.dtype = pipeline.unet.dtype
        self._tables = Tables(pipeline.scheduler.config)
        # It has the second of the base's encoders.
        own = [replace(each, vectors=each.vectors[1:]) for each in inversions]
        self._prompts = DualPromptEncoder(pipeline, device, language, own)
        self._scored = bool(pipeline.config.requires_aesthetics_score)
        most = int(pipeline.scheduler.config.num_train_timesteps)
        self._cutoff = round(most - switch * most)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        """What it reads of each sample's prompts, one row or two."""
        return [rows for rows, _ in self._prompts.encode_samples(samples)]

    def base_calls(self, table: Table) -> int:
        """How many of the base's calls come before the switch."""
        return sum(timestep >= self._cutoff for timestep in table.timesteps)

    def table(self, request: Request) -> Table | None:
        """What comes after the switch; None if nothing does.

        Raises:
            ValueError: the refiner cannot be asked by this sampler in so many steps.
        """
        whole = self._tables.table(request.sampler, request.steps, request.schedule)
        calls = sum(timestep < self._cutoff for timestep in whole.timesteps)
        if not calls:
            return None
        order = 2 if asks_twice(request.sampler) else 1
        if order == 2 and calls % 2 == 0:
            # A step that the switch falls into is taken anew, as in diffusers.
            calls += 1
        first = (whole.calls - calls) // order
        return self._tables.table(request.sampler, request.steps, request.schedule, first=first)

    def time_ids(self, request: Request, rows: int) -> torch.Tensor:
        """What it is told of the picture: (rows, 5), size, crop and score, or (rows, 6), without a score."""
        size = [request.height, request.width]
        scores = [[_NEGATIVE_SCORE], [_SCORE]] if self._scored else [size, size]
        told = [[*size, 0, 0, *score] for score in scores]
        return devices.placed(told[-rows:], self._device, self._dtype)


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration of a refiner's scheduler."""
    return read_json(folder / "scheduler" / "scheduler_config.json")


def load(
    checkpoint: Checkpoint,
    channels: int,
    language: Language | None = None,
    inversions: Sequence[Inversion] = (),
) -> Refiner:
    """Loads a refiner, without the parts that do not draw.

    Args:
        channels: of the base's latents.
        language: how the base reads prompts, and `inversions` the words in it that files teach that.

    Raises:
        ValueError, OSError, OutOfMemory: as loading any model does, or it is not made for such latents.
    """
    with devices.device_errors():
        pipeline, networks = networks_of(checkpoint)
    config, encoder = pipeline.unet.config, pipeline.text_encoder_2
    numbers = SCORE_NUMBERS if pipeline.config.requires_aesthetics_score else SIZE_NUMBERS
    given = numbers * config.addition_time_embed_dim + encoder.config.projection_dim
    if config.in_channels != channels or config.projection_class_embeddings_input_dim != given:
        raise ValueError(
            f"T2I_REFINER={checkpoint.name} takes {config.in_channels} channels, and of text and size "
            f"{config.projection_class_embeddings_input_dim} numbers; the model gives {channels} and {given}"
        )
    return Refiner(
        pipeline,
        networks,
        checkpoint.settings.refiner_switch,
        checkpoint.device,
        language,
        inversions,
    )
