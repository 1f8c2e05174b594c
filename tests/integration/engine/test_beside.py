"""Decoding beside the steps: in which order a card gets its work, and that pictures are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.doubles import make_request
from tests.integration.engine.conftest import draw_alone, harness_for, settings_for
from text2image.core.errors import Internal
from text2image.core.messages import Completed, Pixels, StreamOptions
from text2image.engine.devices import SideStream
from text2image.engine.models.loading import load_model
from text2image.engine.models.stable_diffusion import StableDiffusion
from text2image.engine.sample import Generation, Sample


class Card:
    """Stands in for CUDA, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.device = torch.device("cuda", 0)

    def wait_stream(self, stream: Any) -> None:
        self.told.append(f"wait for {stream}")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        assert stream is self
        self.told.append("begin")
        yield
        self.told.append("end")

    def record_stream(self, stream: Any) -> None:
        assert stream is self
        self.told.append("keep the latents")


def test_the_side_stream_waits_for_the_steps_and_keeps_what_it_reads_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: card)
    monkeypatch.setattr(torch.cuda, "stream", card.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the steps")
    side = SideStream(torch.device("cuda", 0))
    assert side.is_apart
    latents: Any = card
    with side.work(latents):
        card.told.append("decode")
    assert card.told == ["wait for the steps", "keep the latents", "begin", "decode", "end"]


def test_where_there_is_no_second_stream_all_comes_in_turn() -> None:
    side = SideStream(torch.device("cpu"))
    assert not side.is_apart
    with side.work(torch.zeros(1)):
        pass


@pytest.fixture
def model(
    pipeline_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> StableDiffusion:
    """Hands its pictures out as a card does, though they are there at once."""
    loaded = load_model(settings_for(str(pipeline_folder("sd1"))), 0, lambda detail: None)
    assert isinstance(loaded, StableDiffusion)
    monkeypatch.setattr(SideStream, "is_apart", True)
    return loaded


def drawn(model: StableDiffusion, count: int) -> list[Sample]:
    request = make_request(steps=1, n=count)
    plan = model.plan(request)
    samples = Generation.create(request, StreamOptions(), plan=plan, now=0.0, deadline=1.0).samples
    model.encode(samples)
    model.start(samples)
    model.advance(samples, model.predict(samples))
    return samples


@torch.inference_mode()
def spoil(sample: Sample) -> None:
    sample.state.trajectory.latents.fill_(float("nan"))


def test_pictures_drawn_beside_the_steps_are_those_drawn_in_turn(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request("a cat", steps=2, seed=1)
    beside = draw_alone(model, request)
    monkeypatch.setattr(SideStream, "is_apart", False)
    assert (beside == draw_alone(model, request)).all()


def test_a_picture_outlives_the_sample_that_it_was_drawn_from(model: StableDiffusion) -> None:
    samples = drawn(model, 2)
    pending = model.decode(samples)
    assert not any(isinstance(each, Pixels) for each in pending)
    expected = [each.pixels() for each in pending]  # type: ignore[union-attr]
    again = model.decode(samples)
    for sample in samples:
        spoil(sample)
        sample.state = None
    assert [each.pixels() for each in again] == expected  # type: ignore[union-attr]


def test_invariant_6_of_pictures_decoded_together_only_that_fails_which_is_not_finite(
    model: StableDiffusion,
) -> None:
    harness = harness_for(model)
    good, bad = (harness.submit(make_request(steps=1, seed=seed)) for seed in (1, 2))
    (broken,) = bad.samples
    advance = model.advance

    def breaking(samples: Any, predictions: Any) -> Any:
        failures = advance(samples, predictions)
        spoil(broken)
        return failures

    model.advance = breaking  # type: ignore[method-assign]
    model.decode_limit = lambda sample: 4  # type: ignore[method-assign]
    harness.finish()
    assert isinstance(harness.ending(good), Completed)
    assert isinstance(harness.ending(bad), Internal)
    assert not model._projection._pictures, "nothing is learned beside a broken one"
