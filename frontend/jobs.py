"""The jobs that a server draws for the visitor: how they are, what can be done about them, and their pictures."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime

import streamlit as st

from frontend.batches import layout_in
from frontend.visitor import Visitor
from frontend.words import notice_of, plain
from text2image.client import Client
from text2image.core.errors import Text2ImageError
from text2image.gateway.sheets import MAX_CELLS, contact_sheet
from text2image.gateway.store import slug
from text2image.jobs.records import Job, JobState
from text2image.jobs.words import progress_of, suffix_of

# How often a job is looked at, in seconds.
_LOOK = 1.0
_SHOWN = 20
# A sheet of more pictures than this is not made unasked, and more bytes are not held for a download.
_PLAIN_SHEET = 64
_MOST_BYTES = 256 << 20
_ICONS = {
    JobState.QUEUED: ":material/schedule:",
    JobState.RUNNING: ":material/brush:",
    JobState.PAUSED: ":material/pause:",
    JobState.CANCELLED: ":material/close:",
    JobState.COMPLETED: ":material/check:",
}


def show_jobs(visitor: Visitor) -> None:
    """The newest jobs to choose from, and the chosen one; the server keeps them when the tab is closed."""
    try:
        with visitor.server.connect(visitor.api_key) as client:
            jobs = client.jobs.list(limit=_SHOWN).jobs
    except Text2ImageError as error:
        notice = notice_of(error, has_key=bool(visitor.api_key))
        st.info(notice.text or notice.title)
        return
    if not jobs:
        st.markdown("Write prompts, one a line, and the server draws them in the background.")
        return
    ids = [job.id for job in jobs]
    if visitor.job not in ids:
        visitor.job = ids[0]
    titles = {job.id: f"{_time(job)}  {job.name or job.id}" for job in jobs}
    visitor.job = st.selectbox(
        "Job", ids, ids.index(visitor.job), format_func=lambda each: titles[each]
    )
    st.fragment(_show_job, run_every=_LOOK)(visitor, visitor.job)


def _show_job(visitor: Visitor, job_id: str) -> None:
    try:
        with visitor.server.connect(visitor.api_key) as client:
            job = client.jobs.get(job_id)
            st.progress(job.counts.ended / max(1, job.counts.total), _said(job))
            if job.warning:
                st.info(plain(job.warning))
            _show_buttons(visitor, job)
            if job.state.has_ended:
                _show_pictures(visitor, client, job)
    except Text2ImageError as error:
        notice = notice_of(error, has_key=bool(visitor.api_key))
        st.info(notice.text or notice.title)


def _said(job: Job) -> str:
    return f"{_ICONS[job.state]} {job.state.value.capitalize()}: {plain(progress_of(job))}"


def _show_buttons(visitor: Visitor, job: Job) -> None:
    shown = {
        "pause": (not job.state.has_ended and job.state is not JobState.PAUSED, "Pause", "pause"),
        "resume": (job.state is JobState.PAUSED, "Resume", "play_arrow"),
        "cancel": (not job.state.has_ended, "Cancel", "close"),
        "retry": (
            job.state is JobState.COMPLETED and job.counts.failed > 0,
            "Retry failed",
            "refresh",
        ),
        "delete": (job.state.has_ended, "Delete", "delete"),
    }
    with st.container(horizontal=True, gap="xsmall"):
        for name, (fits, label, icon) in shown.items():
            if fits:
                st.button(
                    label,
                    key=f"job_{name}",
                    icon=f":material/{icon}:",
                    on_click=_do,
                    args=(visitor, name, job.id),
                )


def _do(visitor: Visitor, name: str, job_id: str) -> None:
    """To be called in a callback; what cannot be done any more the next look at the job tells."""
    try:
        with visitor.server.connect(visitor.api_key) as client:
            getattr(client.jobs, name)(job_id)
    except Text2ImageError as error:
        visitor.refused_batch = notice_of(error)


def _show_pictures(visitor: Visitor, client: Client, job: Job) -> None:
    """The sheet of an ended job, and all its pictures as a file."""
    if not job.counts.succeeded:
        for item in client.jobs.results(job.id, limit=1).items:
            if item.error:
                st.warning(plain(item.error.message))
        return
    if job.bytes > _MOST_BYTES:
        st.info(f"`python -m text2image jobs fetch {job.id} --out folder` saves all pictures.")
    else:
        st.download_button(
            "Download all",
            lambda: _packed(visitor, job),
            f"{slug(job.name) or job.id}.zip",
            "application/zip",
            key="job_zip",
            icon=":material/download:",
            on_click="ignore",
        )
    few = job.counts.total <= _PLAIN_SHEET
    if few or (
        job.counts.total <= MAX_CELLS and st.toggle("Show the contact sheet", key="job_sheet")
    ):
        kept = st.session_state.setdefault("sheets", {})
        made_of = (job.id, job.ended_at, job.counts)
        if made_of not in kept:
            kept.clear()
            kept[made_of] = sheet_of_job(client, job)
        st.image(kept[made_of], width="stretch", alt="All pictures of the job")


def sheet_of_job(client: Client, job: Job) -> bytes:
    """The contact sheet of a job as PNG; what could not be drawn is left grey, and of several pictures one is shown."""
    columns, varied = layout_in(job.metadata)
    across = len(columns)
    items = list(client.jobs.all_results(job.id))
    rows, cells = [], []
    for number, start in enumerate(range(0, len(items), across)):
        some = items[start : start + across]
        prompt = some[0].params.prompt if some[0].params else ""
        rows.append("; ".join(part for part in (prompt, varied[number % len(varied)]) if part))
        files = [
            client.jobs.picture(job.id, each.index) if each.pictures else None for each in some
        ]
        cells.append([*files, *[None] * (across - len(files))])
    return contact_sheet(cells, columns, rows)


def _packed(visitor: Visitor, job: Job) -> bytes:
    with visitor.server.connect(visitor.api_key) as client:
        return zip_of(client, job)


def zip_of(client: Client, job: Job) -> bytes:
    """All pictures of a job, numbered as their requests are; PNG is packed already, so nothing is packed again."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for item in client.jobs.all_results(job.id):
            words = slug(item.params.prompt) if item.params else ""
            for each in item.pictures:
                mark = f"_{each.index + 1}" if len(item.pictures) > 1 else ""
                name = f"{item.index + 1:05d}_{words}{mark}{suffix_of(each.media_type)}"
                archive.writestr(name, client.jobs.picture(job.id, item.index, each.index))
    return packed.getvalue()


def _time(job: Job) -> str:
    return f"{datetime.fromtimestamp(job.created_at, UTC).astimezone():%d %b %H:%M}"
