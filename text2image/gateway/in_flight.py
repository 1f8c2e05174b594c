"""Requests that are named by their callers, so that they can be cancelled from another call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from text2image.core.errors import Cancelled, FieldViolation, InvalidRequest
from text2image.gateway.auth import Caller
from text2image.gateway.context import RequestContext

_ID = re.compile(r"[!-~]{1,64}")


class InFlight:
    """By caller and id, so that nobody can cancel, or ask after, what is another's."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str], RequestContext] = {}

    @contextmanager
    def named(self, context: RequestContext, request_id: str) -> Iterator[None]:
        """Has a request answer to an id while the block runs; without one does nothing.

        Raises:
            InvalidRequest: it is no id, or another request of this caller has it.
        """
        if not request_id:
            yield
            return
        key = _key(context.caller, request_id)
        if key in self._requests:
            reason = "is that of another request in flight; choose a new one for each"
            raise InvalidRequest(FieldViolation("request_id", reason))
        self._requests[key] = context
        try:
            yield
        finally:
            del self._requests[key]

    def cancel(self, caller: Caller, request_id: str) -> bool:
        """Ends a request of this caller's as cancelled; whether there was one.

        Raises:
            InvalidRequest: it is no id.
        """
        context = self._requests.get(_key(caller, request_id))
        if context is None:
            return False
        context.end(Cancelled("the request was cancelled by its id"))
        return True


def _key(caller: Caller, request_id: str) -> tuple[str, str]:
    if not _ID.fullmatch(request_id):
        reason = "must be 1 to 64 visible ASCII characters without spaces"
        raise InvalidRequest(FieldViolation("request_id", reason))
    return caller.name, request_id
