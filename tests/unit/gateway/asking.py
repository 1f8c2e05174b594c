"""A request as a transport gives it to the gateway."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from text2image.core.formats import PNG, Encoding
from text2image.core.messages import RequestParams, Share, StreamOptions
from text2image.gateway.auth import Caller
from text2image.gateway.context import RequestContext

CALLER = Caller("address:127.0.0.1", Share("address:127.0.0.1"))
PARAMS = RequestParams(prompt="a fox, snow", n=2, seed=7)


def asking(
    *,
    title: str = "snow a fox",
    caller: Caller = CALLER,
    options: StreamOptions | None = None,
    encoding: Encoding = PNG,
    **changes: Any,
) -> RequestContext:
    """A request for two pictures, or with other params."""
    return RequestContext(
        caller=caller,
        params=replace(PARAMS, **changes),
        title=title,
        timeout=30,
        options=options or StreamOptions(),
        encoding=encoding,
    )
