"""The dialect of A1111's web UI, `/sdapi/v1/`, as far as it draws pictures and tells of them.

`messages.py` has what it is sent, `overrides.py` and `refusals.py` what of that is not done here, `routes.py` the
routes that draw, and `lists.py`, `options.py` and `extras.py` the others. `state.py` is what it remembers in between.
"""

from __future__ import annotations

from text2image.api.a1111 import extras, lists, options, routes
from text2image.api.a1111.answers import ErrorResponse, error_response
from text2image.api.a1111.state import State

__all__ = ["ROUTERS", "ErrorResponse", "State", "error_response", "speaks_at"]

ROUTERS = (routes.router, lists.router, options.router, extras.router)


def speaks_at(path: str) -> bool:
    """Whether this dialect is spoken at a path."""
    return path.startswith("/sdapi/") or path == routes.PROGRESS
