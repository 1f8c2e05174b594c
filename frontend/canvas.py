"""A canvas over a picture, to paint a mask on."""

from __future__ import annotations

from base64 import b64decode

import streamlit as st

from frontend import starts
from frontend.starts import Start

_THINNEST, _THICKEST, _BRUSH = 4, 80, 28
_RED, _GREEN, _BLUE, _ALPHA = starts.MARK


def paint(start: Start, side: int) -> None:
    """The canvas, whose longer side is so many pixels of the browser."""
    # It registers itself when it is imported, which needs Streamlit to run.
    from streamlit_drawable_canvas import st_canvas

    scale = side / max(start.width, start.height)
    st_canvas(
        background_image=starts.sheet_of(start),
        width=max(1, round(start.width * scale)),
        height=max(1, round(start.height * scale)),
        stroke_color=f"rgba({_RED}, {_GREEN}, {_BLUE}, {_ALPHA / 255:.2f})",
        stroke_width=st.session_state.get("brush", _BRUSH),
        return_image_data=True,
        key=_key(start),
    )


def choose_brush() -> None:
    st.slider("Brush", _THINNEST, _THICKEST, _BRUSH, key="brush", help="How thick it paints.")


def strokes_on(start: Start) -> bytes | None:
    """What was painted over this picture, as PNG; to be called in a callback, too."""
    drawing = st.session_state.get(_key(start), {}).get("drawing") or {}
    url = drawing.get("data")
    return b64decode(url.partition(",")[2]) if url else None


def _key(start: Start) -> str:
    return f"canvas_{start.digest}"
