"""API keys: the file that holds their hashes, and the commands that write it.

    python -m text2image.keys create NAME    prints a new key, once
    python -m text2image.keys list
    python -m text2image.keys revoke NAME

A key is 256 random bits, so its plain SHA-256 tells nothing of it and costs a request nothing. The file is replaced
whole and by one writer at a time; a server that reads it follows within one request.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from text2image.limits import Allowance, RateLimit, parse_limits
from text2image.settings import get_settings

PREFIX = "t2i_"
# Longer than any key, and short enough to hash for whoever shows one.
MAX_KEY_LENGTH = 256
DEFAULT_PRIORITY = 10
NO_LIMIT = "none"
_NAME = r"[A-Za-z0-9._-]{1,64}"


class Scope(StrEnum):
    """What a key may do: draw pictures and ask about the model, or see the metrics."""

    GENERATE = "generate"
    ADMIN = "admin"


class KeysError(Exception):
    """The keys file cannot be used as it is; the text is one line that says why."""


class ApiKey(BaseModel):
    """One key as the file holds it; where `rate_limit` or `max_concurrent` are set, the server's own do not count."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(pattern=f"^{_NAME}$")
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
            _own_limits(value)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """The commands.

    Raises:
        SystemExit: with one line where something is wrong.
    """
    options = _parser().parse_args(arguments)
    path = options.file or get_settings().keys_file
    if path is None:
        raise SystemExit("text2image: name the keys file, by --file or by T2I_KEYS_FILE")
    try:
        options.command(KeysFile(path), options)
    except KeysError as error:
        raise SystemExit(f"text2image: {error}") from None


def _create(file: KeysFile, options: argparse.Namespace) -> None:
    key = PREFIX + secrets.token_urlsafe(32)
    scopes = dict.fromkeys(Scope(scope) for scope in options.scope or (Scope.GENERATE,))
    file.add(
        ApiKey(
            name=options.name,
            sha256=hash_of(key),
            scopes=tuple(scopes),
            priority=options.priority,
            rate_limit=options.rate_limit,
            max_concurrent=options.concurrency,
            created=datetime.now(UTC).replace(microsecond=0),
            expires=options.expires,
        )
    )
    print(
        f"The key of {options.name}, for {' and '.join(scopes)}. It is shown this once; "
        f"{file.path} holds only its hash.\nClients send it as `Authorization: Bearer KEY`.",
        file=sys.stderr,
    )
    print(key)


def _list(file: KeysFile, options: argparse.Namespace) -> None:
    rows = [("NAME", "SCOPES", "PRIORITY", "RATE LIMIT", "AT ONCE", "CREATED", "EXPIRES")]
    now = datetime.now(UTC)
    for key in file.read().keys:
        expires = f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never"
        rows.append(
            (
                key.name,
                ",".join(key.scopes),
                str(key.priority),
                key.rate_limit or "default",
                str(key.max_concurrent or "default"),
                f"{key.created:%Y-%m-%d}",
                f"{expires} (over)" if key.has_expired(now) else expires,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _revoke(file: KeysFile, options: argparse.Namespace) -> None:
    file.remove(options.name)
    print(f"The key of {options.name} is worth nothing any more.", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m text2image.keys", description="API keys of a Text2Image server."
    )
    # Before the command or after it.
    anywhere = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for place in (parser, anywhere):
        place.add_argument("--file", type=Path, help="the keys file; T2I_KEYS_FILE if not named")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    create = commands.add_parser(
        "create", parents=[anywhere], help="make a key; it alone goes to standard output"
    )
    create.set_defaults(command=_create)
    create.add_argument("name", type=_name, help="whose it is: letters, digits and ._-")
    create.add_argument(
        "--scope",
        action="append",
        choices=[scope.value for scope in Scope],
        help="what it may do, may be given twice; generate if not named",
    )
    create.add_argument(
        "--priority",
        type=_priority,
        default=DEFAULT_PRIORITY,
        help="its weight against other keys' when the server is busy, 1 to 100; %(default)s if not named",
    )
    create.add_argument(
        "--rate-limit",
        type=_rate_limit,
        help="its own limit in megapixel-steps as `600/minute;5000/day`, or none",
    )
    create.add_argument(
        "--concurrency", type=_concurrency, help="how many of its requests at once, or none"
    )
    create.add_argument(
        "--expires", type=_expiry, help="when it ends: a date as 2027-01-31, or days as 90d"
    )

    show = commands.add_parser(
        "list", parents=[anywhere], help="show all keys, without what they are"
    )
    show.set_defaults(command=_list)

    revoke = commands.add_parser("revoke", parents=[anywhere], help="end a key")
    revoke.set_defaults(command=_revoke)
    revoke.add_argument("name", help="whose it is")
    return parser


def _name(text: str) -> str:
    if not re.fullmatch(_NAME, text):
        raise argparse.ArgumentTypeError("1 to 64 letters, digits, and ._-")
    return text


def _priority(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 100):
        raise argparse.ArgumentTypeError("a number from 1 to 100")
    return int(text)


def _rate_limit(text: str) -> str:
    if text == NO_LIMIT:
        return text
    try:
        return ";".join(map(str, _own_limits(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _own_limits(text: str) -> tuple[RateLimit, ...]:
    """The limits that a key has of its own; nothing there would look as if it had the server's."""
    if not text:
        raise ValueError(f"an empty limit is none; write {NO_LIMIT} for a key without limits")
    return parse_limits(text)


def _concurrency(text: str) -> int | str:
    if text != NO_LIMIT and not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError("a number from 1 on, or none")
    return text if text == NO_LIMIT else int(text)


def _expiry(text: str) -> datetime:
    now = datetime.now(UTC).replace(microsecond=0)
    days = re.fullmatch(r"(\d{1,5})d", text)
    try:
        expires = now + timedelta(int(days[1])) if days else datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("a date as 2027-01-31, or days as 90d") from None
    expires = expires if expires.tzinfo else expires.replace(tzinfo=UTC)
    if expires <= now:
        raise argparse.ArgumentTypeError(f"{text} is past")
    return expires


if __name__ == "__main__":
    main()
