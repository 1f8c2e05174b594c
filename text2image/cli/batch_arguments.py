"""The command line of a batch: where its requests stand, what is varied for all of them, and where they go."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from text2image.cli.arguments import Parser
from text2image.core import tables
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.tables import Axis, Form, Row

_Read = TypeVar("_Read")

CONCURRENCY = 8
MAX_CONCURRENCY = 256
# What rows may say themselves, as options for those that do not.
_PLAIN = (
    "size",
    "width",
    "height",
    "steps",
    "guidance_scale",
    "negative_prompt",
    "sampler",
    "schedule",
    "quality",
    "model",
    "seed",
    "n",
    "clip_skip",
    "image",
    "strength",
    "mask",
    "hires_scale",
    "hires_strength",
    "hires_steps",
    "hires_upscaler",
)
_LISTS = {"lora": "loras", "control": "controls"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """What the command line asks for: all requests, and what was varied to make them of the file's.

    `timeout` is in seconds, of one request.
    """

    rows: Sequence[Row]
    axes: Sequence[Axis]
    out: Path
    sheet: bool
    server: str | None
    local: bool
    job: bool
    api_key: str | None = field(repr=False)
    timeout: float | None
    concurrency: int
    quiet: bool


def parse(arguments: Sequence[str]) -> BatchOptions:
    """The options of a command line, with all requests read and combined.

    Raises:
        SystemExit: help was asked for, or an option is unknown or wrong; the status says which.
        InvalidRequest: a line is no request.
        OSError: the file cannot be read.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.timeout is not None and not (math.isfinite(given.timeout) and given.timeout > 0):
        parser.error(f"--timeout is {given.timeout}; it must be a number of seconds above 0")
    if not 1 <= given.concurrency <= MAX_CONCURRENCY:
        parser.error(f"--concurrency must be between 1 and {MAX_CONCURRENCY}")
    if given.job and (given.local or given.timeout is not None):
        other = "--local" if given.local else "--timeout"
        parser.error(f"--job and {other} exclude each other: a server draws it when it has room")
    text = _read(given.prompts)
    form = Form(given.format) if given.format else tables.form_of(given.prompts, text)
    axes = _axes(given)
    return BatchOptions(
        rows=tables.crossed(tables.read_rows(text, form), axes, _fields(given)),
        axes=axes,
        out=given.out.expanduser(),
        sheet=given.sheet,
        server=given.server,
        local=given.local,
        job=given.job,
        api_key=given.api_key,
        timeout=given.timeout,
        concurrency=given.concurrency,
        quiet=given.quiet,
    )


def _axes(given: argparse.Namespace) -> list[Axis]:
    named = [given.models, given.seeds, *(given.vary or ())]
    axes = [axis for axis in named if axis is not None]
    names = [axis.name for axis in axes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidRequest(FieldViolation("--vary", f"varies {twice[0]} twice"))
    return axes


def _fields(given: argparse.Namespace) -> dict[str, Any]:
    """What all rows have that do not say it themselves."""
    fields: dict[str, Any] = {}
    for name in _PLAIN:
        fields |= getattr(given, name) or {}
    for option, name in _LISTS.items():
        for each in getattr(given, option) or ():
            fields.setdefault(name, []).extend(each[name])
    return fields


def _read(path: str) -> str:
    content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(FieldViolation("prompts", f"{path} is no text in UTF-8")) from None


def _told(read: Callable[..., _Read], *given: Any) -> _Read:
    """What is read of an option; argparse shows people the texts of its own errors alone."""
    try:
        return read(*given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _axis(name: str, text: str) -> Axis:
    return _told(tables.parse_axis, name, text.split(","))


def _varied(text: str) -> Axis:
    name, equals, values = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be as in steps=10,20")
    return _axis(name.strip().lower(), values)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m text2image batch",
        description="Draws many requests to a folder and prints the path of each picture. The running server draws "
        "them if there is one, else this process does. The same command once more goes on where it was ended: "
        "manifest.jsonl in the folder tells what is drawn.",
        epilog="Exit status: 0 if all are drawn, 1 if some failed, 2 for a wrong option or line, 130 after Ctrl-C.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("the requests")
    what.add_argument(
        "prompts",
        metavar="FILE",
        help="a table (CSV) whose columns are fields of requests, JSON by line, or one prompt a line; - is standard "
        "input",
    )
    what.add_argument(
        "--format", choices=list(Form), help="how it is written, if its name does not say it"
    )
    what.add_argument(
        "--seeds",
        type=partial(_told, tables.parse_seeds),
        metavar="SEEDS",
        help="each row with each of these, as in 1-4,10",
    )
    what.add_argument(
        "--models",
        type=partial(_axis, "model"),
        metavar="NAMES",
        help="each row with each of these models, as in small,large",
    )
    what.add_argument(
        "--vary",
        type=_varied,
        action="append",
        metavar="FIELD=VALUES",
        help="each row with each value of a field, as in steps=10,20 or loras=ink:0.4,ink:0.8; may be given again",
    )
    fields = parser.add_argument_group("fields of rows that do not name them")
    for name in _PLAIN:
        option = "-n" if name == "n" else f"--{name.replace('_', '-')}"
        fields.add_argument(
            option, dest=name, type=partial(_told, tables.typed, name), metavar="VALUE"
        )
    for option, name in _LISTS.items():
        fields.add_argument(
            f"--{option}", type=partial(_told, tables.typed, name), action="append", metavar="VALUE"
        )
    _add_doing(parser)
    return parser


def _add_doing(parser: argparse.ArgumentParser) -> None:
    doing = parser.add_argument_group("where they are drawn, and where they go")
    doing.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the pictures")
    doing.add_argument(
        "--sheet",
        action="store_true",
        help="put all pictures side by side into sheet.png there too, what is varied last from left to right",
    )
    doing.add_argument("--server", metavar="ADDRESS", help="host and port of a server's gRPC")
    doing.add_argument(
        "--local", action="store_true", help="draw in this process, never on a server"
    )
    doing.add_argument(
        "--job",
        action="store_true",
        help="hand all to the server, which draws them in the background and keeps them over restarts; the same "
        "command waits for the rest and fetches it, and `python -m text2image jobs` lists, pauses and ends them",
    )
    doing.add_argument(
        "--api-key", metavar="KEY", help="key that the server asks for; T2I_API_KEY hides it better"
    )
    doing.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="that each request may take"
    )
    doing.add_argument(
        "--concurrency",
        type=int,
        default=CONCURRENCY,
        metavar="N",
        help=f"requests that are under way at once ({CONCURRENCY})",
    )
    doing.add_argument("--quiet", action="store_true", help="say nothing but paths and errors")
