"""Who is asking, and whether they may."""

from __future__ import annotations

from dataclasses import dataclass, field

from text2image.messages import Share


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a transport knows of its client: the address it calls from, and the API key that it shows."""

    address: str = ""
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom requests count as: an API key's owner, or an address where no keys are asked for."""

    name: str
    share: Share


class Authenticator:
    """Tells callers by their credentials."""

    def caller(self, credentials: Credentials) -> Caller:
        """Whom a request counts as."""
        return Caller(credentials.address, Share(credentials.address))
