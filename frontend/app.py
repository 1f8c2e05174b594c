"""The page: words in, a picture out, drawn by a server over gRPC. `make ui` starts it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from text2image.client import Client
from text2image.errors import Text2ImageError, Unavailable
from text2image.messages import Completed, ModelInfo, Picture, Progress
from text2image.ports import address_of
from text2image.settings import get_settings
from text2image.validation import MAX_GUIDANCE, MAX_IMAGES, MAX_STEPS, SIDE_MULTIPLE, compose_prompt

# A browser's numbers are exact up to here; larger seeds can be asked for by other clients.
MAX_TYPED_SEED = 2**53 - 1


@st.cache_resource
def connect(address: str) -> Client:
    """One connection for all visitors."""
    return Client(address)


def main() -> None:
    st.set_page_config(page_title="Text2Image", page_icon="🎨", layout="wide")
    settings = get_settings()
    client = connect(address_of(settings.host, settings.grpc_port))
    st.title("Text2Image")
    try:
        model = client.model()
    except Text2ImageError as error:
        st.warning(in_words(error))
        st.button("Try again")
        return
    prompt, fields, wanted = ask(model)
    if wanted:
        draw(client, prompt, fields)
    for picture in st.session_state.get("pictures", []):
        show(picture)


def ask(model: ModelInfo) -> tuple[str, dict[str, Any], bool]:
    """The form: prompt, request fields, and whether the visitor pressed the button."""
    with st.form("request"):
        text = st.text_input("What should the picture show?", placeholder="a cat in the snow")
        context = st.text_input("Context (optional)", placeholder="fantasy art")
        with st.expander("More"):
            fields = more(model)
        wanted = st.form_submit_button("Draw", type="primary")
    if wanted and not text.strip():
        st.info("Say what to draw.")
    return compose_prompt(text, context), fields, wanted and bool(text.strip())


def more(model: ModelInfo) -> dict[str, Any]:
    """The optional fields of a request, at the model's defaults."""
    left, right = st.columns(2)
    sides = {"min_value": model.min_side, "max_value": model.max_side, "step": SIDE_MULTIPLE}
    fields: dict[str, Any] = {
        "negative_prompt": left.text_input("Not in the picture"),
        "width": left.number_input("Width", value=model.width, **sides),
        "height": left.number_input("Height", value=model.height, **sides),
        "n": left.number_input("Pictures", 1, MAX_IMAGES, 1),
        "steps": right.number_input("Steps", 1, MAX_STEPS, model.steps),
        "guidance_scale": right.number_input("Guidance", 0.0, MAX_GUIDANCE, model.guidance_scale),
        "sampler": right.selectbox(
            "Sampler",
            [sampler.value for sampler in model.samplers],
            index=model.samplers.index(model.sampler),
        ),
    }
    seed = right.number_input("Seed", 0, MAX_TYPED_SEED, None, placeholder="random")
    return fields if seed is None else {**fields, "seed": seed}


def draw(client: Client, prompt: str, fields: dict[str, Any]) -> None:
    """Draws with a progress bar; the pictures are kept for this visitor."""
    bar = st.progress(0.0, "waiting")
    total = fields["n"] * fields["steps"]
    done: dict[int, int] = {}
    pictures = []
    try:
        for event in client.stream(prompt, **fields):
            if isinstance(event, Progress):
                done[event.index] = event.step
                bar.progress(sum(done.values()) / total, "drawing")
            elif isinstance(event, Picture):
                pictures.append(event)
            elif isinstance(event, Completed) and event.left_out:
                st.info(f"The prompt was too long. Left out: {event.left_out}")
    except Text2ImageError as error:
        st.error(in_words(error))
    bar.empty()
    if pictures:
        st.session_state["pictures"] = sorted(pictures, key=lambda picture: picture.index)


def show(picture: Picture) -> None:
    """A picture with its seed and a button to download it."""
    st.image(picture.png, caption=f"seed {picture.seed}", width=max(384, picture.width))
    st.download_button(
        "Download",
        picture.png,
        file_name=f"text2image_{picture.seed}.png",
        mime="image/png",
        key=f"download_{picture.index}",
    )


def in_words(error: Text2ImageError) -> str:
    """An error for the visitor: what happened, and when to try again."""
    if isinstance(error, Unavailable) and error.retry_after:
        return f"{error.message}. Try again in {error.retry_after:.0f} seconds."
    return error.message


main()
