"""A second family is one new file and one line in a registry. Here is one, in plain Python, run by the real engine.

Its pictures take a base network and then a refiner of another size, and evaluate them twice a step; guidance ends half
way; rows of the base carry more than plain ones. A picture's pixels tell all that was done for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.doubles import make_info, make_request
from tests.unit.engine.test_engine import collect, until
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.messages import (
    GeneratedImage,
    Pixels,
    Progress,
    Request,
    Sampler,
    State,
    StreamOptions,
)
from text2image.core.settings import Settings
from text2image.engine.engine import Engine
from text2image.engine.models.contract import Unread
from text2image.engine.models.loading import FAMILIES, Checkpoint, load_model
from text2image.engine.sample import BatchKey, Plan, Sample

# The file of the family.

BASE, REFINER = BatchKey("base", size=64), BatchKey("refiner", size=32)
LOAD = 1.35


@dataclass
class Walk:
    """What was done for a sample: a digest that every pass goes into."""

    digest: bytes
    passes: int = 0


@dataclass
class Toy:
    checkpoint: Checkpoint
    max_rows: int = 16
    memory: None = None
    batches: list[list[tuple[Sample, BatchKey, int, float]]] = field(default_factory=list)
    held: set[Sample] = field(default_factory=set)
    released: Counter[Sample] = field(default_factory=Counter)
    encoded: list[str] = field(default_factory=list)
    # A batch with a sample that has taken so many passes waits at the gate.
    pause_at: int = -1
    paused: Event = field(default_factory=Event)
    gate: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.info = make_info(
            family="toy",
            id=self.checkpoint.name,
            revision=self.checkpoint.revision,
            sampler=Sampler.EULER,
            samplers=(Sampler.EULER,),
        )

    def plan(self, request: Request) -> Plan:
        if request.steps > 50:
            violation = FieldViolation("steps", f"{request.steps} is more than the 50 that it has")
            raise InvalidRequest(violation)
        return Plan(BASE, 2 if request.guidance_scale > 1 else 1, 2 * request.steps - 1, LOAD)

    def encode(self, samples: Sequence[Sample]) -> list[Unread]:
        prompts = dict.fromkeys(sample.generation.request.prompt for sample in samples)
        known = {prompt: hashlib.sha256(prompt.encode()).digest() for prompt in prompts}
        self.encoded += prompts
        for sample in samples:
            sample.state = known[sample.generation.request.prompt]
        return [Unread()] * len(samples)

    def start(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.state = Walk(sample.state + sample.seed.to_bytes(8))
            assert sample not in self.held
            self.held.add(sample)

    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        if any(sample.state.passes == self.pause_at for sample in samples):
            self.paused.set()
            assert self.gate.wait(30)
        assert len({sample.key for sample in samples}) == 1
        assert self.held.issuperset(samples)
        # Whose it is the engine has written into it.
        keys = [replace(sample.key, model="") for sample in samples]
        self.batches.append(
            [(each, key, each.rows, each.load) for each, key in zip(samples, keys, strict=True)]
        )
        return [
            f"{sample.key.value} {sample.rows} {sample.state.passes}".encode() for sample in samples
        ]

    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        for sample, prediction in zip(samples, predictions, strict=True):
            walk: Walk = sample.state
            walk.digest = hashlib.sha256(walk.digest + prediction).digest()
            walk.passes += 1
            sample.done = walk.passes == sample.passes
            if 2 * walk.passes >= sample.passes:
                sample.rows = 1
            if 3 * walk.passes >= 2 * sample.passes:
                sample.key, sample.load = REFINER, 1.0
        return [None] * len(samples)

    def decode(self, samples: Sequence[Sample]) -> list[Pixels]:
        return [self.preview(sample) for sample in samples]

    def decode_limit(self, sample: Sample) -> int:
        return 3

    def preview(self, sample: Sample) -> Pixels:
        return Pixels(1, 1, sample.state.digest[:3])

    def release(self, sample: Sample) -> None:
        self.held.remove(sample)
        self.released[sample] += 1

    def free_memory(self) -> None:
        """There is always enough."""


# What holds for it.


@asynccontextmanager
async def serving(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> AsyncIterator[tuple[Engine, Toy]]:
    """An engine that has loaded the toy by the class that its folder names."""
    monkeypatch.setitem(FAMILIES.own, "ToyPipeline", Toy)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    settings = Settings(model=str(folder), device="cpu")
    engine = Engine(lambda report: load_model(settings, 0, report))
    engine.start()
    await until(lambda: engine.status.state is not State.LOADING)
    assert engine.status.state is State.READY, engine.status.detail
    models: Any = engine._worker.models
    yield engine, models._models[folder.name]
    await engine.stop()


def images(events: Sequence[object]) -> dict[int, bytes]:
    return {each.seed: each.pixels.rgb for each in events if isinstance(each, GeneratedImage)}


REQUESTS = [
    make_request(f"thing {number % 5}", steps=1 + number % 7, n=1 + number % 3, seed=10 * number)
    for number in range(20)
] + [make_request("unguided", steps=6, guidance_scale=0.0, seed=900)]


async def test_a_family_of_one_file_and_one_line_is_drawn_with_in_any_crowd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with serving(monkeypatch, tmp_path) as (engine, toy):
        assert engine.model.family == "toy"
        assert engine.model.id == tmp_path.name
        alone = [images(await collect(engine, request)) for request in REQUESTS]
        toy.batches.clear()
        toy.pause_at = 0
        crowd = [asyncio.create_task(collect(engine, request)) for request in REQUESTS]
        await until(lambda: engine.status.counters.admitted == 2 * len(REQUESTS))
        toy.gate.set()
        together = [images(await each) for each in crowd]
        status = engine.status
    assert together == alone
    assert len({rgb for each in alone for rgb in each.values()}) > 30
    shapes = {(key, rows, load) for batch in toy.batches for _, key, rows, load in batch}
    assert shapes == {(BASE, 2, LOAD), (BASE, 1, LOAD), (REFINER, 1, 1.0)}
    for key in (BASE, REFINER):
        assert max(len(batch) for batch in toy.batches if batch[0][1] == key) > 3
    assert (status.counters.failed, status.active) == (0, 0)
    assert status.backlog_seconds == pytest.approx(0)
    assert not toy.held
    assert set(toy.released.values()) == {1}


async def test_its_progress_is_told_in_the_requests_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with serving(monkeypatch, tmp_path) as (engine, _):
        events = await collect(engine, make_request(steps=5), StreamOptions(progress_every=1))
        passes = engine.status.counters.sample_steps
    # A reader that is slow misses some of it, never the last.
    told = [(each.step, each.steps) for each in events if isinstance(each, Progress)]
    assert told == sorted(set(told))
    assert told[-1] == (5, 5)
    assert passes == 9


async def test_what_it_cannot_do_is_refused_at_admission_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with serving(monkeypatch, tmp_path) as (engine, toy):
        before = list(toy.encoded)
        with pytest.raises(InvalidRequest, match="51 is more than the 50"):
            await collect(engine, make_request(steps=51))
        counters = engine.status.counters
        assert toy.encoded == before
    assert (counters.admitted, counters.refused) == (0, 1)


async def test_who_leaves_while_it_is_refined_has_it_released(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with serving(monkeypatch, tmp_path) as (engine, toy):
        toy.pause_at = 80
        events = engine.generate(make_request(steps=50), StreamOptions(), time_limit=1e6)
        async with aclosing(events):
            await anext(events)
            await until(toy.paused.is_set)
        toy.gate.set()
        await until(lambda: engine.status.counters.cancelled == 1)
        assert toy.batches[-1][0][1] == REFINER
        assert engine.status.counters.steps_saved == 2 * 50 - 1 - 81
    assert not toy.held
    assert set(toy.released.values()) == {1}
