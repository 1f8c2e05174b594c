"""The form: its widgets, with the limits and defaults of the model that is served, and the order that it makes."""

from __future__ import annotations

from dataclasses import fields, replace

import streamlit as st

from frontend import canvas, starts
from frontend.choosers import choose_again, chosen_adapters
from frontend.orders import LABELS, Order, fresh_seed
from frontend.starts import Start
from frontend.state import PANEL, fill_in, is_phone
from frontend.steering import choose_controls_again, chosen_controls
from frontend.visitor import Visitor
from text2image.core.messages import Input, ModelInfo
from text2image.core.upscalers import LANCZOS
from text2image.core.validation import (
    HIRES_STRENGTH,
    MAX_GUIDANCE,
    MAX_HIRES_SCALE,
    MAX_IMAGES,
    MAX_STEPS,
    STRENGTH,
)

# A browser's numbers are exact up to here; larger seeds can be asked for by other clients.
MAX_TYPED_SEED = 2**53 - 1
# Every widget's key is the name of its field, so that an order is what the session holds under these names.
_NAMES = [field.name for field in fields(Order) if field.name not in ("loras", "start", "controls")]
_OF_HIRES = ("hires_scale", "hires_strength", "hires_steps", "hires_upscaler")
# Those that begin empty, and not as an empty text.
_UNSET = ("seed", "hires_steps")
_HIRES_STEP = 0.25
# Which model the options were set for; another one has other limits.
_SET_FOR = "options_set_for"


def show_form(visitor: Visitor, model: ModelInfo) -> None:
    """Draws when it is sent off, by its button or by Enter in any of its fields."""
    _set_defaults(visitor, model)
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
            on_click=lambda: visitor.draw(order_in_form(visitor)),
        )
        with st.expander("Options", icon=":material/tune:", expanded=not is_phone()):
            _options(model)
            _seed(visitor)
            if most := _largest_scale(model):
                _enlarging(model, most, disabled=visitor.start is not None)


def order_in_form(visitor: Visitor) -> Order:
    """What the form holds, as it was sent off last, and what is chosen beside it, as far as the model can do it."""
    model, state = visitor.model, st.session_state
    assert model
    start = _start(visitor, model)
    without = () if _largest_scale(model) and start is None else _OF_HIRES
    values = {name: state[name] for name in _NAMES if name in state and name not in without}
    if values.get("hires_upscaler") not in [each.name for each in model.upscalers]:
        values["hires_upscaler"] = ""
    return Order(
        **values,
        loras=chosen_adapters(model),
        start=start,
        controls=chosen_controls(visitor, model),
    )


def fill_in_again(visitor: Visitor, order: Order) -> None:
    """Shows in the form, and beside it, what is drawn again; the seed and the number of pictures stay as they are."""
    kept = ("seed", "n")
    fill_in(**{name: getattr(order, name) for name in _NAMES if name not in kept})
    choose_again(order.loras)
    choose_controls_again(visitor, order.controls)
    visitor.start, visitor.refused = order.start, None
    if order.start:
        fill_in(**{PANEL: True})
    for model in visitor.models:
        if order.model in ("", model.id):
            # Or the options of a model that was not the last one would be its defaults.
            fill_in(**{_SET_FOR: _limits_of(model)})
            break


def _start(visitor: Visitor, model: ModelInfo) -> Start | None:
    start = visitor.start
    if start is None or Input.IMAGE not in model.inputs:
        return None
    if Input.MASK not in model.inputs:
        return replace(start, mask=None)
    return starts.with_strokes(start, canvas.strokes_on(start))


def _set_defaults(visitor: Visitor, model: ModelInfo) -> None:
    """Sets what the visitor has not touched yet, and all options anew when another model is served."""
    options = {
        "width": model.width,
        "height": model.height,
        "steps": model.steps,
        "guidance_scale": model.guidance_scale,
        "sampler": model.sampler.value,
        "n": 1,
        "clip_skip": model.clip_skip,
        "hires_scale": 1.0,
        "hires_strength": HIRES_STRENGTH,
    }
    if st.session_state.get(_SET_FOR) != _limits_of(model):
        fill_in(**{_SET_FOR: _limits_of(model)}, **options)
        if visitor.start and Input.IMAGE in model.inputs:
            width, height = starts.size_for(visitor.start, model)
            fill_in(width=width, height=height)
    st.session_state.setdefault("strength", STRENGTH)
    # A widget that was not shown has lost its value.
    for name, value in options.items():
        st.session_state.setdefault(name, value)
    for name in _NAMES:
        st.session_state.setdefault(name, None if name in _UNSET else "")


def _limits_of(model: ModelInfo) -> ModelInfo:
    """All of it that the options depend on: adapters, nets, embeddings and upscalers come and go."""
    return replace(model, loras=(), controls=(), embeddings=(), upscalers=())


def _largest_scale(model: ModelInfo) -> float | None:
    """By how much the model enlarges its own size, in steps of the slider; None if not at all."""
    room = model.max_side / max(model.width, model.height)
    most = min(MAX_HIRES_SCALE, room) // _HIRES_STEP * _HIRES_STEP
    return most if Input.IMAGE in model.inputs and most > 1 else None


def _options(model: ModelInfo) -> None:
    """Each has its default too: values that are set while the browser is busy with an earlier run may not reach it."""
    st.text_input(LABELS["negative_prompt"], key="negative_prompt", placeholder="what to leave out")
    left, right = st.columns(2, gap="small")
    for column, side in ((left, "width"), (right, "height")):
        column.number_input(
            LABELS[side],
            model.min_side,
            model.max_side,
            getattr(model, side),
            step=model.side_multiple,
            key=side,
        )
    st.slider(LABELS["steps"], 1, MAX_STEPS, model.steps, key="steps", help="More take longer.")
    st.slider(
        LABELS["guidance_scale"],
        0.0,
        MAX_GUIDANCE,
        model.guidance_scale,
        step=0.5,
        format="%g",
        key="guidance_scale",
        help="How closely to follow the prompt.",
    )
    left, right = st.columns(2, gap="small")
    samplers = [sampler.value for sampler in model.samplers]
    usual = samplers.index(model.sampler.value)
    left.selectbox(LABELS["sampler"], samplers, usual, key="sampler")
    right.number_input(LABELS["n"], 1, MAX_IMAGES, key="n")
    if model.max_clip_skip:
        st.number_input(
            LABELS["clip_skip"],
            0,
            model.max_clip_skip,
            model.clip_skip,
            key="clip_skip",
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


def _enlarging(model: ModelInfo, most: float, *, disabled: bool) -> None:
    """A second pass over what is drawn, enlarged."""
    st.slider(
        LABELS["hires_scale"],
        1.0,
        most,
        step=_HIRES_STEP,
        format="%g ×",
        key="hires_scale",
        disabled=disabled,
        help="Draws on from the picture once it is enlarged; not where it begins from another picture.",
    )
    left, right = st.columns(2, gap="small")
    left.number_input(
        LABELS["hires_strength"],
        0.05,
        1.0,
        HIRES_STRENGTH,
        step=0.05,
        key="hires_strength",
        disabled=disabled,
    )
    right.number_input(
        LABELS["hires_steps"],
        1,
        MAX_STEPS,
        None,
        key="hires_steps",
        placeholder="as many",
        disabled=disabled,
    )
    if names := [upscaler.name for upscaler in model.upscalers]:
        if st.session_state.get("hires_upscaler") not in names:
            fill_in(hires_upscaler="")
        st.selectbox(
            LABELS["hires_upscaler"],
            ["", *names],
            key="hires_upscaler",
            format_func=lambda name: name or LANCZOS,
            disabled=disabled,
        )
