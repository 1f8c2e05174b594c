"""A model, a request, and requests of all kinds, for the tests of what handles them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from tests.init_images import control_picture, init_image
from text2image.core.controls import PREPROCESSORS
from text2image.core.loras import HASH_DIGITS, is_writable
from text2image.core.messages import (
    Control,
    LoraWeight,
    ModelInfo,
    Quality,
    Request,
    RequestParams,
    Sampler,
    Schedule,
)
from text2image.core.samplers import SCHEDULES_OF
from text2image.core.validation import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from text2image.gateway.rate_limits import Spending

MODEL = ModelInfo(
    id="embedded",
    revision="dcfec67f3ca2",
    family="stable-diffusion",
    width=128,
    height=128,
    min_side=64,
    max_side=256,
    steps=20,
    guidance_scale=5.0,
    sampler=Sampler.DPMPP_2M,
    samplers=tuple(Sampler),
    max_prompt_tokens=77,
    device="cpu",
    dtype="float32",
    schedules=tuple(Schedule),
    fast="guidance outside of 0-0.6 of the passes",
)
REQUEST = Request(
    prompt="a red fox",
    negative_prompt="",
    width=128,
    height=96,
    steps=20,
    guidance_scale=7.5,
    seed=7,
    n=1,
    sampler=Sampler.EULER_ANCESTRAL,
    model=MODEL.id,
)
prompts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from(
        [
            "a fox",
            "\n",
            "\r",
            "Negative prompt: ",
            "Steps: 3",
            ", ",
            '"',
            "\\",
            "Seed: 9",
            "Prompt: x",
            "<lora:a:1>",
            " <lora:b>",
        ]
    )
).map("".join)
ways = st.sampled_from(
    [(sampler, schedule) for sampler in Sampler for schedule in (None, *SCHEDULES_OF[sampler])]
)
loras = st.lists(
    st.builds(
        LoraWeight,
        st.text("abÜ1 -_.(", min_size=1, max_size=9).filter(is_writable),
        st.floats(-4, 4).filter(bool),
        st.text("0123456789abcdef", min_size=HASH_DIGITS, max_size=HASH_DIGITS),
    ),
    max_size=3,
    unique_by=lambda each: each.name,
).map(lambda each: tuple(sorted(each, key=lambda lora: lora.name)))
requests = st.builds(
    lambda way, **fields: Request(sampler=way[0], schedule=way[1], **fields),
    way=ways,
    prompt=prompts,
    negative_prompt=prompts,
    width=st.integers(8, 256).map(lambda side: side * 8),
    height=st.integers(8, 256).map(lambda side: side * 8),
    steps=st.integers(1, MAX_STEPS),
    guidance_scale=st.floats(0, MAX_GUIDANCE),
    seed=st.integers(0, MAX_SEED),
    n=st.just(1),
    quality=st.sampled_from(Quality),
    clip_skip=st.integers(0, 12),
    model=st.just(MODEL.id),
    loras=loras,
)


controls = st.lists(
    st.builds(
        Control,
        st.text("abÜ1 -_.(", min_size=1, max_size=9).filter(is_writable),
        st.sampled_from([control_picture((64, 64), seed) for seed in range(3)]),
        st.floats(0, 2),
        st.floats(0, 0.4),
        st.floats(0.5, 1),
        st.sampled_from(["", *PREPROCESSORS]),
        st.text("0123456789abcdef", min_size=HASH_DIGITS, max_size=HASH_DIGITS),
    ),
    max_size=3,
).map(tuple)
# And those that begin from a picture, are steered by others, or are enlarged.
begun = st.builds(
    replace,
    requests,
    image=st.sampled_from([None, init_image(), init_image(masked=True), init_image(seed=1)]),
    strength=st.sampled_from([0.5, 1.0]),
    controls=controls,
    hires_scale=st.sampled_from([None, 1.5]),
    hires_strength=st.sampled_from([None, 0.5]),
    hires_steps=st.sampled_from([None, 4]),
)


def params_of(request: Request) -> RequestParams:
    """The same request as a client would write it."""
    fields = {name: getattr(request, name) for name in Request.__slots__}
    # Nothing is written of no adapters and ControlNets.
    some = {name: fields[name] or None for name in ("loras", "controls")}
    return RequestParams(**{**fields, **some})


@dataclass(slots=True)
class Charge:
    """A request as the quotas see it."""

    standing: tuple[Spending, ...] | None = None
