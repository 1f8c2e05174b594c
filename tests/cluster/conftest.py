"""One cluster for all tests, each of which leaves it whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.hosts import NoHosts, network

RUNNERS = ("runner0", "runner1", "runner2")
GATEWAYS = ("gateway0", "gateway1")


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three runners and two gateways behind a proxy, each on a host of its own."""
    try:
        with network([*RUNNERS, *GATEWAYS]) as hosts:
            runners, gateways = hosts[: len(RUNNERS)], hosts[len(RUNNERS) :]
            cluster = Cluster(tmp_path_factory.mktemp("cluster"), runners, gateways)
            with cluster.serving():
                yield cluster
    except NoHosts as reason:
        warnings.warn(f"NO CLUSTER IS TESTED: {reason}", stacklevel=1)
        pytest.skip(f"network namespaces are needed, and root to make them: {reason}")
