"""Which model draws, and with which adapters. Both stand outside of the form, since its fields follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import streamlit as st

from frontend.orders import LABELS
from frontend.state import fill_in
from frontend.words import plain
from text2image.core.loras import MAX_LORAS
from text2image.core.messages import LoraInfo, LoraWeight, ModelInfo

# Weights beyond are for those who write them; they spoil most pictures.
_LEAST, _MOST, _USUAL = -2.0, 2.0, 1.0
_CHOSEN = "loras"


def choose_model(models: Sequence[ModelInfo]) -> ModelInfo:
    """The model that is drawn with, which the visitor chooses where there are several."""
    if len(models) == 1:
        fill_in(model="")
        return models[0]
    by_name = {model.id: model for model in models}
    if st.session_state.get("model") not in by_name:
        fill_in(model=models[0].id)
    return by_name[st.selectbox(LABELS["model"], list(by_name), key="model")]


def choose_adapters(model: ModelInfo) -> None:
    """Adapters that the model can be drawn with, and a weight for each that is chosen."""
    usable = _usable(model)
    chosen = choose_several(_CHOSEN, list(usable), MAX_LORAS)
    for name in chosen:
        weight = _weight_of(name)
        st.slider(plain(name), _LEAST, _MOST, _USUAL, step=0.05, format="%g", key=weight)
        if words := usable[name].trigger_words:
            st.caption(f"Called for by: {plain(', '.join(words))}")


def choose_several(key: str, names: list[str], most: int) -> list[str]:
    """Those of these names that are chosen, under the label of the field that is called like the key."""
    if not names:
        return []
    before = st.session_state.get(key, [])
    if not set(names) >= set(before):
        fill_in(**{key: [name for name in before if name in names]})
    chosen: list[str] = st.multiselect(
        LABELS[key],
        names,
        key=key,
        max_selections=most,
        placeholder="none; choose one or several",
    )
    return chosen


def chosen_adapters(model: ModelInfo) -> tuple[LoraWeight, ...]:
    """Those that are chosen, each with the hash of the file that is meant."""
    usable, state = _usable(model), st.session_state
    return tuple(
        LoraWeight(name, state.get(_weight_of(name), _USUAL), usable[name].hash)
        for name in state.get(_CHOSEN, ())
        if name in usable
    )


def choose_again(loras: Iterable[LoraWeight]) -> None:
    """Chooses these; to be called in a callback."""
    weights = {lora.name: lora.weight for lora in loras}
    fill_in(**{_CHOSEN: list(weights)})
    fill_in(**{_weight_of(name): weight for name, weight in weights.items()})


def _usable(model: ModelInfo) -> dict[str, LoraInfo]:
    return {lora.name: lora for lora in model.loras if not lora.fault}


def _weight_of(name: str) -> str:
    return f"weight of {name}"
