"""Weights that wait in the host's memory: where they are while what is computed, and that pictures stay the same.

The device `meta` stands in for a card: what is there computes shapes alone.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.doubles import make_request
from tests.integration.engine.conftest import DEVICE, array, draw_alone, harness_for, settings_for
from tests.integration.engine.general_pipelines import save
from text2image.core.settings import Settings
from text2image.engine import devices
from text2image.engine.models.loading import EMBEDDED_PATH, FAMILIES, load_model
from text2image.engine.preflight.check import check
from text2image.engine.runtimes import choice, offload
from text2image.engine.runtimes.choice import load_pipeline, saving_of
from text2image.engine.warmup import usual_request

CPU, META, CUDA = torch.device("cpu"), torch.device("meta"), torch.device("cuda", 0)

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="weights are looked at where they wait")


@pytest.fixture(autouse=True)
def no_residents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was offloaded before, nor is it after."""
    monkeypatch.setattr(offload, "_residences", {})


def places(network: nn.Module) -> set[str]:
    return {each.device.type for each in network.parameters()}


def unet_inputs(device: torch.device) -> tuple[torch.Tensor, ...]:
    return (
        torch.zeros(2, 8, 16, 16, device=device),
        torch.zeros(2, device=device),
        torch.zeros(2, 24, 192, device=device),
    )


@torch.inference_mode()
def test_by_models_one_network_at_a_time_is_on_the_card_and_what_waits_is_untouched() -> None:
    pipeline = load_pipeline(EMBEDDED_PATH, torch.float32)
    before = dict(pipeline.unet.named_parameters())
    offload.offload(pipeline, META, "model")
    parts = (pipeline.text_encoder, pipeline.unet, pipeline.vae)
    assert [places(each) for each in parts] == [{"cpu"}] * 3
    assert offload.resident(META) == 0

    pipeline.unet(*unet_inputs(META), return_dict=False)
    assert [places(each) for each in parts] == [{"cpu"}, {"meta"}, {"cpu"}]
    assert offload.resident(META) == sum(each.nbytes for each in before.values())
    # It is its decoder that is called, and not the network itself.
    pipeline.vae.decode(torch.zeros(1, 8, 16, 16, device=META))
    assert [places(each) for each in parts] == [{"cpu"}, {"cpu"}, {"meta"}]
    pipeline.text_encoder(torch.zeros(1, 24, dtype=torch.int64, device=META))
    assert [places(each) for each in parts] == [{"meta"}, {"cpu"}, {"cpu"}]
    after = dict(pipeline.unet.named_parameters())
    assert all(after[name] is each for name, each in before.items()), "nothing is copied back"


@torch.inference_mode()
def test_by_layers_weights_are_on_the_card_for_one_call_alone() -> None:
    pipeline = load_pipeline(EMBEDDED_PATH, torch.float32)
    offload.offload(pipeline, META, "sequential")
    layer = pipeline.unet.mid_block.resnets[0].conv1
    seen: list[set[str]] = []
    layer.register_forward_hook(lambda *_: seen.append(places(pipeline.unet)))
    inside = layer._conv_forward

    def look(*arguments: Any) -> Any:
        seen.append(places(layer))
        return inside(*arguments)

    layer._conv_forward = look
    output = pipeline.unet(*unet_inputs(META), return_dict=False)[0]
    assert output.device == META
    assert seen == [{"meta"}, {"cpu"}]
    assert places(pipeline.unet) == {"cpu"}


def test_a_call_that_fails_leaves_nothing_on_the_card() -> None:
    layer = nn.Linear(4, 4)
    offload._bring_for_a_call(layer, offload.Part([layer], META))
    with pytest.raises(RuntimeError):
        layer(torch.zeros(3, 5, device=META))
    assert places(layer) == {"cpu"}


def test_parts_of_several_models_make_room_for_each_other_and_go_with_their_model() -> None:
    residence = offload.Residence()
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    first, second = offload.Part([one], META), offload.Part([other], META)
    residence.bring(first)
    residence.bring(second)
    assert (places(one), places(other)) == ({"cpu"}, {"meta"})
    gone = weakref.ref(second)
    del second, other
    gc.collect()
    assert gone() is None
    assert residence.part is None


def test_tied_weights_come_once() -> None:
    one, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    other.weight = one.weight
    part = offload.Part([one, other], META)
    part.bring()
    assert one.weight is other.weight
    assert part.bytes == 4 * 4 * 4


@pytest.fixture(params=["model", "sequential"])
def offloaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The embedded model, offloaded from the device that it waits on: all moves are made, and none is far."""
    monkeypatch.setattr(choice, "is_host", lambda device: False)
    brought: list[offload.Part] = []
    bring = offload.Part.bring

    def counted(part: offload.Part) -> None:
        if not part.is_there:
            brought.append(part)
        bring(part)

    monkeypatch.setattr(offload.Part, "bring", counted)
    settings = settings_for("embedded").model_copy(
        update={"offload": request.param, "deep_cache": 2, "runtime": "torch"}
    )
    yield load_model(settings, 0, lambda detail: None), brought
    assert brought


def test_pictures_are_the_same_while_encoding_steps_and_decoding_take_turns(offloaded: Any) -> None:
    """Joining on the way, so that the parts come and go between steps."""
    model, brought = offloaded
    plain = load_model(settings_for("embedded"), 0, lambda detail: None)
    requests = [make_request(f"{each} cats", steps=1 + each, seed=each) for each in range(2)]
    harness = harness_for(model)
    generations = []
    for request in requests:
        generations.append(harness.submit(request))
        harness.loop.tick()
    harness.finish()
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        assert np.abs(array(image) - draw_alone(plain, request)).max() <= 2
    assert len(brought) >= 5


def test_where_weights_are_in_the_hosts_memory_anyway_it_is_told_that_nothing_is_offloaded() -> (
    None
):
    settings = Settings(offload="model", device="cpu")
    (told,) = check(EMBEDDED_PATH, FAMILIES, CPU, torch.float32, settings=settings)
    assert not told.fatal
    assert str(told).startswith("T2I_OFFLOAD: model has no effect, since what cpu computes with")
    assert saving_of(settings, CPU, by_itself=False).offload == ""
    assert saving_of(settings, CUDA, by_itself=False).offload == "model"


def test_what_is_compiled_is_not_offloaded() -> None:
    settings = Settings(offload="sequential", runtime="compile")
    with pytest.raises(ValueError, match=r"T2I_OFFLOAD=sequential moves weights.*RUNTIME=torch"):
        saving_of(settings, CUDA, by_itself=False)


class Card:
    """What torch tells of a card's memory."""

    def __init__(self) -> None:
        self.allocated, self.peak = 300, 900

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told = {
            "mem_get_info": lambda _: (1000, 2000),
            "memory_reserved": lambda _: self.allocated,
            "memory_allocated": lambda _: self.allocated,
            "max_memory_allocated": lambda _: self.peak,
            "reset_peak_memory_stats": lambda _: None,
        }
        for name, value in told.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_weights_that_leave_for_others_count_as_free_and_as_what_steps_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever of them happens to be on the card when the memory is read."""
    card = Card()
    card.install(monkeypatch)
    memory = devices.CudaMemory(CUDA)
    monkeypatch.setattr(devices.offload, "resident", lambda device: 200)
    assert memory.free() == 1000 + 200
    assert memory.restart() == 0
    assert memory.peak() == 900 - 100
    # Nothing is there, and as much is held as before.
    monkeypatch.setattr(devices.offload, "resident", lambda device: 0)
    card.allocated = 100
    assert memory.restart() == 0


def test_no_offloaded_model_decodes_beside_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Stream", made.append)
    devices.SideStream(CUDA)
    assert made == [CUDA]
    offload._residences[CUDA] = offload.Residence()
    assert not devices.SideStream(CUDA).is_apart


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_a_pipeline_that_draws_by_itself_is_offloaded_while_others_of_it_are_paused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "is_host", lambda device: False)
    folder = save("PixArtAlphaPipeline", tmp_path)
    settings = settings_for(str(folder))
    plain = load_model(settings, 0, lambda detail: None)
    model = load_model(settings.model_copy(update={"offload": kind}), 0, lambda detail: None)
    requests = [
        replace(usual_request(model.info), prompt="a fox", steps=2 + each, width=64, height=64)
        for each in range(2)
    ]
    harness = harness_for(model)
    generations = []
    for request in requests:
        generations.append(harness.submit(request))
        harness.loop.tick()
    harness.finish()
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        assert np.abs(array(image) - draw_alone(plain, request)).max() <= 2


def test_pipelines_make_their_tensors_where_they_execute() -> None:
    pipeline = load_pipeline(EMBEDDED_PATH, torch.float32)
    offload.offload(pipeline, META, "model")
    assert pipeline._execution_device == META
