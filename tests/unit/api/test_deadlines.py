"""However long a client is ready to wait, a request has an end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from starlette.requests import Request

from text2image.api import asgi
from text2image.api.v1_grpc import timeout_of
from text2image.core.errors import InvalidRequest
from text2image.core.settings import LONGEST_NAMED_TIMEOUT, Settings
from text2image.net.rpc import Context


@pytest.mark.parametrize("default", [10.0, 2 * LONGEST_NAMED_TIMEOUT])
@pytest.mark.parametrize("remaining", [None, -1.0, 0.5, 1e9])
def test_the_deadline_of_a_grpc_client_is_kept_within_the_servers_bounds(
    remaining: float | None, default: float
) -> None:
    context = cast(Context, SimpleNamespace(time_remaining=lambda: remaining))
    longest = max(default, LONGEST_NAMED_TIMEOUT)
    expected = {None: default, -1.0: 0.0, 0.5: 0.5, 1e9: longest}[remaining]
    assert timeout_of(context, Settings(request_timeout=default)) == expected


def http(timeout: str) -> Request:
    headers = [(asgi.TIMEOUT_HEADER.lower().encode(), timeout.encode())]
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize("timeout", ["10", "10.0", ".5", "1e1"])
def test_http_takes_a_deadline_as_a_number_of_seconds(timeout: str) -> None:
    assert asgi.timeout_of(http(timeout)) == float(timeout)


@pytest.mark.parametrize("timeout", ["1_0", "", "soon", "nan", "inf", "0", "-1"])
def test_http_takes_nothing_else_for_a_deadline(timeout: str) -> None:
    with pytest.raises(InvalidRequest, match="must be a number of seconds"):
        asgi.timeout_of(http(timeout))
