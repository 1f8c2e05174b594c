"""Textual inversions are words of prompts, as diffusers loads them; other files are left out by their names."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from tests.doubles import make_request
from tests.integration.engine.conftest import draw_alone, settings_for
from text2image.core.messages import PromptSyntax
from text2image.engine.models.description import reading_of
from text2image.engine.models.loading import EMBEDDED_PATH, load_model
from text2image.engine.models.prompts import DualPromptEncoder, PromptEncoder, Wording
from text2image.engine.prompts.inversions import Encoders, Unfit, find, read

CPU = torch.device("cpu")
WIDTH = 192
ENCODERS = Encoders((WIDTH,), ("clip_l",), most=22)
XL = Encoders((32, 32), ("clip_l", "clip_g"), most=22)


def vectors(count: int = 2, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


class Executed:
    """What a pickle would do that is no data."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


FORMS: dict[str, Callable[[Path], None]] = {
    "diffusers.safetensors": lambda path: save_file({"<any>": vectors()}, path),
    "a1111.safetensors": lambda path: save_file({"emb_params": vectors()}, path),
    "a1111.pt": lambda path: torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors()}, "name": "x"}, path
    ),
    "parameter.pt": lambda path: torch.save(
        {"string_to_param": {"*": torch.nn.Parameter(vectors())}}, path
    ),
    "diffusers.bin": lambda path: torch.save({"<any>": vectors()}, path),
}
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty.safetensors": (lambda path: path.write_bytes(b""), "is empty"),
    "cut.safetensors": (
        lambda path: (
            save_file({"a": vectors()}, path),
            path.write_bytes(path.read_bytes()[:-9]),
        ),
        "fetch it again",
    ),
    "page.safetensors": (lambda path: path.write_text("<!DOCTYPE html>"), "web page"),
    "pickle.pt": (lambda path: path.write_bytes(pickle.dumps({"a": Executed()})), "more than"),
    "torch.pt": (lambda path: torch.save({"a": Executed()}, path), "more than numbers"),
    "noise.bin": (lambda path: path.write_bytes(bytes(range(256)) * 9), "damaged"),
    "list.pt": (lambda path: torch.save([vectors()], path), "holds no tensors"),
    "two.safetensors": (
        lambda path: save_file({"a": vectors(), "b": vectors()}, path),
        "holds a, b",
    ),
    "width.safetensors": (lambda path: save_file({"a": vectors(2, 64)}, path), "64 numbers"),
    "many.safetensors": (lambda path: save_file({"a": vectors(23)}, path), "23 vectors"),
    "none.safetensors": (lambda path: save_file({"a": vectors(0)}, path), "0 vectors"),
    "cube.safetensors": (lambda path: save_file({"a": vectors()[None]}, path), "no vectors"),
    "whole.safetensors": (lambda path: save_file({"a": vectors().int()}, path), "no vectors"),
    "nan.safetensors": (
        lambda path: save_file({"a": vectors() * float("nan")}, path),
        "not finite",
    ),
    "xl.safetensors": (
        lambda path: save_file({"clip_g": vectors(), "clip_x": vectors()}, path),
        "holds clip_g",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_that_people_share_is_read(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    inversion = read(tmp_path / name, ENCODERS)
    assert (inversion.name, inversion.size) == (name.partition(".")[0], 2)
    assert torch.equal(inversion.vectors[0], vectors())


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_holds_none_says_why_and_is_never_executed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, told = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(Unfit, match=told):
        read(tmp_path / name, ENCODERS)
    assert not Path("executed").exists()


def test_others_of_the_folder_are_found_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "styles").mkdir()
    FORMS["diffusers.safetensors"](tmp_path / "styles" / "Old-Film.safetensors")
    FORMS["a1111.pt"](tmp_path / "old-film.pt")
    FORMS["a1111.pt"](tmp_path / "bad.pt")
    BROKEN["noise.bin"][0](tmp_path / "noise.bin")
    (tmp_path / "notes.txt").write_text("mine")
    with caplog.at_level(logging.WARNING):
        found = find(tmp_path, ENCODERS)
        find(tmp_path, ENCODERS)
    assert [each.name for each in found] == ["bad", "Old-Film"]
    (record,) = caplog.records
    assert "noise.bin is left out: it is damaged" in record.getMessage()
    assert find(None, ENCODERS) == []
    with pytest.raises(ValueError, match="there is no such folder"):
        find(tmp_path / "elsewhere", ENCODERS)


def test_a_word_is_encoded_as_diffusers_does(tmp_path: Path) -> None:
    save_file({"<any>": vectors(3)}, tmp_path / "film.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_PATH, torch_dtype=torch.float32)
    settings = settings_for("embedded").model_copy(update={"embeddings": tmp_path})
    language, inversions = reading_of(pipeline, settings)
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, CPU, language, inversions)
    prompts = ["a Film of a fox", "a fox, embedding:film", "a fox"]
    ours = [each.embeddings for each in encoder.encode([Wording(each) for each in prompts])]
    pipeline.load_textual_inversion(tmp_path, weight_name="film.safetensors", token="film")
    with torch.no_grad():
        for own, prompt in zip(ours, ["a film of a fox", "a fox, film", "a fox"], strict=True):
            theirs, _ = pipeline.encode_prompt(prompt, CPU, 1, False)
            torch.testing.assert_close(own, theirs)


def test_sdxls_encoders_each_have_their_own_vectors(
    tmp_path: Path, pipeline_folder: Callable[[str], Path]
) -> None:
    file = tmp_path / "film.safetensors"
    save_file({"clip_l": vectors(2, 32), "clip_g": vectors(2, 32) + 1}, file)
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        pipeline_folder("xl"), add_watermarker=False
    )
    assert Encoders.of(pipeline) == XL
    settings = settings_for("xl").model_copy(update={"embeddings": tmp_path})
    language, inversions = reading_of(pipeline, settings)
    ours = DualPromptEncoder(pipeline, CPU, language, inversions).encode([Wording("a film")])[0]
    given = load_file(file)
    for part, end in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            given[part],
            token="film",
            text_encoder=getattr(pipeline, f"text_encoder{end}"),
            tokenizer=getattr(pipeline, f"tokenizer{end}"),
        )
    with torch.no_grad():
        theirs, _, pooled, _ = pipeline.encode_prompt(
            "a film", device=CPU, do_classifier_free_guidance=False
        )
    torch.testing.assert_close(ours.embeddings, theirs)
    torch.testing.assert_close(ours.pooled, pooled)


def test_a_model_tells_its_words_and_reads_none_where_prompts_are_plain(tmp_path: Path) -> None:
    FORMS["diffusers.safetensors"](tmp_path / "film.safetensors")
    settings = settings_for("embedded").model_copy(update={"embeddings": tmp_path})
    model = load_model(settings, 0, lambda detail: None)
    (told,) = model.info.embeddings
    assert (told.name, told.vectors, len(told.hash)) == ("film", 2, 12)
    usual = load_model(settings_for("embedded"), 0, lambda detail: None)
    for prompt, alike in (("a film", False), ("a fox", True)):
        request = make_request(prompt, steps=1, seed=1)
        assert (draw_alone(model, request) == draw_alone(usual, request)).all() == alike
    plain = settings.model_copy(update={"prompt_syntax": PromptSyntax.PLAIN})
    assert load_model(plain, 0, lambda detail: None).info.embeddings == ()
