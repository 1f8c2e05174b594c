"""Files that visitors bring."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from text2image.core.settings import get_settings

_TYPES = ["png", "jpg", "jpeg", "webp"]


def upload(key: str, label: str, takes: Callable[[bytes], object]) -> None:
    """A place to drop a picture's file on, which is handed over at once; what is around it must say what it is for."""

    def take() -> None:
        file = st.session_state[key]
        if file is not None:
            takes(file.getvalue())

    st.file_uploader(
        label,
        _TYPES,
        key=key,
        max_upload_size=max(1, get_settings().max_image_bytes >> 20),
        label_visibility="collapsed",
        on_change=take,
    )
