"""Prompts are encoded as diffusers does if they are plain, else as A1111's web UI does; what is not read is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    CONFIG,
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
)
from text2image.core.messages import Completed, PromptSyntax, Request
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import EMBEDDED_PATH, load_model
from text2image.engine.models.prompts import DualPromptEncoder, PromptEncoder, Wording
from text2image.engine.prompts.chunks import Language
from text2image.engine.samplers.registry import scheduler_for

CPU = torch.device("cpu")
WEB_UI = Language(PromptSyntax.A1111, most_chunks=4)
# Chunks of the embedded model's tokenizer, which the small pipelines have too, are of 22 tokens.
LENGTH = 22
ONE, TWO, THREE, FOUR = (", ".join(["a red fox in the snow"] * count) for count in (1, 5, 8, 12))


@pytest.fixture(scope="module")
def sd() -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_PATH, torch_dtype=torch.float32)
    # diffusers looks for the final normalization where earlier versions of transformers had it.
    pipeline.text_encoder.__dict__["text_model"] = pipeline.text_encoder
    return pipeline


@pytest.fixture(scope="module")
def xl(pipeline_folder: Callable[[str], Path]) -> Any:
    return StableDiffusionXLPipeline.from_pretrained(pipeline_folder("xl"), add_watermarker=False)


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.inference_mode():
        yield


def encoded(pipeline: Any, prompt: str, clip_skip: int = 0) -> torch.Tensor:
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, CPU, WEB_UI)
    return encoder.encode([Wording(prompt, clip_skip)])[0].embeddings


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def chunk_by_hand(pipeline: Any, tokens: list[int]) -> torch.Tensor:
    """What transformers makes of a chunk that is put together here."""
    tokenizer = pipeline.tokenizer
    filling = [tokenizer.pad_token_id] * (LENGTH - len(tokens))
    ids = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *filling]
    output: torch.Tensor = pipeline.text_encoder(torch.tensor([ids]))[0]
    return output


@pytest.mark.parametrize("prompt", ["a cat", "", "a red fox, in the snow :)", "É 日本 1:2"])
@pytest.mark.parametrize("clip_skip", [0, 1, 2, 3])
def test_a_plain_prompt_is_encoded_bit_by_bit_as_diffusers_does(
    sd: Any, prompt: str, clip_skip: int
) -> None:
    skipped = clip_skip - 1 if clip_skip > 1 else None
    theirs, _ = sd.encode_prompt(prompt, CPU, 1, False, clip_skip=skipped)
    assert torch.equal(encoded(sd, prompt, clip_skip), theirs)


@pytest.mark.parametrize("clip_skip", [0, 2, 3])
def test_so_is_one_of_sdxl_with_the_layer_before_the_last_as_its_own(
    xl: Any, clip_skip: int
) -> None:
    skipped = clip_skip - 2 if clip_skip else None
    theirs, _, pooled, _ = xl.encode_prompt(
        "a red fox", device=CPU, do_classifier_free_guidance=False, clip_skip=skipped
    )
    ours = DualPromptEncoder(xl, CPU, WEB_UI).encode([Wording("a red fox", clip_skip)])[0]
    assert torch.equal(ours.embeddings, theirs)
    assert torch.equal(ours.pooled, pooled)


def test_a_long_prompt_is_its_chunks_side_by_side(sd: Any) -> None:
    tokens = ids_of(sd.tokenizer, TWO)
    comma = ids_of(sd.tokenizer, ",")[0]
    # The words that the first chunk would cut in two begin the second one.
    end = max(place for place, each in enumerate(tokens[:LENGTH]) if each == comma) + 1
    if LENGTH - end >= 20 * LENGTH // 75 or tokens[LENGTH] == comma:
        end = LENGTH
    chunks = [tokens[:end], tokens[end : end + LENGTH]]
    assert len(tokens) <= end + LENGTH
    by_hand = torch.cat([chunk_by_hand(sd, each) for each in chunks], 1)
    torch.testing.assert_close(encoded(sd, TWO), by_hand)


def test_a_break_begins_a_chunk(sd: Any) -> None:
    halves = [chunk_by_hand(sd, ids_of(sd.tokenizer, each)) for each in ("a red fox", "snow")]
    torch.testing.assert_close(encoded(sd, "a red fox BREAK snow"), torch.cat(halves, 1))


def test_weights_multiply_what_the_encoder_makes_and_keep_its_mean(sd: Any) -> None:
    parts = [("a", 1.0), ("red", 1.3), ("fox in", 1.0), ("the snow", 1 / 1.1)]
    tokens = [ids_of(sd.tokenizer, text) for text, _ in parts]
    plain = chunk_by_hand(sd, [each for part in tokens for each in part])
    weights = torch.ones(LENGTH + 2)
    start = 1
    for part, (_, weight) in zip(tokens, parts, strict=True):
        weights[start : start + len(part)] = weight
        start += len(part)
    weighed = plain * weights[:, None]
    by_hand = weighed * (plain.mean() / weighed.mean())
    torch.testing.assert_close(encoded(sd, "a (red:1.3) fox in [the snow]"), by_hand)
    assert (by_hand - plain).abs().max() > 0.01


def test_sdxl_weighs_each_encoders_half_and_pools_the_first_chunk(xl: Any) -> None:
    encoder = DualPromptEncoder(xl, CPU, WEB_UI)
    long, plain, weighed = encoder.encode(
        [Wording("a red fox BREAK snow"), Wording("a red fox"), Wording("a (red:1.3) fox")]
    )
    assert torch.equal(long.pooled, plain.pooled)
    torch.testing.assert_close(long.embeddings[:, : LENGTH + 2], plain.embeddings)
    assert torch.equal(weighed.pooled, plain.pooled)
    red = 2
    halves = weighed.embeddings.chunk(2, -1)
    for half, whole in zip(halves, plain.embeddings.chunk(2, -1), strict=True):
        ratio = (half / whole).mean(-1)[0]
        torch.testing.assert_close(ratio[red] / ratio[0], torch.tensor(1.3))
        torch.testing.assert_close(half.mean(), whole.mean(), rtol=1e-3, atol=1e-5)


def test_prompts_are_kept_by_their_layer_too(sd: Any) -> None:
    encoder = PromptEncoder(sd.tokenizer, sd.text_encoder, CPU, WEB_UI)
    first, second, again = (
        encoder.encode([Wording("a cat", skip)])[0].embeddings for skip in (0, 2, 0)
    )
    assert not torch.equal(first, second)
    assert first is again


MIXED = [
    make_request(ONE, steps=4, seed=1),
    make_request(TWO, steps=4, seed=2, negative_prompt="a (dog:1.2), blurred"),
    make_request(THREE, steps=5, seed=3, negative_prompt=TWO),
    make_request(FOUR, steps=3, seed=4, negative_prompt=ONE, guidance_scale=1.0),
    make_request("a ((red)) fox BREAK [snow]", steps=4, seed=5, clip_skip=2),
    make_request(FOUR, steps=3, seed=6, negative_prompt=THREE),
]


def assert_drawn_alone_and_together(model: Model, requests: list[Request]) -> None:
    harness = harness_for(model, cap=12)
    generations = []
    for request in requests:
        generations.append(harness.submit(request))
        harness.loop.tick()
    harness.finish()
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        off = np.abs(array(image) - draw_alone(model, request)).max()
        assert off <= TOLERANCE, request


def test_prompts_of_all_lengths_share_batches_and_change_no_picture(embedded: Model) -> None:
    assert_drawn_alone_and_together(embedded, MIXED)


def test_so_they_do_with_sdxl(pipeline_folder: Callable[[str], Path]) -> None:
    model = load_model(settings_for(str(pipeline_folder("xl"))), 0, lambda detail: None)
    assert_drawn_alone_and_together(model, [replace(each, steps=2) for each in MIXED])


def test_a_long_prompts_picture_is_that_of_the_pipeline_with_the_same_embeddings(
    embedded: Model, sd: Any
) -> None:
    negative = ", ".join(["a dog"] * 10)
    request = make_request(TWO, steps=3, seed=9, negative_prompt=negative)
    sd.set_progress_bar_config(disable=True)
    sd.scheduler = scheduler_for(request.sampler, CONFIG, None)
    output = sd(
        prompt_embeds=encoded(sd, request.prompt),
        negative_prompt_embeds=encoded(sd, request.negative_prompt),
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
    )
    theirs = (output.images[0] * 255).round().astype(np.int16)
    assert np.abs(draw_alone(embedded, request) - theirs).max() <= TOLERANCE


def completed(model: Model, prompt: str, **fields: Any) -> Completed:
    harness = harness_for(model)
    generation = harness.submit(make_request(prompt, steps=1, **fields))
    harness.finish()
    ending: Any = harness.ending(generation)
    assert isinstance(ending, Completed)
    return ending


def test_a_prompt_that_fits_is_read_whole(embedded: Model) -> None:
    assert completed(embedded, FOUR, negative_prompt=FOUR) == Completed()


def test_what_found_no_room_is_told_in_the_users_own_words(embedded: Model) -> None:
    prompt = "A Cat " * 43 + "(and Seventeen:1.2) Foxes"
    rest = completed(embedded, prompt).truncated
    assert rest
    assert prompt.endswith(rest)
    assert prompt[: -len(rest)].endswith(" "), "it begins in the middle of a word"


def test_the_end_of_a_negative_prompt_is_told_if_it_is_drawn_with(embedded: Model) -> None:
    prompt = "a dog " * 44 + "at the end"
    told = completed(embedded, "a cat", negative_prompt=prompt)
    assert told.truncated == ""
    assert told.truncated_negative.endswith("at the end")
    unguided = completed(embedded, "a cat", negative_prompt=prompt, guidance_scale=1.0)
    assert unguided == Completed()


def test_a_model_says_how_it_reads_prompts(embedded: Model) -> None:
    info = embedded.info
    assert info.max_prompt_tokens == 4 * LENGTH + 2
    assert (info.prompt_syntax, info.clip_skip, info.max_clip_skip) == (PromptSyntax.A1111, 0, 3)


def test_settings_read_prompts_as_they_stand_and_less_of_them() -> None:
    settings = settings_for("embedded").model_copy(
        update={"prompt_syntax": PromptSyntax.PLAIN, "max_prompt_chunks": 1, "default_clip_skip": 2}
    )
    model = load_model(settings, 0, lambda detail: None)
    usual = load_model(settings_for("embedded"), 0, lambda detail: None)
    assert model.info.max_prompt_tokens == LENGTH + 2
    assert (model.info.prompt_syntax, model.info.clip_skip) == (PromptSyntax.PLAIN, 2)
    assert model.info.revision != usual.info.revision
    assert completed(model, TWO).truncated
    literal = make_request("a (red) fox", steps=2, seed=1)
    escaped = replace(literal, prompt=r"a \(red\) fox")
    assert np.array_equal(draw_alone(model, literal), draw_alone(usual, escaped))
    assert not np.array_equal(draw_alone(usual, literal), draw_alone(usual, escaped))


def test_a_layer_that_is_not_there_is_named() -> None:
    settings = settings_for("embedded").model_copy(update={"default_clip_skip": 4})
    with pytest.raises(ValueError, match=r"T2I_DEFAULT_CLIP_SKIP is 4; .* has 3 layers"):
        load_model(settings, 0, lambda detail: None)


@pytest.mark.parametrize("prompt", ["x" * 3000, "é" * 500, "日本語 " * 200, "\u202e" * 300])
def test_any_text_is_drawn_from(embedded: Model, prompt: str) -> None:
    assert isinstance(completed(embedded, prompt).truncated, str)
