"""What drawing begins from: a picture that is dropped or taken from the gallery, and a mask that is painted on it."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from frontend import canvas, starts
from frontend.orders import LABELS
from frontend.starts import Start
from frontend.state import PANEL, fill_in, is_phone
from frontend.uploads import upload
from frontend.visitor import Visitor
from frontend.words import notice_of
from text2image.core.errors import Text2ImageError
from text2image.core.messages import Input, ModelInfo
from text2image.core.validation import STRENGTH

# The longer side of what is painted on, in pixels of the browser.
_SIDE, _SIDE_ON_PHONE = 288, 272
_MARKED = "What is marked is drawn anew, and the rest stays."
_UNMARKED = "Paint over what is to be drawn anew; without a mark all of it is."


def show_inputs(visitor: Visitor, model: ModelInfo) -> None:
    """Where the model takes pictures. It stands outside of the form, since the form's size follows from the picture."""
    if Input.IMAGE not in model.inputs:
        return
    start = visitor.start
    # Its key opens it, see `begin_from`.
    with st.expander("Begin from a picture", icon=":material/image:", key=PANEL, on_change="rerun"):
        if start is None:
            upload("upload_image", LABELS["image"], lambda file: begin_from(visitor, model, file))
        else:
            _show(visitor, model, start)
        if visitor.refused:
            st.warning(visitor.refused.text or visitor.refused.title)


def begin_from(visitor: Visitor, model: ModelInfo, file: bytes) -> None:
    """Takes a picture, and its size; to be called in a callback."""
    if _tried(visitor, lambda: starts.read(file, model)) and visitor.start:
        fill_in(width=visitor.start.width, height=visitor.start.height, **{PANEL: True})


def _tried(visitor: Visitor, change: Callable[[], Start]) -> bool:
    """Whether the picture is another one now; if not, the visitor is told why."""
    visitor.refused = None
    try:
        visitor.start = change()
    except Text2ImageError as error:
        visitor.refused = notice_of(error)
    return visitor.refused is None


def _show(visitor: Visitor, model: ModelInfo, start: Start) -> None:
    side = _SIDE_ON_PHONE if is_phone() else _SIDE
    if Input.MASK in model.inputs:
        canvas.paint(start, side)
        marked = starts.with_strokes(start, canvas.strokes_on(start)).mask is not None
        st.caption(_MARKED if marked else _UNMARKED)
        brush, strength = st.columns(2, gap="medium")
        with brush:
            canvas.choose_brush()
    else:
        st.image(start.png, width=side, alt="What drawing begins from")
        strength = st.container()
    strength.slider(
        LABELS["strength"],
        0.05,
        1.0,
        STRENGTH,
        step=0.05,
        key="strength",
        help="How much of the picture may change; at 1 hardly anything of it is left.",
    )
    with st.container(horizontal=True, gap="xsmall"):
        st.button(
            "Remove", key="remove", icon=":material/close:", on_click=_remove, args=(visitor, model)
        )
        if Input.MASK in model.inputs:
            _mask_buttons(visitor, model, start)


def _remove(visitor: Visitor, model: ModelInfo) -> None:
    visitor.start = visitor.refused = None
    fill_in(width=model.width, height=model.height)


def _mask_buttons(visitor: Visitor, model: ModelInfo, start: Start) -> None:
    with st.popover("Mask from a file", icon=":material/upload:"):
        st.caption("A picture of the same proportions, white where it is drawn anew.")
        upload(
            "upload_mask",
            LABELS["mask"],
            lambda file: _tried(visitor, lambda: starts.with_mask(start, file, model)),
        )
    if start.mask:
        st.button(
            "Without the mask",
            key="unmask",
            icon=":material/ink_eraser:",
            on_click=visitor.unmask,
        )
