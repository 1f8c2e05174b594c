"""Adapters' files are data: every format of a plain LoRA is read, and whatever else is refused with its reason."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline

from tests import loras
from tests.samples import MODEL
from text2image.core.errors import InvalidRequest
from text2image.core.loras import chosen
from text2image.core.messages import LoraWeight
from text2image.engine.adapters.files import (
    UNET,
    Layers,
    NotAnAdapter,
    Place,
    layers_of_model,
    read,
)
from text2image.engine.adapters.folder import LoraFolder
from text2image.engine.layouts.headers import read_header

Folders = Callable[[str], Path]
HOMES = {part: (torch.device("cpu"), torch.float32) for part in loras.PARTS}
CASES = 600


@pytest.fixture(scope="module")
def pipeline(pipeline_folder: Folders) -> Any:
    return StableDiffusionPipeline.from_pretrained(pipeline_folder("sd1"))


@pytest.fixture(scope="module")
def layers(pipeline: Any) -> Layers:
    return layers_of_model(
        pipeline.unet, {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    )


@pytest.fixture(scope="module")
def file(pipeline: Any) -> loras.Tensors:
    return loras.invent(pipeline, rank=2, seed=1, convs=2)


def changes(path: Path, layers: Layers) -> dict[Place, torch.Tensor]:
    """What an adapter adds to each layer's weights."""
    found = read(path, read_header(path), layers, HOMES)
    return {place: low.up.flatten(1) @ low.down.flatten(1) for place, low in found.items()}


def fault_of(folder: Path, layers: Layers, name: str) -> str:
    infos = {info.name: info for info in LoraFolder(folder, layers).look()}
    return infos[name].fault


def test_formats_say_the_same(tmp_path: Path, layers: Layers, file: loras.Tensors) -> None:
    alphas = {f"{part}.lora_alpha": 1 for part in loras.PARTS}
    told = {"lora_adapter_metadata": json.dumps(alphas)}
    plain = changes(loras.save(tmp_path, "peft", file), layers)
    halved = changes(loras.save(tmp_path, "alpha", file, **told), layers)
    kohya = changes(loras.save(tmp_path, "kohya", loras.as_kohya(file)), layers)
    assert plain.keys() == kohya.keys() == halved.keys()
    assert {place.part for place in plain} == {"unet", "text_encoder"}
    for place, weights in plain.items():
        torch.testing.assert_close(kohya[place], weights / 2)
        torch.testing.assert_close(halved[place], weights / 2)
    assert not any(info.fault for info in LoraFolder(tmp_path, layers).look())


def first(file: loras.Tensors, part: str = UNET) -> str:
    return next(name for name in file if name.startswith(part) and name.endswith("A.weight"))


UNFIT: dict[str, tuple[Callable[[loras.Tensors], loras.Tensors], str]] = {
    "dora": (lambda file: {**file, "unet.x.dora_scale": torch.ones(1)}, "no plain LoRA"),
    "lokr": (lambda file: {"lora_unet_x.lokr_w1": torch.ones(1)}, "no plain LoRA"),
    "unknown layer": (
        lambda file: {
            **file,
            "unet.mid_block.attentions.7.proj_in.lora_A.weight": torch.ones(2, 32),
            "unet.mid_block.attentions.7.proj_in.lora_B.weight": torch.ones(32, 2),
        },
        "unet.mid_block.attentions.7.proj_in",
    ),
    "another shape": (lambda file: {**file, first(file): torch.ones(2, 7)}, "another model"),
    "half of it": (
        lambda file: {name: value for name, value in file.items() if name != first(file)},
        "one of two",
    ),
    "no rank": (lambda file: {**file, first(file): torch.ones(0, 7)}, "another model"),
    "whole numbers": (
        lambda file: {**file, first(file): file[first(file)].to(torch.int32)},
        "whole numbers",
    ),
    "a checkpoint": (lambda file: {"model.diffusion_model.x": torch.ones(2, 2)}, "it holds"),
    "other names": (lambda file: {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, ""),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused_with_its_reason(
    tmp_path: Path, layers: Layers, file: loras.Tensors, name: str
) -> None:
    change, reason = UNFIT[name]
    path = loras.save(tmp_path, "odd", change(file))
    fault = fault_of(tmp_path, layers, "odd")
    assert fault
    assert reason in fault
    with pytest.raises(NotAnAdapter):
        read(path, read_header(path), layers, HOMES)


@pytest.fixture(scope="module", params=["sd3", "flux-dev"])
def flow(request: pytest.FixtureRequest, pipeline_folder: Folders) -> Any:
    make: Any = StableDiffusion3Pipeline if request.param == "sd3" else FluxPipeline
    return make.from_pretrained(pipeline_folder(request.param))


def beyond(file: loras.Tensors) -> loras.Tensors:
    """With a block more than the model has."""
    path = "transformer.transformer_blocks.7.attn.to_q"
    more = {"A": torch.ones(2, 32), "B": torch.ones(32, 2)}
    return file | {f"{path}.lora_{which}.weight": value for which, value in more.items()}


def test_a_flow_names_what_of_a_file_is_not_its_own(
    tmp_path: Path, flow: Any, file: loras.Tensors
) -> None:
    layers = layers_of_model(flow.transformer, {"text_encoder": flow.text_encoder})
    fit = loras.invent(flow, rank=2, seed=1, parts=("transformer", "text_encoder"))
    own = first(fit, "transformer")
    files = {
        "fit": (fit, ""),
        "another family": (file, "another model, or no LoRA: it holds unet."),
        "another family by kohya": (loras.as_kohya(file), "another model, or no LoRA: "),
        "unknown layer": (beyond(fit), "no layer transformer.transformer_blocks.7.attn.to_q here"),
        "another shape": ({**fit, own: torch.ones(2, 7)}, own.removesuffix(".lora_A.weight")),
        "dora": (
            {**fit, "transformer.x.dora_scale": torch.ones(1)},
            "no plain LoRA: it holds dora",
        ),
    }
    for name, (each, _) in files.items():
        loras.save(tmp_path, name, each)
    model = replace(MODEL, loras=LoraFolder(tmp_path, layers).look())
    assert [each.name for each in chosen([LoraWeight("fit")], model)] == ["fit"]
    for name, (_, told) in files.items():
        if told:
            with pytest.raises(InvalidRequest) as raised:
                chosen([LoraWeight(name)], model)
            assert name in str(raised.value)
            assert told in str(raised.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e39])
def test_numbers_that_are_not_finite_are_refused(
    tmp_path: Path, layers: Layers, file: loras.Tensors, number: float
) -> None:
    broken = file[first(file)].double()
    broken[0, 0] = number
    path = loras.save(tmp_path, "odd", {**file, first(file): broken})
    with pytest.raises(NotAnAdapter, match="not finite"):
        read(path, read_header(path), layers, HOMES)


def test_no_pickle_is_ever_executed(tmp_path: Path, layers: Layers) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("gone off").touch, ())

    torch.save({"unet.x.lora_A.weight": Bomb()}, tmp_path / "zip.safetensors")
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "x.bin").write_bytes(pickle.dumps(Bomb()))
    infos = LoraFolder(tmp_path, layers).look()
    assert [info.name for info in infos] == ["raw", "zip"]
    assert all(info.fault for info in infos)
    assert not (tmp_path / "gone off").exists()


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Cut off, changed in its header, with another length or kind in front, or noise."""
    match rng.randrange(5):
        case 0:
            return whole[: rng.randrange(len(whole))]
        case 1:
            at = rng.randrange(min(len(whole), 4000))
            return whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :]
        case 2:
            length = rng.choice([0, 1 << 30, 1 << 63, (1 << 64) - 1])
            return length.to_bytes(8, "little") + whole[8:]
        case 3:
            kinds = [pickle.dumps({"a": 1}), b"PK\x03\x04", b"GGUF", b"<!DOCTYPE html>"]
            return rng.choice(kinds) + whole
        case _:
            return rng.choice([b"", b"[" * 9000, rng.randbytes(99), b"\x02" + bytes(7) + b"{}"])


def lying(header: dict[str, Any], data: bytes, rng: random.Random) -> bytes:
    """With a header that claims what is not so, or with numbers of any kind, many of them not finite."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = {**header[name]}
    match rng.randrange(6):
        case 0:
            entry["shape"] = rng.choice([[1 << 40, 1 << 40], [-1, 4], [], [0], ["a"], None, [2.5]])
        case 1:
            entry["data_offsets"] = rng.choice(
                [[0, 1 << 60], [5, 1], [-4, 4], [], None, ["0", "4"], [0, 4]]
            )
        case 2:
            entry["dtype"] = rng.choice(["F33", "", None, 7, "BOOL", "F8_E5M2", "I64"])
        case 3:
            name = rng.choice(
                ["x" * 5000, "unet..lora_A.weight", "lora_unet_.alpha", "\u0000", name + "x"]
            )
        case 4:
            odd = rng.choice(["{", "[" * 5000, '{"unet.lora_alpha": "x"}', "[]", "null"])
            header = {
                **header,
                "__metadata__": {"lora_adapter_metadata": odd, "ss_tag_frequency": odd},
            }
        case _:
            data = rng.randbytes(len(data))
    text = json.dumps({**header, name: entry}).encode()
    return len(text).to_bytes(8, "little") + text + data


def hostile(whole: bytes, header: dict[str, Any], data: bytes, rng: random.Random) -> bytes:
    return damaged(whole, rng) if rng.randrange(2) else lying(header, data, rng)


def test_hostile_files_are_told_as_faults_or_read_and_never_raise(
    tmp_path: Path, layers: Layers, pipeline: Any
) -> None:
    small = loras.invent(pipeline, rank=1, seed=5, parts=("text_encoder",))
    for form in (small, loras.as_kohya(small)):
        whole = loras.save(tmp_path / "whole", "x", form).read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
        rng = random.Random(len(form))
        folder = tmp_path / str(len(form))
        folder.mkdir()
        for number in range(CASES // 2):
            (folder / f"{number:03}.safetensors").write_bytes(hostile(whole, header, data, rng))
        shelf = LoraFolder(folder, layers)
        infos = shelf.look(seconds=60)
        assert len(infos) == CASES // 2
        assert sum(bool(info.fault) for info in infos) > CASES // 4
        for info in infos:
            assert info.fault.isprintable()
            found = shelf.find(info.name, info.hash)
            assert (found is None) == bool(info.fault)
            if found and found.header:
                try:
                    read(found.path, found.header, layers, HOMES)
                except NotAnAdapter:
                    continue


def test_a_folder_is_found_anew_when_it_changes(
    tmp_path: Path, layers: Layers, file: loras.Tensors
) -> None:
    folder = LoraFolder(tmp_path / "later", layers)
    assert folder.look() == ()
    metadata = {
        "ss_tag_frequency": json.dumps({"a": {"ink": 3, "paper": 1}, "b": {"paper": 5}}),
        "ss_base_model_version": "sd_v1",
    }
    loras.save(folder.path, "ink", file, **metadata)
    loras.save(folder.path, "no: request, can <name> it", file)
    (ink,) = folder.look()
    assert (ink.name, ink.base, ink.trigger_words) == ("ink", "sd_v1", ("paper", "ink"))
    assert folder.find("ink", ink.hash)
    loras.save(folder.path, "ink", {name: value * 2 for name, value in file.items()}, **metadata)
    (other,) = folder.look()
    assert other.hash != ink.hash
    assert folder.find("ink", ink.hash) is None
    (folder.path / "ink.safetensors").unlink()
    assert folder.look() == ()
