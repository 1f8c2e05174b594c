"""ControlNets' files: which are read, in each form that people have them in, and which are refused with the reason."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from safetensors.torch import save_file

from tests import controls
from tests.integration.engine.conftest import settings_for
from tests.integration.engine.originals import RESNET, _renamed
from text2image.core.errors import InvalidRequest
from text2image.core.messages import Control
from text2image.engine.controls.files import Target
from text2image.engine.controls.folder import ControlFolder
from text2image.engine.models.loading import load_model

Folders = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
HOSTILE = 300


@pytest.fixture(scope="module")
def pipeline(pipeline_folder: Folders) -> Any:
    return StableDiffusionPipeline.from_pretrained(pipeline_folder("sd1"))


@pytest.fixture(scope="module")
def net(pipeline: Any) -> Any:
    return controls.invent(pipeline.unet, seed=1)


@pytest.fixture
def look(pipeline: Any, tmp_path: Path) -> Callable[[], dict[str, str]]:
    """Names and faults of what there is in the folder."""
    folder = ControlFolder(tmp_path, Target(pipeline.unet.config, 8))
    return lambda: {info.name: info.fault for info in folder.look()}


def original(net: Any) -> Tensors:
    """The net's weights as the original training code names them; the way back from diffusers' converter."""
    layers = net.config.layers_per_block
    hint = len(net.controlnet_cond_embedding.blocks)
    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "controlnet_mid_block": "middle_block_out.0",
    }
    weights: Tensors = {}
    for name, value in net.state_dict().items():
        words, rest = name.split("."), ""
        if words[0] == "controlnet_cond_embedding":
            place = {"conv_in": 0, "conv_out": hint + 1}.get(words[1])
            place = int(words[2]) + 1 if place is None else place
            old = f"input_hint_block.{2 * place}.{words[-1]}"
        elif words[0] == "controlnet_down_blocks":
            old = f"zero_convs.{words[1]}.0.{words[2]}"
        elif words[0] == "down_blocks":
            block, layer, rest = int(words[1]), int(words[3]), ".".join(words[4:])
            place = 1 + block * (layers + 1) + layer
            if words[2] == "downsamplers":
                last = (block + 1) * (layers + 1)
                old = f"input_blocks.{last}.0.{rest.replace('conv', 'op')}"
            elif words[2] == "resnets":
                old = f"input_blocks.{place}.0.{_renamed(rest, RESNET)}"
            else:
                old = f"input_blocks.{place}.1.{rest}"
        elif words[0] == "mid_block":
            rest = ".".join(words[3:])
            attends = words[1] == "attentions"
            place = 1 if attends else 2 * int(words[2])
            old = f"middle_block.{place}.{rest if attends else _renamed(rest, RESNET)}"
        else:
            old = _renamed(name, names)
        weights[f"control_model.{old}"] = value
    return weights


def test_a_net_is_the_same_in_each_form(pipeline_folder: Folders, net: Any, tmp_path: Path) -> None:
    half = net.half()
    half.save_pretrained(tmp_path / "variant", variant="fp16")
    net.float()
    controls.save(net, tmp_path, "folder")
    save_file(net.state_dict(), tmp_path / "single.safetensors")
    save_file(original(net), tmp_path / "original.safetensors")
    bare = {name.removeprefix("control_model."): each for name, each in original(net).items()}
    save_file(bare, tmp_path / "bare.safetensors")
    settings = settings_for(str(pipeline_folder("sd1")))
    changed = settings.model_copy(update={"controlnets": tmp_path})
    model: Any = load_model(changed, 0, lambda detail: None)
    assert [info.name for info in model.info.controls] == [
        "bare",
        "folder",
        "original",
        "single",
        "variant",
    ]
    assert all(not info.fault for info in model.info.controls)
    expected = net.state_dict()
    for info in model.info.controls:
        read = model.controls.read(Control(info.name, hash=info.hash))
        read.network.controlnet_cond_embedding = read.embedding
        found = read.network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(each, expected[name]) for name, each in found.items())


def test_a_net_that_was_trained_with_blue_first_sees_it_so(
    pipeline_folder: Folders, pipeline: Any, tmp_path: Path
) -> None:
    order = {"controlnet_conditioning_channel_order": "bgr"}
    controls.save(controls.invent(pipeline.unet, seed=1, **order), tmp_path, "bgr")
    controls.save(controls.invent(pipeline.unet, seed=1), tmp_path, "rgb")
    settings = settings_for(str(pipeline_folder("sd1")))
    model: Any = load_model(
        settings.model_copy(update={"controlnets": tmp_path}), 0, lambda detail: None
    )
    first, second = (
        model.controls.read(Control(info.name, hash=info.hash)) for info in model.info.controls
    )
    shown = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(first.embedded(shown), second.embedded(shown.flip(1)))
        assert not torch.equal(first.embedded(shown), second.embedded(shown))


def test_what_does_not_fit_is_refused_with_the_reason(
    pipeline_folder: Folders, net: Any, tmp_path: Path, look: Callable[[], dict[str, str]]
) -> None:
    def changed(name: str, **config: Any) -> None:
        path = controls.save(net, tmp_path, name) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))

    controls.save(net, tmp_path, "good")
    wide = StableDiffusionPipeline.from_pretrained(pipeline_folder("sd1")).unet
    options = {**wide.config, "cross_attention_dim": 1024}
    other = type(wide).from_config(options)
    controls.save(controls.invent(other, seed=1), tmp_path, "wide")
    changed("pooling", global_pool_conditions=True)
    changed("union", _class_name="ControlNetUnionModel")
    changed("deep", layers_per_block=10**9)
    changed("large", transformer_layers_per_block=10**9)
    changed("odd", block_out_channels=[16, 64])
    changed("torn", act_fn="nothing of the kind")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "noise.safetensors").write_bytes(b"not weights at all")
    (tmp_path / "pickle.bin").write_bytes(b"PK\x03\x04")
    state = dict(net.state_dict())
    save_file({**state, "more": torch.zeros(1)}, tmp_path / "more.safetensors")
    del state["conv_in.weight"]
    save_file(state, tmp_path / "less.safetensors")
    told = look()
    # What has no weights is left out with a line in the log, and pickles are not looked at.
    assert told.keys().isdisjoint({"empty", "pickle"})
    assert told.pop("good") == ""
    for name, reason in {
        "wide": "is for Stable Diffusion 2.x: it reads texts of 1024 numbers a token",
        "pooling": "guess mode",
        "union": "is a ControlNetUnionModel; only ControlNetModel is drawn with here",
        "deep": "is for another model: it has layers_per_block 1000000000",
        "large": "has transformer_layers_per_block 1000000000, which is no network's",
        "odd": "is for another model: it has block_out_channels [16, 64]",
        "torn": "is no ControlNet that is known here",
        "noise": "is no safetensors file",
        "more": "it holds more",
        "less": "it lacks conv_in.weight",
    }.items():
        assert reason in told.pop(name)
    assert not told


def test_hostile_files_are_refused_and_nothing_else_happens(
    net: Any, tmp_path: Path, look: Callable[[], dict[str, str]]
) -> None:
    good = controls.save(net, tmp_path, "good")
    config = (good / "config.json").read_bytes()
    weights = (good / "diffusion_pytorch_model.safetensors").read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")
    chance = random.Random(1)
    refused = 0
    for number in range(HOSTILE):
        told, held = bytearray(config), bytearray(weights)
        # Where a byte more or less says something: in the configuration, or in the header.
        target, most = (told, len(told)) if number % 2 else (held, header)
        for _ in range(chance.randint(1, 8)):
            target[chance.randrange(most)] = chance.randrange(256)
        if number % 5 == 0:
            del held[chance.randrange(len(held)) :]
        (good / "config.json").write_bytes(told)
        (good / "diffusion_pytorch_model.safetensors").write_bytes(held)
        found = look()
        refused += bool(found.get("good", "left out"))
    assert refused > HOSTILE // 2


def test_a_file_that_changes_before_it_is_read_is_not_drawn_with(
    pipeline_folder: Folders, net: Any, tmp_path: Path
) -> None:
    file = tmp_path / "edges.safetensors"
    save_file(net.state_dict(), file)
    settings = settings_for(str(pipeline_folder("sd1")))
    changed = settings.model_copy(update={"controlnets": tmp_path})
    model: Any = load_model(changed, 0, lambda detail: None)
    (info,) = model.info.controls
    broken = {name: each * torch.inf for name, each in net.state_dict().items()}
    save_file(broken, file)
    with pytest.raises(InvalidRequest, match="has changed or is gone"):
        model.controls.read(Control("edges", hash=info.hash))
    (again,) = model.controls.folder.look()
    assert again.hash != info.hash
    with pytest.raises(InvalidRequest, match="not finite"):
        model.controls.read(Control("edges", hash=again.hash))


def test_another_net_has_another_hash(
    pipeline: Any, tmp_path: Path, look: Callable[[], dict[str, str]]
) -> None:
    folder = ControlFolder(tmp_path, Target(pipeline.unet.config, 8))
    hashes = set()
    for seed in range(3):
        save_file(
            controls.invent(pipeline.unet, seed=seed).state_dict(), tmp_path / "a.safetensors"
        )
        hashes |= {info.hash for info in folder.look()}
    assert len(hashes) == 3
    assert isinstance(controls.invent(pipeline.unet, seed=0), ControlNetModel)
