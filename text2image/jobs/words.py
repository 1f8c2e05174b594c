"""Jobs for people: how far one is, and what its pictures' files are called by."""

from __future__ import annotations

import time

from text2image.core.formats import FileFormat
from text2image.jobs.records import Job


def progress_of(job: Job) -> str:
    """How far a job is, about how much longer it takes, and what it waits for."""
    failed = f", {job.counts.failed} failed" if job.counts.failed else ""
    waits = f", {job.waiting_for}" if job.waiting_for else ""
    left = ""
    if job.predicted_end:
        seconds = max(0, round(job.predicted_end - time.time()))
        left = f", about {seconds // 60}:{seconds % 60:02d} left"
    return f"{job.counts.ended} of {job.counts.total}{failed}{left}{waits}"


def suffix_of(media_type: str) -> str:
    """Of a picture's file; later versions of a server may have forms that are unknown here."""
    try:
        return FileFormat(media_type.removeprefix("image/")).suffix
    except ValueError:
        return ".bin"
