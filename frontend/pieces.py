"""Finished pictures: large on the stage, small in the gallery, each with what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from frontend import form, inputs, starts
from frontend.comparison import show_comparison
from frontend.history import Piece
from frontend.starts import Start
from frontend.visitor import Visitor
from frontend.words import caption_of, parameters_of, title_of

# Widths in pixels of the browser: of a picture alone, of one of a few or of many, and in the gallery.
_ALONE, _OF_FEW, _OF_MANY = 416, 272, 176
_FEW = 4
_SMALL = 148
# Of what stands beside a picture that is alone.
BESIDE = 192


def width_of(count: int) -> int:
    """How wide each of `count` pictures stands on the stage."""
    if count == 1:
        return _ALONE
    return _OF_FEW if count <= _FEW else _OF_MANY


def show_large(visitor: Visitor, shown: Sequence[Piece]) -> None:
    """The pictures of one drawing, or one of the gallery."""
    first = shown[0]
    alone = len(shown) == 1
    with st.container(horizontal=True, key="result"):
        for piece in shown:
            with st.container(width=width_of(len(shown)), gap="xsmall"):
                if alone and piece.order.start:
                    _beside_its_start(piece, piece.order.start)
                else:
                    _image(piece)
                if not alone:
                    st.caption(caption_of(piece))
                    _buttons(visitor, piece, "large")
        with st.container(width=BESIDE if alone else "stretch", gap="xsmall", key="data"):
            st.subheader(title_of(first.order), anchor=False)
            if alone:
                st.markdown(caption_of(first))
            st.caption(parameters_of(first))
            if alone:
                _labelled_buttons(visitor, first)
    if alone and (parameters := first.parameters):
        with st.expander("Parameters", icon=":material/data_object:", key="parameters"):
            st.code(parameters, language=None, wrap_lines=True)


def show_gallery(visitor: Visitor) -> None:
    """All pictures of this visitor that are kept, newest first."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("Your pictures", anchor=False)
        st.button("Clear", key="clear", type="tertiary", on_click=visitor.forget)
    with st.container(horizontal=True, gap="small", key="gallery"):
        for piece in visitor.history:
            with st.container(width=_SMALL, gap="xxsmall"):
                _image(piece)
                _buttons(visitor, piece, "small")


def _image(piece: Piece) -> None:
    # Streamlit would make a JPEG of it otherwise.
    st.image(
        piece.picture.png,
        width="stretch",
        output_format="PNG",
        alt=piece.order.prompt or title_of(piece.order),
    )


def _beside_its_start(piece: Piece, start: Start) -> None:
    """The picture, or what it began from and what came of that."""
    place, picture = st.container(), piece.picture
    compared = st.toggle("Before and after", key="compared")
    with place:
        if compared:
            show_comparison(starts.fitted(start, picture.width, picture.height), picture.png)
        else:
            _image(piece)


def _labelled_buttons(visitor: Visitor, piece: Piece) -> None:
    _download(piece, "alone")
    for name, icon, does in _actions(visitor, piece):
        st.button(name, key=f"{name} {piece.id}", icon=icon, width="stretch", on_click=does)


def _buttons(visitor: Visitor, piece: Piece, place: str) -> None:
    """The same as icons; the style sheet hides their labels from those who see the icons."""
    name_of_row = f"icons_{place}_{piece.id}"
    with st.container(
        horizontal=True, horizontal_alignment="distribute", key=name_of_row, gap=None
    ):
        look = ("Look at it", ":material/open_in_full:", lambda: visitor.show(piece))
        for name, icon, does in (look, *_actions(visitor, piece)):
            st.button(
                name,
                key=f"{name} {place} {piece.id}",
                type="tertiary",
                icon=icon,
                help=name,
                on_click=does,
            )
        _download(piece, place, icon_alone=True)


def _actions(visitor: Visitor, piece: Piece) -> list[tuple[str, str, Callable[[], None]]]:
    """What can be done with a picture: name, icon, deed."""

    def again() -> None:
        form.fill_in_again(visitor, piece.order)
        visitor.draw(piece.order)

    def vary() -> None:
        form.fill_in_again(visitor, piece.order)
        visitor.draw(piece.order.varied())

    def take() -> None:
        if visitor.model:
            inputs.begin_from(visitor, visitor.model, piece.picture.png)
            st.toast("The next picture begins from this one", icon=":material/image:")

    actions = [
        ("Draw again", ":material/refresh:", again),
        ("Vary", ":material/shuffle:", vary),
    ]
    if visitor.takes_pictures:
        actions.append(("Use as input", ":material/image:", take))
    return actions


def _download(piece: Piece, place: str, *, icon_alone: bool = False) -> None:
    st.download_button(
        "Download",
        piece.picture.png,
        piece.file_name,
        "image/png",
        key=f"Download {place} {piece.id}",
        type="tertiary" if icon_alone else "secondary",
        width="content" if icon_alone else "stretch",
        icon=":material/download:",
        help="Download" if icon_alone else None,
        on_click="ignore",
    )
