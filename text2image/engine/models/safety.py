"""Pictures that a pipeline's own safety checker looks at before they leave the engine, as diffusers has it look."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPImageProcessor

from text2image.core.errors import ContentBlocked
from text2image.core.messages import Pixels
from text2image.engine import devices
from text2image.engine.layouts.safety_checker import CHECKER, EXTRACTOR, variant, why_unchecked
from text2image.engine.models.contract import Model, Pending, pixels_of
from text2image.engine.preflight.findings import listed
from text2image.engine.sample import Sample


class SafetyChecker:
    """Says which pictures are to be blocked. Called from the engine's thread."""

    def __init__(self, network: Any, extractor: Any, device: torch.device) -> None:
        """
        Args:
            network: a StableDiffusionSafetyChecker, on the device.
            extractor: prepares pictures for it.
        """
        self._network = network
        self._extractor = extractor
        self._device = device

    @torch.inference_mode()
    def blocks(self, pictures: Sequence[Pixels]) -> list[bool]:
        """What `run_safety_checker` of diffusers' pipelines says of each.

        Raises:
            OutOfMemory: with fewer pictures it may fit.
            DeviceLost: nothing will work in this process any more.
        """
        images = [Image.frombytes("RGB", (each.width, each.height), each.rgb) for each in pictures]
        rows = self._extractor(images, return_tensors="pt").pixel_values
        with devices.device_errors():
            rows = devices.moved(rows.to(self._network.dtype), self._device)
            # It makes black what it blocks, for which these stand in.
            _, blocked = self._network(clip_input=rows, images=np.zeros((len(images), 1)))
        return [bool(each) for each in blocked]


class CheckedModel:
    """A model that gives out no picture which its safety checker blocks; all else is as without it."""

    def __init__(self, model: Model, checker: SafetyChecker) -> None:
        self._model = model
        self._checker = checker
        self.info, self.max_rows, self.memory = model.info, model.max_rows, model.memory
        # What some families have besides; see `shelves_of`.
        self.adapters = getattr(model, "adapters", None)
        self.controls = getattr(model, "controls", None)
        self.plan, self.encode, self.start = model.plan, model.encode, model.start
        self.predict, self.advance = model.predict, model.advance
        self.decode_limit, self.preview = model.decode_limit, model.preview
        self.release, self.free_memory = model.release, model.free_memory

    def decode(self, samples: Sequence[Sample]) -> Sequence[Pixels | Pending]:
        """As the contract has it; what is blocked raises when its pixels are asked for."""
        batch = _Batch(self._model.decode(samples), self._checker)
        pictures = [_Picture(batch, place) for place in range(len(samples))]
        if not all(isinstance(each, Pixels) for each in batch.drawn):
            return pictures
        outcomes = batch.outcomes()
        return [
            outcome if isinstance(outcome, Pixels) else picture
            for picture, outcome in zip(pictures, outcomes, strict=True)
        ]


class _Batch:
    """Pictures that were decoded together, and are looked at together when the first of them is asked for."""

    def __init__(self, drawn: Sequence[Pixels | Pending], checker: SafetyChecker) -> None:
        self.drawn = drawn
        self._checker = checker
        self._outcomes: list[Pixels | Exception] | None = None

    def outcomes(self) -> list[Pixels | Exception]:
        """Of each picture itself, or why it is not to be had; raises what `SafetyChecker.blocks` does."""
        if self._outcomes is None:
            outcomes = [_waited_for(each) for each in self.drawn]
            places = [place for place, each in enumerate(outcomes) if isinstance(each, Pixels)]
            pictures = [each for each in outcomes if isinstance(each, Pixels)]
            blocked = self._checker.blocks(pictures) if pictures else []
            for place, is_blocked in zip(places, blocked, strict=True):
                if is_blocked:
                    outcomes[place] = ContentBlocked.picture()
            self._outcomes = outcomes
        return self._outcomes


@dataclass(frozen=True, slots=True)
class _Picture:
    """Picture number `place` of a batch."""

    batch: _Batch
    place: int

    def ready(self) -> bool:
        return all(isinstance(each, Pixels) or each.ready() for each in self.batch.drawn)

    def pixels(self) -> Pixels:
        outcome = self.batch.outcomes()[self.place]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _waited_for(picture: Pixels | Pending) -> Pixels | Exception:
    try:
        return pixels_of(picture)
    except ValueError as error:
        # Its own, and no fault of those beside it.
        return error


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> SafetyChecker | None:
    """Loads a pipeline's safety checker; None where it has none that can be used, which the preflight tells.

    Raises:
        ValueError, OSError: it cannot be read, or not all of it is there.
        OutOfMemory: it does not fit on the device.
    """
    if why_unchecked(folder):
        return None
    # It warns that a black picture will be returned, which is not so here.
    logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
    with devices.device_errors():
        network, told = StableDiffusionSafetyChecker.from_pretrained(
            folder / CHECKER,
            dtype=dtype,
            variant=variant(folder),
            local_files_only=True,
            output_loading_info=True,
        )
        if missing := sorted(told["missing_keys"]):
            # They would be random numbers, and what is decided with them too.
            raise ValueError(f"{CHECKER} lacks weights: {listed(missing)}")
        network = network.to(device).eval()
    extractor = CLIPImageProcessor.from_pretrained(folder / EXTRACTOR, local_files_only=True)  # nosec B615
    return SafetyChecker(network, extractor, device)
