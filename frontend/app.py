"""The page: words in, a picture out, drawn by a server over gRPC. `make ui` starts it."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from frontend.batches import show_batch_form
from frontend.choosers import choose_adapters, choose_model
from frontend.form import show_form
from frontend.inputs import show_inputs
from frontend.jobs import show_jobs
from frontend.pieces import show_gallery
from frontend.server import Server
from frontend.stage import show_stage
from frontend.steering import choose_controls
from frontend.visitor import Visitor
from frontend.words import plain
from text2image.core.errors import Internal
from text2image.core.settings import get_settings

logger = logging.getLogger(__name__)

# What the page shows.
_SINGLE, _BATCH = "One by one", "Batch"

STYLE = Path(__file__).with_name("style.css")


class Misconfigured(Exception):
    """A setting of the page is wrong; the text says which."""


def main() -> None:
    st.set_page_config(page_title="Text2Image", page_icon=":material/brush:", layout="wide")
    st.html(STYLE)
    try:
        show_page(visitor_of_session())
    except Misconfigured as error:
        st.error(f"The page cannot be shown: {plain(str(error))}")
    except Exception:
        # Streamlit would tell the visitor of the code.
        fault = Internal()
        logger.exception("the page failed; id %s", fault.error_id)
        st.error(f"Something went wrong: {fault.message}. Load the page again to go on.")


def visitor_of_session() -> Visitor:
    """The visitor whose session this is.

    Raises:
        Misconfigured: the environment says something that cannot be.
    """
    if "visitor" not in st.session_state:
        try:
            server = Server.of(get_settings())
            server.connect().close()
        except (OSError, ValueError, SystemExit) as error:
            raise Misconfigured(str(error)) from None
        context = get_script_run_ctx()
        session = context.session_id if context else ""
        is_present = partial(runtime.get_instance().is_active_session, session)
        st.session_state["visitor"] = Visitor(server, is_present)
    visitor: Visitor = st.session_state["visitor"]
    return visitor


def show_page(visitor: Visitor) -> None:
    visitor.settle()
    if visitor.drawing is None:
        visitor.ask_models()
    st.title("Text2Image", anchor=False)
    views = [_SINGLE, _BATCH]
    view = st.segmented_control(
        "View", views, default=_SINGLE, required=True, key="view", label_visibility="collapsed"
    )
    if view == _BATCH:
        show_batch(visitor)
    else:
        show_drawing(visitor)


def show_batch(visitor: Visitor) -> None:
    """Many prompts, which the server draws in the background."""
    left, right = st.columns([2, 3], gap="medium")
    with left:
        show_batch_form(visitor)
    with right, st.container(border=True, key="stage"):
        show_jobs(visitor)


def show_drawing(visitor: Visitor) -> None:
    """One request after the other."""
    left, right = st.columns([2, 3], gap="medium")
    if visitor.models:
        with left:
            visitor.model = choose_model(visitor.models)
            choose_adapters(visitor.model)
            choose_controls(visitor, visitor.model)
            show_inputs(visitor, visitor.model)
            show_form(visitor, visitor.model)
    with right:
        with st.container(border=True, key="stage"):
            show_stage(visitor)
        if len(visitor.history):
            show_gallery(visitor)


main()
