"""Durable jobs over HTTP, `/v1/jobs`.

`requests.py` has what is submitted, `uploads.py` how it is read, `results.py` the downloads, `events.py` the progress,
and `routes.py` the routes.
"""

from __future__ import annotations

from text2image.api.jobs.routes import router
from text2image.jobs.views import PREFIX

__all__ = ["router", "speaks_at"]


def speaks_at(path: str) -> bool:
    """Whether this dialect is spoken at a path."""
    return path == PREFIX or path.startswith(PREFIX + "/")
