"""What the session holds under the widgets' keys, and what the browser says of itself."""

from __future__ import annotations

import streamlit as st

# Of the panel that holds the picture to begin from; its value is whether it is open.
PANEL = "inputs"


def fill_in(**values: object) -> None:
    """Puts values into widgets by their keys; to be called in a callback, or before they are shown."""
    st.session_state.update(values)


def is_phone() -> bool:
    """Whether the browser says so; on a small screen the options would hide the picture."""
    return "Mobi" in st.context.headers.get("User-Agent", "")
