"""The commands that write the file of API keys.

python -m text2image.keys create NAME    prints a new key, once
python -m text2image.keys list
python -m text2image.keys revoke NAME
"""

from __future__ import annotations

import argparse
import re
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from text2image.core.keys import (
    DEFAULT_PRIORITY,
    KEY_NAME,
    NO_LIMIT,
    PREFIX,
    ApiKey,
    KeysError,
    KeysFile,
    Scope,
    hash_of,
    own_limits,
)
from text2image.core.settings import get_settings


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
    if not re.fullmatch(KEY_NAME, text):
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
        return ";".join(map(str, own_limits(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
