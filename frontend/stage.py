"""The stage: the drawing under way, its pictures, and what went wrong."""

from __future__ import annotations

import math
from base64 import b64encode

import streamlit as st

from frontend import form, pieces, previews
from frontend.drawing import Tile
from frontend.orders import Order
from frontend.state import fill_in
from frontend.visitor import Told, Visitor
from frontend.words import Notice, Remedy, condition_of, plain, progress_of, title_of
from text2image.core.errors import Text2ImageError

# How often a drawing, a countdown and a server that is waited for are looked at, in seconds.
_LOOK_AT_DRAWING = 0.25
_LOOK_AT_CLOCK = 1.0
_LOOK_AT_SERVER = 2.0

IDEAS = ("a cat on a blue background", "a red apple", "a rocket in space", "a penguin in the snow")


def show_stage(visitor: Visitor) -> None:
    """One of: the drawing under way; a notice and the pictures so far; ideas for a first picture."""
    if visitor.drawing:
        st.fragment(_show_drawing, run_every=_LOOK_AT_DRAWING)(visitor)
        return
    if visitor.told:
        _show_told(visitor, visitor.told)
    for name, end in visitor.completed.unread:
        st.info(
            f"The {name} was too long. Left out: {plain(end)}",
            icon=":material/content_cut:",
        )
    if visitor.shown:
        pieces.show_large(visitor, visitor.shown)
    elif not visitor.told:
        _show_ideas(visitor)


def _show_drawing(visitor: Visitor) -> None:
    drawing = visitor.drawing
    if drawing is None or drawing.has_ended:
        st.rerun()
    view = drawing.view
    alone = len(view.tiles) == 1
    with st.container(horizontal=True):
        for tile in view.tiles:
            st.image(
                _image_of(tile, drawing.order),
                width=pieces.width_of(len(view.tiles)),
                alt="The picture as it stands",
            )
        with st.container(width=pieces.BESIDE if alone else "stretch", gap="small"):
            st.subheader(title_of(drawing.order), anchor=False)
            st.progress(view.steps_done / view.steps, progress_of(view))
            cancelled = st.button("Cancel", key="cancel", icon=":material/close:", shortcut="Esc")
    if cancelled:
        drawing.cancel()
        drawing.join(_LOOK_AT_CLOCK)
        st.rerun()


def _image_of(tile: Tile, order: Order) -> str:
    """In the page itself: a file of its own would be gone when a slow browser asks for it."""
    shown = tile.picture and tile.picture.png
    png = shown or previews.png_of(tile.preview, order.width, order.height)
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _show_told(visitor: Visitor, told: Told) -> None:
    remedy = told.notice.remedy
    if remedy is Remedy.WAIT:
        st.fragment(_show_condition, run_every=_LOOK_AT_SERVER)(visitor, told)
    elif told.seconds_left:
        st.fragment(_show_countdown, run_every=_LOOK_AT_CLOCK)(visitor, told)
    else:
        with _box(told.notice):
            if remedy is Remedy.KEY:
                _ask_key(visitor, told.order)
            elif remedy is Remedy.AGAIN and told.order:
                _again_button(visitor, told.order)


def _show_countdown(visitor: Visitor, told: Told) -> None:
    seconds = math.ceil(told.seconds_left)
    if not seconds:
        st.rerun()
    with _box(told.notice):
        st.button(f"Try again in {seconds} s", key="wait", icon=":material/timer:", disabled=True)


def _show_condition(visitor: Visitor, told: Told) -> None:
    """Why the server does not draw, until it does."""
    try:
        notice = condition_of(visitor.server.status(visitor.api_key), visitor.server.address)
    except Text2ImageError as error:
        visitor.tell(error, told.order)
        st.rerun()
    if notice.remedy is Remedy.WAIT:
        with _box(notice):
            pass
        return
    visitor.told = Told(notice, told.order, told.retry_at) if told.order else None
    st.rerun()


def _box(notice: Notice) -> st.delta_generator.DeltaGenerator:
    """A framed notice, to be filled with what the visitor can do."""
    box = st.container(border=True, key=f"notice_{notice.tone.value}")
    icons = {
        "info": ":blue[:material/info:]",
        "warning": ":orange[:material/warning:]",
        "error": ":red[:material/error:]",
    }
    box.markdown(f"{icons[notice.tone.value]} **{notice.title}**")
    if notice.text:
        box.markdown(notice.text)
    return box


def _again_button(visitor: Visitor, order: Order) -> None:
    st.button(
        "Try again",
        key="again",
        type="primary",
        icon=":material/refresh:",
        on_click=visitor.draw,
        args=(order,),
    )


def _ask_key(visitor: Visitor, order: Order | None) -> None:
    """The field for a key; what was refused without one is drawn as soon as it is there."""
    with st.form("key", border=False):
        st.text_input("API key", type="password", key="api_key", autocomplete="off")
        st.form_submit_button(
            "Use this key",
            key="use_key",
            type="primary",
            icon=":material/key:",
            on_click=lambda: visitor.use_key(st.session_state["api_key"].strip(), order),
        )


def _show_ideas(visitor: Visitor) -> None:
    with st.container(key="empty", horizontal_alignment="center", vertical_alignment="center"):
        st.subheader("Say what to draw", anchor=False, text_alignment="center")
        st.markdown(
            "Type a few words and press Enter, or begin with one of these.", text_alignment="center"
        )
        with st.container(horizontal=True, horizontal_alignment="center", gap="xsmall"):
            for number, idea in enumerate(IDEAS):
                st.button(idea, key=f"idea_{number}", on_click=_draw_idea, args=(visitor, idea))


def _draw_idea(visitor: Visitor, idea: str) -> None:
    fill_in(text=idea)
    visitor.draw(form.order_in_form(visitor))
