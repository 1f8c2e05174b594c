"""What a server did before a fault, and whether it does the same again."""

from __future__ import annotations

import httpx
import psutil

from tests.e2e.harness import Server, eventually
from tests.e2e.test_pictures import assert_same
from tests.faults.asking import draw, draw_by_grpc


class Normality:
    """A server with all its processes at work, and a picture that it drew then."""

    def __init__(self, server: Server, *, runners: int = 1, gateways: int = 1) -> None:
        self.server = server
        self._runners, self._gateways = runners, gateways
        eventually(self._is_complete, "all processes are at work")
        self._picture = draw(server, 1, steps=4)

    def returns(self) -> None:
        """Waits until every process takes requests, and checks that the picture is the same as before."""
        eventually(self._is_complete, "all processes are at work again")
        for ask in (draw, draw_by_grpc):
            assert_same(ask(self.server, 1, steps=4), self._picture)

    def _is_complete(self) -> bool:
        try:
            ready = self.server.metric("text2image_runners_ready")
        except httpx.TransportError:
            return False
        listening = sum(map(self._listens, self.server.gateways()))
        return (ready, listening) == (self._runners, self._gateways)

    def _listens(self, gateway: psutil.Process) -> bool:
        """Whether a process of the gateway is so far that it takes gRPC, which it does last."""
        return any(
            connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == self.server.grpc_port
            for connection in gateway.net_connections("tcp")
        )
