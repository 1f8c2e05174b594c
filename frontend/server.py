"""The server that the page draws with: where it is, what it serves, and how it is."""

from __future__ import annotations

from dataclasses import dataclass

from text2image.client import Client
from text2image.core.errors import DeadlineExceeded, Unavailable
from text2image.core.messages import ModelInfo, State, Status
from text2image.core.settings import Settings

# What a visitor waits at most for an answer that takes milliseconds, in seconds.
_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Server:
    """Host and port of its gRPC. Who vouches for it, and the page's own key if it has one, the client finds itself."""

    address: str

    @classmethod
    def of(cls, settings: Settings) -> Server:
        return cls(settings.server_address)

    def connect(self, api_key: str | None = None) -> Client:
        """A connection for one visitor's key, or with the page's own.

        Raises:
            ValueError: that is no key, or the environment names a certificate that is none.
            OSError: the environment names a certificate that cannot be read.
        """
        return Client(self.address, api_key=api_key)

    def models(self, api_key: str | None = None) -> list[ModelInfo]:
        """What it serves, the default model first.

        Raises:
            Text2ImageError: it does not say.
        """
        with self.connect(api_key) as client:
            return client.models(timeout=_PATIENCE)

    def status(self, api_key: str | None = None) -> Status | None:
        """How it is, or None if it does not answer."""
        with self.connect(api_key) as client:
            try:
                return client.status(timeout=_PATIENCE)
            except (DeadlineExceeded, Unavailable):
                return None

    def is_ready(self, api_key: str | None = None) -> bool:
        status = self.status(api_key)
        return status is not None and status.state is State.READY
