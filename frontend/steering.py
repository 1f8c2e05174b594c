"""ControlNets: which of them steer the picture, by which pictures, how much, and over which part of the drawing."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from frontend import starts
from frontend.choosers import choose_several
from frontend.state import fill_in
from frontend.uploads import upload
from frontend.visitor import Visitor
from frontend.words import notice_of, plain
from text2image.core.controls import CANNY, INPAINT, MAX_CONTROLS, MAX_SCALE
from text2image.core.errors import Text2ImageError
from text2image.core.messages import Control, ControlInfo, ModelInfo

_CHOSEN = "controls"
_WINDOW = (0.0, 1.0)
_WAYS = {
    "": "the picture as it is",
    CANNY: "the picture's edges",
    INPAINT: "the picture, and what is transparent in it is drawn",
}
# In pixels of the browser.
_SIDE = 96


def choose_controls(visitor: Visitor, model: ModelInfo) -> None:
    """ControlNets that the model can be steered by, and what each that is chosen needs."""
    for name in choose_several(_CHOSEN, list(_usable(model)), MAX_CONTROLS):
        with st.container(border=True):
            st.markdown(f"**{plain(name)}**")
            _picture(visitor, model, name)
            how, how_much = st.columns(2, gap="medium")
            how.selectbox(
                "Steers by", list(_WAYS), format_func=_WAYS.__getitem__, key=f"way of {name}"
            )
            how_much.slider(
                "Scale", 0.0, MAX_SCALE, 1.0, step=0.05, format="%g", key=f"scale of {name}"
            )
            st.slider("Part of the drawing", *_WINDOW, _WINDOW, step=0.05, key=f"window of {name}")


def chosen_controls(visitor: Visitor, model: ModelInfo) -> tuple[Control, ...]:
    """Those that are chosen; the server refuses one that has no picture yet."""
    usable = _usable(model)
    return tuple(
        _control(name, visitor.control_pictures.get(name), usable[name].hash)
        for name in st.session_state.get(_CHOSEN, ())
        if name in usable
    )


def _control(name: str, image: bytes | None, digest: str) -> Control:
    state = st.session_state
    start, end = state.get(f"window of {name}", _WINDOW)
    return Control(
        name,
        image,
        scale=state.get(f"scale of {name}", 1.0),
        start=start,
        end=end,
        preprocess=state.get(f"way of {name}", ""),
        hash=digest,
    )


def choose_controls_again(visitor: Visitor, controls: Iterable[Control]) -> None:
    """Chooses these with their pictures; to be called in a callback."""
    controls = list(controls)
    fill_in(**{_CHOSEN: [control.name for control in controls]})
    for control in controls:
        name = control.name
        fill_in(
            **{
                f"scale of {name}": control.scale,
                f"window of {name}": (control.start, control.end),
                f"way of {name}": control.preprocess,
            }
        )
        if isinstance(control.image, bytes):
            visitor.control_pictures[name] = control.image


def _picture(visitor: Visitor, model: ModelInfo, name: str) -> None:
    file = visitor.control_pictures.get(name)
    if file is None:
        upload(
            f"upload_control {name}",
            "Control picture",
            lambda brought: _take(visitor, model, name, brought),
        )
        if refused := visitor.refused_controls.get(name):
            st.warning(refused.text or refused.title)
        return

    def forget() -> None:
        del visitor.control_pictures[name]

    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.image(starts.read(file, model).png, width=_SIDE, alt=f"What {name} steers by")
        st.button("Another picture", key=f"forget {name}", icon=":material/close:", on_click=forget)


def _take(visitor: Visitor, model: ModelInfo, name: str, file: bytes) -> None:
    visitor.refused_controls.pop(name, None)
    try:
        starts.read(file, model)
    except Text2ImageError as error:
        visitor.refused_controls[name] = notice_of(error)
    else:
        visitor.control_pictures[name] = file


def _usable(model: ModelInfo) -> dict[str, ControlInfo]:
    return {control.name: control for control in model.controls if not control.fault}
