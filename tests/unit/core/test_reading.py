"""Pictures are known by what their prompts mean, and plain ones by the keys that they always had."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from json import dumps

import pytest

from tests.samples import MODEL
from text2image import __version__
from text2image.core.errors import InvalidRequest
from text2image.core.messages import Embedding, PromptSyntax, RequestParams
from text2image.core.reading import named_embeddings, reading_of
from text2image.core.validation import resolve
from text2image.gateway.cache import key_of
from text2image.gateway.metadata import describe, parse

WEB_UI = replace(
    MODEL,
    prompt_syntax=PromptSyntax.A1111,
    embeddings=(Embedding("bad", "0123456789ab", 2), Embedding("worse", "ba9876543210", 1)),
    max_clip_skip=12,
)
# What requests had before prompts had a syntax.
BEFORE = (
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "steps",
    "guidance_scale",
    "seed",
    "n",
    "sampler",
    "schedule",
    "quality",
)


def key(prompt: str, model=WEB_UI, **more):  # type: ignore[no-untyped-def]
    return key_of(resolve(RequestParams(prompt=prompt, seed=1, **more), model), 0, model)


def test_plain_prompts_keep_the_keys_that_they_had_without_any_syntax() -> None:
    request = resolve(RequestParams(prompt="a fox, smiling :)", seed=1), WEB_UI)
    before = {
        "revision": MODEL.revision,
        "dtype": MODEL.dtype,
        "version": __version__,
        "fast": "",
        **{name: getattr(request, name) for name in BEFORE},
        "model": MODEL.id,
    }
    text = dumps(before, sort_keys=True, separators=(",", ":"))
    assert key_of(request, 0, WEB_UI) == sha256(text.encode()).hexdigest()


def test_prompts_that_mean_more_are_known_apart_by_how_they_are_read() -> None:
    assert key("a (fox)") != key("a (fox)", MODEL)
    assert key("a fox") == key("a fox", MODEL)
    other = replace(WEB_UI, embeddings=(Embedding("bad", "other", 2),))
    assert key("a fox, bad") != key("a fox, bad", other)
    assert key("a fox") == key("a fox", other)
    assert key("a fox", negative_prompt="bad") != key("a fox", other, negative_prompt="bad")
    assert key("a fox", clip_skip=2) != key("a fox")


def test_the_embeddings_of_a_picture_are_told_in_it_and_draw_it_again() -> None:
    params = RequestParams(prompt="a (fox:1.2), worse", negative_prompt="BAD", seed=1, clip_skip=2)
    request = resolve(params, WEB_UI)
    assert [each.name for each in named_embeddings(request, WEB_UI)] == ["bad", "worse"]
    told = describe(request, 1, WEB_UI)
    assert 'TI hashes: "bad: 0123456789ab, worse: ba9876543210"' in told
    assert "Clip skip: 2" in told
    assert resolve(parse(told), WEB_UI) == request


def test_a_picture_of_the_models_own_layer_is_drawn_again_where_another_is_the_default() -> None:
    request = resolve(RequestParams(prompt="a fox", seed=1), WEB_UI)
    assert resolve(parse(describe(request, 1, WEB_UI)), replace(WEB_UI, clip_skip=3)) == request


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({"prompt": "(fox:50)"}, "prompt", "has a word that weighs 50"),
        ({"prompt": "a", "negative_prompt": "(" * 40 + "fox"}, "negative_prompt", "at most 10"),
        ({"prompt": "a fox, embedding:nice"}, "prompt", "names the embedding 'nice'"),
        ({"prompt": "a fox", "clip_skip": 13}, "clip_skip", "between 0 and 12"),
        ({"prompt": "a fox", "clip_skip": -1}, "clip_skip", "between 0 and 12"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_its_name(
    fields: dict[str, object], field: str, told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told) as refused:
        resolve(RequestParams(**fields), WEB_UI)  # type: ignore[arg-type]
    assert refused.value.violations[0].field == field


def test_a_model_that_reads_prompts_as_they_stand_takes_any_text_and_no_layer() -> None:
    assert reading_of(resolve(RequestParams(prompt="(fox:50) embedding:nice"), MODEL), MODEL) == ""
    with pytest.raises(InvalidRequest, match="takes none"):
        resolve(RequestParams(prompt="a fox", clip_skip=2), MODEL)
    assert resolve(RequestParams(prompt="a fox", clip_skip=0), MODEL).clip_skip == 0
