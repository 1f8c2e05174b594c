"""All weights of a model leave the device and come back, and it draws as it did."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.doubles import make_request
from tests.integration.engine.conftest import TOLERANCE, draw_alone, settings_for
from tests.integration.engine.general_pipelines import save
from tests.integration.engine.pipelines import save_refiner
from text2image.core.messages import Sampler
from text2image.core.settings import Settings
from text2image.engine import devices
from text2image.engine.models.loading import load_model
from text2image.engine.models.parking import HostParking, exchange

Folders = Callable[[str], Path]


def weights() -> dict[int, torch.Tensor]:
    """All that there are in this process, of every model."""
    found = [each for each in gc.get_objects() if type(each) is torch.nn.Parameter]
    return {id(each): each for each in found if each.device.type != "meta"}


@pytest.mark.parametrize("kind", ["sd1", "xl with refiner", "sd3", "flux-dev", "general"])
def test_all_weights_leave_and_a_picture_is_the_same_afterwards(
    pipeline_folder: Folders, kind: str, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {}
    if kind == "general":
        folder = save("PixArtSigmaPipeline", tmp_path)
        changes["max_side"] = 64
    else:
        folder = pipeline_folder(kind.split()[0])
    if kind == "xl with refiner":
        changes["refiner"] = str(save_refiner(folder, tmp_path))
    before = weights()
    model = load_model(settings_for(str(folder)).model_copy(update=changes), 0, lambda detail: None)
    own = [each for key, each in weights().items() if key not in before]
    assert len(own) > 20
    flow = {"sampler": model.info.sampler} if Sampler.EULER not in model.info.samplers else {}
    request = make_request(
        steps=2, width=64, height=64, model=model.info.id, **{"sampler": Sampler.EULER, **flow}
    )
    picture = draw_alone(model, request)
    # The device is the host here, so what has left is seen by its place, which nothing else gets as long as it is held.
    places = {each.untyped_storage().data_ptr(): each.detach() for each in own}
    kept: list[torch.Tensor] = []

    def leave(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(devices.to_host(tensor))
        return torch.zeros_like(tensor)

    assert exchange(model, leave)
    now = {each.untyped_storage().data_ptr() for each in own}
    assert not now & places.keys(), "some have stayed"
    back = iter(kept)
    assert exchange(model, lambda tensor: next(back))
    assert np.abs(draw_alone(model, request) - picture).max() <= TOLERANCE


def test_what_kernels_were_recorded_for_stays(pipeline_folder: Folders) -> None:
    model = load_model(settings_for(str(pipeline_folder("sd1")), "compile"), 0, lambda detail: None)
    assert not HostParking(Settings(device="cpu"), 0).park(model)


def test_only_a_card_has_weights_leave_it() -> None:
    assert HostParking(Settings(device="cpu", model_host_memory=1 << 30), 0).room(0) == 0


def test_the_order_of_numbers_is_kept() -> None:
    tensor = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert devices.to_host(tensor).stride() == tensor.stride()
    assert torch.equal(devices.to_host(tensor), tensor)
