"""A model without torch or a device, for the parts of the engine that need neither.

Time is a number that it advances itself, failures and the size of its memory are chosen by the test, and a picture's
only pixel tells which sample it was drawn from and how many steps it took.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from text2image.core.init_image import InitImage
from text2image.core.messages import ModelInfo, Pixels, Quality, Request, Sampler, Schedule
from text2image.engine.memory import DeviceMemory
from text2image.engine.models.contract import OutOfMemory, Unread
from text2image.engine.sample import BatchKey, Plan, Sample

POISON = "poison"


def key_of(height: int, width: int) -> BatchKey:
    """The key of pictures of so many latent pixels."""
    return BatchKey((height, width), size=height * width)


NATIVE = key_of(16, 16)


@dataclass
class Clock:
    """Seconds, moved by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def make_request(
    prompt: str = "a cat",
    *,
    steps: int = 4,
    n: int = 1,
    seed: int = 0,
    guidance_scale: float = 5.0,
    width: int = 128,
    height: int = 128,
    sampler: Sampler = Sampler.DPMPP_2M,
    schedule: Schedule | None = None,
    negative_prompt: str = "",
    quality: Quality = Quality.EXACT,
    model: str = "",
    image: InitImage | None = None,
    strength: float | None = None,
    clip_skip: int = 0,
) -> Request:
    return Request(
        prompt=prompt,
        negative_prompt=negative_prompt,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        n=n,
        sampler=sampler,
        schedule=schedule,
        quality=quality,
        model=model,
        image=image,
        strength=strength,
        clip_skip=clip_skip,
    )


def make_info(**changes: Any) -> ModelInfo:
    values: dict[str, Any] = {
        "id": "double",
        "revision": "0",
        "family": "double",
        "width": 128,
        "height": 128,
        "min_side": 64,
        "max_side": 256,
        "steps": 20,
        "guidance_scale": 5.0,
        "sampler": Sampler.DPMPP_2M,
        "samplers": tuple(Sampler),
        "max_prompt_tokens": 77,
        "device": "cpu",
        "dtype": "float32",
        "schedules": tuple(Schedule),
    }
    return ModelInfo(**{**values, **changes})


@dataclass
class TimedModel:
    """Keeps the model contract on a clock of its own.

    Attributes:
        memory_rows: rows of a forward pass beyond which there is no memory.
        overhead, row_seconds, decode_time: what a step costs, and each of its rows, and a decoded picture; rows and
            pictures of 128 x 128, larger ones in proportion.
        preview_time, encode_time: what a preview costs, and a prompt.
        slowdown: how many times longer all of this takes.
        noise: standard deviation of the logarithm of a step's time.
        batches: the samples of every forward pass that went well.
        started, released: how often each sample was.
    """

    clock: Clock = field(default_factory=Clock)
    info: ModelInfo = field(default_factory=make_info)
    max_rows: int = 32
    memory: DeviceMemory | None = None
    memory_rows: int = 10**9
    overhead: float = 0.02
    row_seconds: float = 0.01
    decode_time: float = 0.02
    decode_chunk: int = 4
    preview_time: float = 0.0
    encode_time: float = 0.0
    slowdown: float = 1.0
    noise: float = 0.0
    random: Random = field(default_factory=lambda: Random(1))
    batches: list[list[Sample]] = field(default_factory=list)
    decoded: list[list[Sample]] = field(default_factory=list)
    started: Counter[Sample] = field(default_factory=Counter)
    released: Counter[Sample] = field(default_factory=Counter)
    freed: int = 0

    def plan(self, request: Request) -> Plan:
        rows = 2 if request.guidance_scale > 1 else 1
        return Plan(key_of(request.height // 8, request.width // 8), rows, passes=request.steps)

    def encode(self, samples: Sequence[Sample]) -> list[Unread]:
        prompts = {sample.generation.request.prompt for sample in samples}
        self._take(len(prompts) * self.encode_time)
        return [Unread() for _ in samples]

    def start(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.state = 0
        self.started.update(samples)

    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        rows = sum(sample.rows for sample in samples)
        self._take(self.overhead + self._scale(samples) * rows * self.row_seconds, self.noise)
        if rows > self.memory_rows:
            raise OutOfMemory(f"{rows} rows")
        if any(POISON in sample.generation.request.prompt for sample in samples):
            raise RuntimeError("a kernel failed")
        self.batches.append(list(samples))
        return [sample.seed for sample in samples]

    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        return [
            self.advance_one(sample, prediction)
            for sample, prediction in zip(samples, predictions, strict=True)
        ]

    def advance_one(self, sample: Sample, prediction: Any) -> Exception | None:
        assert prediction == sample.seed, "a sample was given another one's prediction"
        sample.state += 1
        sample.done = sample.state == sample.passes
        return None

    def decode(self, samples: Sequence[Sample]) -> list[Pixels]:
        self._take(self._scale(samples) * len(samples) * self.decode_time)
        self.decoded.append(list(samples))
        return [
            Pixels(1, 1, bytes((sample.seed % 256, sample.state, sample.index)))
            for sample in samples
        ]

    def decode_limit(self, sample: Sample) -> int:
        return self.decode_chunk

    def preview(self, sample: Sample) -> Pixels:
        self._take(self.preview_time)
        return Pixels(1, 1, bytes((sample.seed % 256, sample.state, sample.index)))

    @staticmethod
    def _scale(samples: Sequence[Sample]) -> float:
        return samples[0].key.size / NATIVE.size

    def _take(self, seconds: float, noise: float = 0.0) -> None:
        factor = self.random.lognormvariate(0, noise) if noise else 1.0
        self.clock.now += seconds * self.slowdown * factor

    def release(self, sample: Sample) -> None:
        self.released[sample] += 1

    def free_memory(self) -> None:
        self.freed += 1
