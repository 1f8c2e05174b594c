"""The diffusers pipeline as all baselines load it and draw with it: prompts in, PNG in base64 out."""

from __future__ import annotations

import base64
import copy
import io
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from loadtests.baselines import MAX_BATCH, Request
from text2image.engine import devices
from text2image.engine.models.loading import EMBEDDED_PATH

WARM_UP = {"text": "warm-up", "steps": 2, "guidance_scale": 5.0, "seed": 0}


class Pipeline:
    """A loaded pipeline. Load it in the thread that draws: on a CPU two teams of threads stall each other."""

    def __init__(
        self, max_batch: int = MAX_BATCH, folder: Path | None = None, device: str = "auto"
    ) -> None:
        """Loads the embedded model, or the one in `folder`, onto a device as T2I_DEVICE names it."""
        picked = devices.pick_device(device)
        devices.prepare_thread(picked, devices.usable_cores())
        self._max_batch = max_batch
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        self._pipeline = StableDiffusionPipeline.from_pretrained(
            folder or EMBEDDED_PATH,
            dtype=devices.pick_dtype(picked, "auto"),
            local_files_only=True,
        ).to(picked)
        for part in (self._pipeline.unet, self._pipeline.vae):
            part.eval().to(memory_format=torch.channels_last)
        self._pipeline.set_progress_bar_config(disable=True)
        self._own = threading.local()
        for batch in (1, max_batch):
            self.draw([WARM_UP] * batch)

    def draw(self, requests: Sequence[Request]) -> list[str]:
        """A picture for each request, in their order. Those of equal steps and guidance are drawn together."""
        groups: defaultdict[tuple[int, float], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[request["steps"], request["guidance_scale"]].append(number)
        pictures: dict[int, str] = {}
        for (steps, guidance), numbers in groups.items():
            for start in range(0, len(numbers), self._max_batch):
                some = numbers[start : start + self._max_batch]
                images = self.images([requests[number] for number in some], steps, guidance)
                pictures |= dict(zip(some, map(_encoded, images), strict=True))
        return [pictures[number] for number in range(len(requests))]

    def images(self, requests: Sequence[Request], steps: int, guidance: float) -> list[Image.Image]:
        """One call of the pipeline."""
        # A shallow copy with a scheduler of its own, so that calls of several threads do not mix up their steps.
        pipeline = copy.copy(self._pipeline)
        pipeline.scheduler = copy.deepcopy(self._pipeline.scheduler)
        pipeline.tokenizer = self._tokenizer()
        generators = [torch.Generator("cpu").manual_seed(request["seed"]) for request in requests]
        drawn = pipeline(
            [request["text"] for request in requests],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
        )
        images: list[Image.Image] = drawn.images
        return images

    def _tokenizer(self) -> Any:
        """This thread's own: padding is set in a tokenizer for each call, and another's could be read."""
        if not hasattr(self._own, "tokenizer"):
            self._own.tokenizer = copy.deepcopy(self._pipeline.tokenizer)
        return self._own.tokenizer


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
