"""API keys: the file that holds their hashes.

A key is 256 random bits, so its plain SHA-256 tells nothing of it and costs a request nothing. The file is replaced
whole and by one writer at a time; a server that reads it follows within one request.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from text2image.core.limits import Allowance, RateLimit, parse_limits

PREFIX = "t2i_"
# Longer than any key, and short enough to hash for whoever shows one.
MAX_KEY_LENGTH = 256
DEFAULT_PRIORITY = 10
NO_LIMIT = "none"
KEY_NAME = r"[A-Za-z0-9._-]{1,64}"


class Scope(StrEnum):
    """What a key may do: draw pictures and ask about the model, or see the metrics."""

    GENERATE = "generate"
    ADMIN = "admin"


class KeysError(Exception):
    """The keys file cannot be used as it is; the text is one line that says why."""


class ApiKey(BaseModel):
    """One key as the file holds it; where `rate_limit` or `max_concurrent` are set, the server's own do not count."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(pattern=f"^{KEY_NAME}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    scopes: tuple[Scope, ...] = (Scope.GENERATE,)
    priority: int = Field(DEFAULT_PRIORITY, ge=1, le=100)
    rate_limit: str | None = None
    max_concurrent: Annotated[int, Field(ge=1)] | Literal["none"] | None = None
    created: AwareDatetime
    expires: AwareDatetime | None = None

    @pydantic.field_validator("rate_limit")
    @classmethod
    def _is_a_limit(cls, value: str | None) -> str | None:
        if value not in (None, NO_LIMIT):
            own_limits(value)
        return value

    def allowance(self, everybody: Allowance) -> Allowance:
        """This key's limits, where it has any, and else everybody's."""
        limits, cap = everybody.limits, everybody.max_concurrent
        if self.rate_limit is not None:
            limits = () if self.rate_limit == NO_LIMIT else parse_limits(self.rate_limit)
        if self.max_concurrent is not None:
            cap = None if self.max_concurrent == NO_LIMIT else int(self.max_concurrent)
        return Allowance(limits, cap)

    def has_expired(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now


class Keys(BaseModel):
    """The content of a keys file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    keys: tuple[ApiKey, ...] = ()

    @pydantic.model_validator(mode="after")
    def _are_distinct(self) -> Keys:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}")
        return self


def own_limits(text: str) -> tuple[RateLimit, ...]:
    """The limits that a key has of its own; nothing there would look as if it had the server's."""
    if not text:
        raise ValueError(f"an empty limit is none; write {NO_LIMIT} for a key without limits")
    return parse_limits(text)


def hash_of(key: str) -> str:
    """How a key stands in the file."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeysFile:
    """A keys file by its path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stamp(self) -> tuple[int, ...]:
        """Changes when the file is written, or another takes its place.

        Raises:
            OSError: it is not there.
        """
        found = self.path.stat()
        # The second time cannot be set back by whoever writes.
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino

    def read(self) -> Keys:
        """The keys in the file.

        Raises:
            KeysError: there is none, or not one that holds keys.
        """
        try:
            text = self.path.read_bytes()
        except OSError as error:
            raise self._error(error.strerror or type(error).__name__) from None
        try:
            return Keys.model_validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise self._error(f"{where}: {first['msg']}" if where else first["msg"]) from None

    def add(self, key: ApiKey) -> None:
        """Adds a key to the file, which is created if it is not there.

        Raises:
            KeysError: the name is taken, or the file cannot be read or written.
        """
        with self._writing() as keys:
            if any(known.name == key.name for known in keys):
                raise KeysError(f"there is a key called {key.name} already; revoke it first")
            keys.append(key)

    def remove(self, name: str) -> None:
        """Takes the key of that name out of the file.

        Raises:
            KeysError: there is none, or the file cannot be read or written.
        """
        with self._writing() as keys:
            left = [key for key in keys if key.name != name]
            if len(left) == len(keys):
                raise KeysError(f"there is no key called {name} in {self.path}")
            keys[:] = left

    @contextlib.contextmanager
    def _writing(self) -> Iterator[list[ApiKey]]:
        """The keys to be changed by the block, which nobody else changes meanwhile."""
        try:
            with Path(f"{self.path}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                keys = list(self.read().keys) if self.path.exists() else []
                yield keys
                self._replace(Keys(keys=tuple(keys)))
        except OSError as error:
            raise self._error(error.strerror or type(error).__name__) from None

    def _replace(self, keys: Keys) -> None:
        """Writes the file anew: whoever reads it sees the old keys or the new ones, whatever happens meanwhile."""
        # What a link points to, not the link.
        target = self.path.resolve()
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        draft = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(keys.model_dump_json(indent=2, exclude_none=True).encode() + b"\n")
                _keep_access(file.fileno(), target)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _error(self, reason: str) -> KeysError:
        return KeysError(f"keys file {self.path}: {' '.join(reason.split())}")


def _keep_access(descriptor: int, former: Path) -> None:
    """Lets those read the new file who could read the former; one without a former is its owner's alone."""
    with contextlib.suppress(FileNotFoundError):
        found = former.stat()
        os.fchmod(descriptor, found.st_mode & 0o777)
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, found.st_uid, found.st_gid)
