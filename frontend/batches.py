"""The form of a batch: a list of prompts, and what is varied for all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from frontend.visitor import Visitor
from frontend.words import notice_of
from text2image.core import tables
from text2image.core.errors import FieldViolation, InvalidRequest, Text2ImageError
from text2image.core.messages import ModelInfo
from text2image.core.tables import Axis, Row

# What a sheet has for columns and what its rows have in common is kept with the job, under this name.
SHEET = "sheet"
# As many as a server takes in one job; and what a page reads of a file, in MB.
_MOST_REQUESTS, _FILE_MEGABYTES = 10_000, 8
_TYPES = ["csv", "tsv", "jsonl", "ndjson", "txt"]
_NAME_LENGTH = 60
# Their values are paths, and the page must not open files of its own machine for a visitor.
_FILES = ("image", "mask", "controls")
_EXAMPLE = "a fox in the snow\nan owl at night"


def show_batch_form(visitor: Visitor) -> None:
    """Hands all requests to the server, as one job, when it is sent off."""
    with st.form("batch"):
        st.text_area(
            "Prompts",
            key="batch_text",
            height=180,
            placeholder=_EXAMPLE,
            help="One a line; or a table (CSV) with a column `prompt` and others that are called as fields of a "
            "request, like `steps`; or JSON by line.",
        )
        st.file_uploader(
            "Or a file of them", _TYPES, key="batch_file", max_upload_size=_FILE_MEGABYTES
        )
        st.text_input(
            "Seeds", key="batch_seeds", placeholder="1-4", help="Each prompt with each of these."
        )
        if len(visitor.models) > 1:
            st.multiselect("Models", [model.id for model in visitor.models], key="batch_models")
        if any(lora for model in visitor.models for lora in model.loras):
            st.text_input(
                "Adapters and weights",
                key="batch_loras",
                placeholder=_weights_like(visitor.models),
                help="Each prompt with each of these.",
            )
        st.form_submit_button(
            "Draw all",
            key="draw_batch",
            type="primary",
            icon=":material/grid_view:",
            width="stretch",
            on_click=lambda: _submit(visitor),
        )
    if visitor.refused_batch:
        st.warning(visitor.refused_batch.text or visitor.refused_batch.title)


def _weights_like(models: Sequence[ModelInfo]) -> str:
    name = next(lora.name for model in models for lora in model.loras)
    return f"{name}:0.4, {name}:0.8"


def _submit(visitor: Visitor) -> None:
    """To be called in a callback."""
    state = st.session_state
    file = state.get("batch_file")
    visitor.refused_batch = None
    try:
        name, text = (file.name, _text_of(file.getvalue())) if file else ("", state["batch_text"])
        axes = _axes(
            state.get("batch_models") or (), state["batch_seeds"], state.get("batch_loras") or ""
        )
        rows = requests_of(name, text, axes)
        title = name or str(rows[0].fields["prompt"])[:_NAME_LENGTH]
        with visitor.server.connect(visitor.api_key) as client:
            job = client.jobs.submit(
                [row.fields for row in rows], name=title, metadata={SHEET: layout_of(axes)}
            )
        visitor.job = job.id
    except Text2ImageError as error:
        visitor.refused_batch = notice_of(error, has_key=bool(visitor.api_key))


def _text_of(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(FieldViolation("prompts", "the file is no text in UTF-8")) from None


def _axes(models: Sequence[str], seeds: str, loras: str) -> list[Axis]:
    axes = []
    try:
        if models:
            axes.append(tables.parse_axis("model", models))
        if loras.strip():
            axes.append(tables.parse_axis("loras", loras.split(",")))
        if seeds.strip():
            axes.append(tables.parse_seeds(seeds))
    except ValueError as error:
        raise InvalidRequest(FieldViolation("prompts", str(error))) from None
    return axes


def requests_of(name: str, text: str, axes: Sequence[Axis]) -> list[Row]:
    """All requests of a text, each with each combination of what is varied.

    Raises:
        InvalidRequest: a line is none, names a file, or there are more than one job takes.
    """
    rows = tables.crossed(tables.read_rows(text, tables.form_of(name, text)), axes, {})
    for row in rows:
        if named := [field for field in _FILES if field in row.fields]:
            reason = f"names {named[0]}, a file, which a list cannot bring along"
            raise InvalidRequest(FieldViolation(f"line {row.line}", reason))
    if len(rows) > _MOST_REQUESTS:
        reason = f"are {len(rows)} in all; at most {_MOST_REQUESTS} are taken at once"
        raise InvalidRequest(FieldViolation("prompts", reason))
    return rows


def layout_of(axes: Sequence[Axis]) -> str:
    """How the pictures of what `requests_of` gives are laid out, for `layout_in`."""
    columns, varied = tables.labels_of(axes)
    return json.dumps({"columns": columns, "varied": varied})


def layout_in(metadata: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Labels of a sheet's columns, and what its rows have in turn; one plain column for jobs made elsewhere."""
    try:
        told: Any = json.loads(metadata[SHEET])
        return [str(each) for each in told["columns"]], [str(each) for each in told["varied"]]
    except (KeyError, TypeError, ValueError):
        return [""], [""]
