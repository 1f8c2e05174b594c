"""On a card a step waits for the device once, at its end: nothing on the way asks for a number that lies there.

The device `meta` stands in for a card: it has shapes but no numbers, so whatever reads one fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.doubles import make_request
from text2image.core.messages import Sampler, StreamOptions
from text2image.core.settings import Settings
from text2image.engine import devices
from text2image.engine.models.loading import load_model
from text2image.engine.models.stable_diffusion import StableDiffusion
from text2image.engine.sample import Generation, Sample

META = torch.device("meta")


class Watch(TorchDispatchMode):
    """Notes what would wait for a card: numbers that come from there, and copies to it that are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_of((args, kwargs)))
        result = func(*args, **kwargs)
        there = [each.device == META for each in given]
        made = list(tensors_of(result))
        if any(there) and not all(each.device == META for each in made):
            self.waits.append(f"{func} brings numbers back")
        if any(there) and any(each.ndim and each.device != META for each in given):
            self.waits.append(f"{func} takes a tensor of the CPU")
        if given and not any(there) and any(each.device == META for each in made):
            self.copies += 1
            if not kwargs.get("non_blocking"):
                self.waits.append(f"{func} is waited for")
        return result


def tensors_of(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def samples_for(model: StableDiffusion, **fields: Any) -> list[Sample]:
    request = make_request(steps=3, **fields)
    plan = model.plan(request)
    options = StreamOptions()
    return Generation.create(request, options, plan=plan, now=0.0, deadline=1.0).samples


@pytest.mark.parametrize("kind", ["sd1", "lcm"])
def test_a_step_waits_for_the_device_once(
    pipeline_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = Settings(
        model=str(pipeline_folder(kind)), device="meta", dtype="float32", runtime="torch"
    )
    model = load_model(settings, 0, lambda detail: None)
    assert isinstance(model, StableDiffusion)
    sampler = Sampler.LCM if kind == "lcm" else Sampler.EULER_ANCESTRAL
    samples = samples_for(model, sampler=sampler, n=2)
    samples += samples_for(model, sampler=Sampler.DPMPP_2M, guidance_scale=1.0)
    waited: list[torch.device] = []
    monkeypatch.setattr(devices, "wait", waited.append)
    with Watch() as watch:
        model.encode(samples)
        model.start(samples)
        for _ in range(2):
            model.advance(samples, model.predict(samples))
    assert watch.copies > 0, "nothing was watched"
    assert watch.waits == []
    assert waited == [META] * 2


def test_what_waits_is_noticed() -> None:
    there = torch.zeros(3, 2, device=META)
    with Watch() as watch:
        there.index_select(0, torch.tensor([1]).to(META, non_blocking=True))
        assert watch.waits == []
        torch.tensor([1.0]).to(META)
    assert len(watch.waits) == 1
    with Watch(), pytest.raises((NotImplementedError, RuntimeError)):
        there.sum().item()


def test_on_a_card_attention_is_fused_and_convolutions_have_their_channels_last(
    pipeline_folder: Callable[[str], Path],
) -> None:
    settings = Settings(
        model=str(pipeline_folder("sd1")), device="meta", dtype="float32", runtime="torch"
    )
    networks = load_model(settings, 0, lambda detail: None)._networks  # type: ignore[attr-defined]
    seen: list[torch.Tensor] = []
    for part in (networks._unet, networks._vae):
        assert {type(each) for each in part.attn_processors.values()} == {AttnProcessor2_0}
        for module in part.modules():
            if isinstance(module, torch.nn.Conv2d):
                assert module.weight.is_contiguous(memory_format=torch.channels_last)
    networks._unet.conv_in.register_forward_pre_hook(lambda module, given: seen.extend(given))
    latents = torch.zeros(3, 4, 16, 16, device=META)
    tokens = torch.zeros(3, 24, 32, device=META)
    networks.predict(latents, torch.ones(3), tokens, None)
    assert [each.is_contiguous(memory_format=torch.channels_last) for each in seen] == [True]
