"""Who is asking, and whether they may."""

from __future__ import annotations

import base64
import hmac
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import NoReturn, Protocol

from prometheus_client import Counter

from text2image.core.addresses import Network, caller_address, is_loopback, parse_networks
from text2image.core.errors import PermissionDenied, Text2ImageError, Unauthenticated
from text2image.core.keys import MAX_KEY_LENGTH, ApiKey, KeysError, KeysFile, Scope, hash_of
from text2image.core.limits import Allowance, parse_limits
from text2image.core.messages import Share
from text2image.core.settings import Settings

logger = logging.getLogger(__name__)

# Callers without keys that need not be told apart again.
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a transport knows of its client: whom it is connected to, what that says of whom it stands for, and the key.

    `forwarded_for` is the client's `X-Forwarded-For`, which it may have made up.
    """

    address: str = ""
    forwarded_for: str = ""
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request counts as, an API key's owner or an address where no keys are asked for, and how much that may.

    `name` is `key:` or `address:` and what it is called by, so that no key can be taken for an address.
    """

    name: str
    share: Share
    allowance: Allowance = field(default_factory=Allowance)


class AuthMetrics(Protocol):
    """Where failures are counted, by why."""

    auth_failures: Counter


class KeyRing:
    """The keys of a file, as it is now; a file that cannot be used changes nothing, and is told of once."""

    def __init__(self, file: KeysFile) -> None:
        """Reads the file.

        Raises:
            KeysError: it cannot be used.
        """
        self._file = file
        self._told = ""
        self._stamp = self._look()
        self._by_hash = self._read()

    def find(self, shown: str) -> ApiKey | None:
        """The key that a client shows, if it is one. Takes as long for any that is none."""
        self._follow()
        if len(shown) > MAX_KEY_LENGTH:
            return None
        # How long the table is searched tells of the hash alone, which leads nobody to a key.
        shown_hash = hash_of(shown)
        found = self._by_hash.get(shown_hash)
        return found if found and hmac.compare_digest(found.sha256, shown_hash) else None

    def named(self, name: str) -> ApiKey | None:
        """The key that is called so; looks through all of them."""
        self._follow()
        return next((key for key in self._by_hash.values() if key.name == name), None)

    def _follow(self) -> None:
        # Looking costs a microsecond, so a key that is revoked is of no use from then on.
        stamp = self._look()
        if stamp == self._stamp:
            return
        try:
            self._by_hash = self._read()
        except KeysError as error:
            # Read again at the next request: what kept it from being read may pass, and leave the file as it is.
            if str(error) != self._told:
                self._told = str(error)
                logger.error("%s; going on with the keys from before", error)
        else:
            self._stamp, self._told = stamp, ""
            logger.info("%s now holds %d keys", self._file.path, len(self._by_hash))

    def _look(self) -> tuple[int, ...] | None:
        try:
            return self._file.stamp()
        except OSError:
            return None

    def _read(self) -> dict[str, ApiKey]:
        return {key.sha256: key for key in self._file.read().keys}


def key_in(headers: Mapping[str, str]) -> str | None:
    """The API key in a request's headers or metadata, by lower-case names.

    A bearer token comes before `x-api-key`, and that before a password, which may be for a proxy on the way.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    password = _password_in(token) if scheme.lower() == "basic" else ""
    return bearer or headers.get("x-api-key", "").strip() or password or None


def _password_in(token: str) -> str:
    """The password of `Authorization: Basic`, whatever the user is called; empty if there is none."""
    try:
        return base64.b64decode(token.strip()).decode().partition(":")[2].strip()
    except ValueError:
        return ""


class Authenticator:
    """Tells callers by their credentials. Without a key ring everybody may do everything, and counts by address."""

    def __init__(
        self,
        metrics: AuthMetrics,
        *,
        keys: KeyRing | None = None,
        everybody: Allowance | None = None,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self._metrics = metrics
        self._keys = keys
        self._everybody = everybody or Allowance()
        self._trusted_proxies = trusted_proxies
        # Whoever calls once calls again, and a full server has no time to parse addresses.
        self._stranger = lru_cache(_REMEMBERED)(self._by_address)

    def caller(self, credentials: Credentials, scope: Scope) -> Caller:
        """Whom a request counts as that asks for what `scope` covers.

        Raises:
            Unauthenticated: no key is shown where one is asked for, or one that is worth nothing.
            PermissionDenied: the key is for other things.
        """
        if self._keys is None:
            said = credentials.forwarded_for if self._trusted_proxies else ""
            return self._stranger(credentials.address, said)
        if not credentials.api_key:
            self._refuse("missing", Unauthenticated(_HOW_TO_SHOW))
        key = self._keys.find(credentials.api_key)
        if key is None:
            self._refuse("unknown", Unauthenticated("this API key is unknown or was revoked"))
        if key.has_expired(datetime.now(UTC)):
            self._refuse("expired", Unauthenticated(f"the API key of {key.name} has expired"))
        if scope not in key.scopes:
            has = " and ".join(key.scopes) or "nothing"
            message = f"this needs a key with the scope {scope}; that of {key.name} has {has}"
            self._refuse("scope", PermissionDenied(message))
        name = f"key:{key.name}"
        return Caller(name, Share(name, key.priority), key.allowance(self._everybody))

    def named(self, name: str) -> Caller:
        """A caller by the `name` that it had, with what its key allows now.

        Raises:
            Unauthenticated: the key was removed, or it had none and keys are asked for now.
            PermissionDenied: the key has expired, or is no longer for pictures.
        """
        if self._keys is None:
            return Caller(name, Share(name), self._everybody)
        key = self._keys.named(name.removeprefix("key:")) if name.startswith("key:") else None
        if key is None:
            raise Unauthenticated(f"the API key of {name.removeprefix('key:')} was revoked")
        if key.has_expired(datetime.now(UTC)):
            raise PermissionDenied(f"the API key of {key.name} has expired")
        if Scope.GENERATE not in key.scopes:
            raise PermissionDenied(f"the API key of {key.name} is not for pictures any more")
        return Caller(name, Share(name, key.priority), key.allowance(self._everybody))

    def _by_address(self, address: str, forwarded_for: str) -> Caller:
        name = "address:" + caller_address(address, forwarded_for, self._trusted_proxies)
        return Caller(name, Share(name), self._everybody)

    def _refuse(self, why: str, error: Text2ImageError) -> NoReturn:
        self._metrics.auth_failures.labels(why).inc()
        raise error


_HOW_TO_SHOW = (
    "this server asks for an API key; send it as `Authorization: Bearer KEY`, as `X-API-Key: KEY`, or as the password "
    "of `Authorization: Basic`"
)


def authenticator_of(settings: Settings, metrics: AuthMetrics) -> Authenticator:
    """The authenticator that the settings ask for.

    Raises:
        KeysError: the keys file cannot be used.
    """
    return Authenticator(
        metrics,
        keys=KeyRing(KeysFile(settings.keys_file)) if settings.keys_file else None,
        everybody=Allowance(parse_limits(settings.rate_limit or ""), settings.max_concurrent),
        trusted_proxies=parse_networks(settings.trusted_proxies or ""),
    )


def require_keys(settings: Settings) -> None:
    """Does nothing if there is no keys file, or one that can be used.

    Raises:
        SystemExit: with one line that says what is wrong with it.
    """
    if settings.keys_file:
        try:
            KeyRing(KeysFile(settings.keys_file))
        except KeysError as error:
            raise SystemExit(
                f"text2image: {error}; `python -m text2image.keys create NAME` makes a key there"
            ) from None


def openness(settings: Settings, *hosts: str) -> str | None:
    """A warning where strangers may do anything on one of the hosts that are listened on, or read keys, else None."""
    open_hosts = sorted({host for host in hosts if not is_loopback(host)})
    if not open_hosts:
        return None
    listening = f"WARNING: listening on {', '.join(open_hosts)}"
    if not (settings.keys_file or settings.tls_client_ca):
        return (
            f"{listening} without API keys: whoever reaches this machine may draw pictures and read the metrics. "
            "Set T2I_KEYS_FILE=keys.json, make a key with `python -m text2image.keys create NAME`, and start again; "
            "or serve on HOST=127.0.0.1 alone."
        )
    # A proxy that is named is taken to be the one that serves TLS.
    if not (settings.tls_cert or settings.trusted_proxies):
        return (
            f"{listening} without TLS: API keys can be read by whoever is between a client and this machine. "
            "Set T2I_TLS_CERT and T2I_TLS_KEY; or let a proxy serve TLS, and name it in T2I_TRUSTED_PROXIES."
        )
    return None
