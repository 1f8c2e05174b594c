"""The form: its widgets, with the limits and defaults of the model that is served, and the order that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import streamlit as st

from frontend.orders import LABELS, Order, fresh_seed
from frontend.visitor import Visitor
from text2image.core.messages import ModelInfo
from text2image.core.validation import MAX_GUIDANCE, MAX_IMAGES, MAX_STEPS

# A browser's numbers are exact up to here; larger seeds can be asked for by other clients.
MAX_TYPED_SEED = 2**53 - 1
# Every widget's key is the name of its field, so that an order is what the session holds under these names.
_NAMES = [field.name for field in fields(Order)]
# Which model the options were set for; another one has other limits.
_SET_FOR = "options_set_for"


def choose_model(models: Sequence[ModelInfo]) -> ModelInfo:
    """The model that is drawn with, which the visitor chooses where there are several.

    It stands outside of the form, since its limits are those of the form's fields.
    """
    if len(models) == 1:
        fill_in(model="")
        return models[0]
    by_name = {model.id: model for model in models}
    if st.session_state.get("model") not in by_name:
        fill_in(model=models[0].id)
    return by_name[st.selectbox(LABELS["model"], list(by_name), key="model")]


def show_form(visitor: Visitor, model: ModelInfo) -> None:
    """Draws when it is sent off, by its button or by Enter in any of its fields."""
    _set_defaults(model)
    with st.form("order"):
        st.text_input(LABELS["prompt"], key="text", placeholder="a cat in the snow")
        st.text_input("Context", key="context", placeholder="optional: a style, a place, a mood")
        # Enter presses the first button of a form.
        st.form_submit_button(
            "Draw",
            key="draw",
            type="primary",
            icon=":material/brush:",
            width="stretch",
            on_click=lambda: visitor.draw(order_in_form()),
        )
        with st.expander("Options", icon=":material/tune:", expanded=not _is_phone()):
            _options(model)
            _seed(visitor)


def order_in_form() -> Order:
    """What the form holds, as it was sent off last."""
    return Order(**{name: st.session_state[name] for name in _NAMES})


def fill_in(**values: object) -> None:
    """Puts values into the form by their fields' names; to be called in a callback, before the form is shown."""
    st.session_state.update(values)


def fill_in_again(order: Order) -> None:
    """Shows in the form what is drawn again; the seed and the number of pictures stay as they are."""
    kept = ("seed", "n")
    fill_in(**{name: getattr(order, name) for name in _NAMES if name not in kept})


def _set_defaults(model: ModelInfo) -> None:
    """Sets what the visitor has not touched yet, and all options anew when another model is served."""
    options = {
        "width": model.width,
        "height": model.height,
        "steps": model.steps,
        "guidance_scale": model.guidance_scale,
        "sampler": model.sampler.value,
        "n": 1,
        "clip_skip": model.clip_skip,
    }
    if st.session_state.get(_SET_FOR) != model:
        st.session_state[_SET_FOR] = model
        fill_in(**options)
    for name in _NAMES:
        st.session_state.setdefault(name, None if name == "seed" else "")


def _is_phone() -> bool:
    """Whether the browser says so; on a small screen the options would hide the picture."""
    return "Mobi" in st.context.headers.get("User-Agent", "")


def _options(model: ModelInfo) -> None:
    st.text_input(LABELS["negative_prompt"], key="negative_prompt", placeholder="what to leave out")
    left, right = st.columns(2, gap="small")
    for column, side in ((left, "width"), (right, "height")):
        column.number_input(
            LABELS[side], model.min_side, model.max_side, step=model.side_multiple, key=side
        )
    st.slider(LABELS["steps"], 1, MAX_STEPS, key="steps", help="More take longer.")
    st.slider(
        LABELS["guidance_scale"],
        0.0,
        MAX_GUIDANCE,
        step=0.5,
        format="%g",
        key="guidance_scale",
        help="How closely to follow the prompt.",
    )
    left, right = st.columns(2, gap="small")
    left.selectbox(LABELS["sampler"], [sampler.value for sampler in model.samplers], key="sampler")
    right.number_input(LABELS["n"], 1, MAX_IMAGES, key="n")
    # A widget that is not shown would lose its value.
    st.number_input(
        LABELS["clip_skip"],
        0,
        max(1, model.max_clip_skip),
        key="clip_skip",
        disabled=not model.max_clip_skip,
        help="The layer of the text encoder, where 1 is the last; 0 is the model's own.",
    )


def _seed(visitor: Visitor) -> None:
    """The seed, a dice that throws one, and the newest picture's."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="xsmall"):
        st.number_input(
            LABELS["seed"],
            0,
            MAX_TYPED_SEED,
            None,
            key="seed",
            placeholder="random",
            help="The same seed draws the same picture again; empty, each picture has a new one.",
        )
        st.form_submit_button(
            "Dice",
            key="dice",
            icon=":material/casino:",
            help="Throw a seed",
            on_click=lambda: fill_in(seed=fresh_seed()),
        )
        newest = visitor.history.newest
        st.form_submit_button(
            "Reuse",
            key="reuse",
            icon=":material/history:",
            help="Take the newest picture's seed",
            disabled=newest is None or newest.picture.seed > MAX_TYPED_SEED,
            on_click=lambda: fill_in(seed=newest.picture.seed if newest else None),
        )
