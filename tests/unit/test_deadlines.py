"""However long a client is ready to wait, a request has an end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from text2image.api.v1_grpc import timeout_of
from text2image.rpc import Context
from text2image.settings import LONGEST_NAMED_TIMEOUT, Settings


@pytest.mark.parametrize("default", [10.0, 2 * LONGEST_NAMED_TIMEOUT])
@pytest.mark.parametrize("remaining", [None, -1.0, 0.5, 1e9])
def test_the_deadline_of_a_grpc_client_is_kept_within_the_servers_bounds(
    remaining: float | None, default: float
) -> None:
    context = cast(Context, SimpleNamespace(time_remaining=lambda: remaining))
    longest = max(default, LONGEST_NAMED_TIMEOUT)
    expected = {None: default, -1.0: 0.0, 0.5: 0.5, 1e9: longest}[remaining]
    assert timeout_of(context, Settings(request_timeout=default)) == expected
