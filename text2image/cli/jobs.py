"""`python -m text2image jobs`, and `batch --job`: requests that a server draws in the background, and their results."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from text2image.cli.arguments import Parser
from text2image.cli.batch_arguments import BatchOptions
from text2image.cli.drawing import CannotDraw, server_at
from text2image.cli.manifest import FolderTaken, Manifest
from text2image.cli.many import ABSENCE_SECONDS
from text2image.cli.output import save_request
from text2image.cli.screen import Screen
from text2image.cli.tasks import Task
from text2image.client import Client
from text2image.core.errors import Unavailable
from text2image.core.settings import get_settings
from text2image.gateway.store import Store
from text2image.jobs.records import Item, ItemState, Job, JobState
from text2image.jobs.words import progress_of, suffix_of

# As many requests as a server takes in one job.
_MOST = 10_000
_KEY_DIGITS = 32


@dataclass(frozen=True, slots=True)
class _Part:
    """A job, and those of the requests that it has, the first of which is `start`, from 0."""

    job: Job
    start: int
    tasks: Sequence[Task]


def draw_as_jobs(
    tasks: Sequence[Task], options: BatchOptions, manifest: Manifest, screen: Screen
) -> int:
    """Has a server draw all of a batch and fetches what is not in its folder yet; returns how many failed.

    Each folder has jobs of its own, which the same command finds again. More requests than one job may have are
    several.

    Raises:
        CannotDraw: no server listens, or the job was cancelled.
        Text2ImageError: the server does not take it.
    """
    with Client(server_at(options.server, get_settings()), api_key=options.api_key) as client:
        parts = [
            _handed_over(client, start, tasks[start : start + _MOST], options, screen)
            for start in range(0, len(tasks), _MOST)
        ]
        try:
            return sum(_fetched_in_time(client, part, manifest, options, screen) for part in parts)
        except KeyboardInterrupt:
            screen.say("the server goes on with it, and the same command fetches what is drawn")
            raise


def _handed_over(
    client: Client, start: int, tasks: Sequence[Task], options: BatchOptions, screen: Screen
) -> _Part:
    named = "".join(task.key for task in tasks)
    key = hashlib.sha256(f"{options.out.resolve()} {start} {named}".encode()).hexdigest()
    requests = ({**task.row.fields, "custom_id": task.key} for task in tasks)
    job = client.jobs.submit(
        requests, name=options.out.name, idempotency_key=f"batch-{key[:_KEY_DIGITS]}"
    )
    if job.state is JobState.CANCELLED:
        raise CannotDraw(
            f"{job.id} was cancelled; `python -m text2image jobs delete {job.id}` lets this command begin another"
        )
    if job.state is JobState.COMPLETED and job.counts.failed:
        job = client.jobs.retry(job.id)
    screen.say(f"{job.id} has {len(tasks)} requests")
    if job.warning:
        screen.say(job.warning)
    return _Part(job, start, tasks)


def _fetched_in_time(
    client: Client, part: _Part, manifest: Manifest, options: BatchOptions, screen: Screen
) -> int:
    """Waits for the end of a job and fetches its pictures; returns how many requests failed."""
    by_key = {task.key: task for task in part.tasks}
    job = part.job
    for job in _watched(client, part.job.id):
        screen.bar(job.counts.ended, job.counts.total, progress_of(job))

    def told(item: Item) -> Mapping[str, Any]:
        task = by_key[item.custom_id]
        return {"number": task.number, "line": task.row.line, "request": dict(task.row.fields)}

    fetch(client, job, manifest, options.out, screen, told, first=part.start + 1)
    return job.counts.failed + job.counts.cancelled


def _watched(client: Client, job_id: str) -> Iterator[Job]:
    """A job as it changes, over a restart of its server too.

    Raises:
        Unavailable: that is away for long.
    """
    answered = time.monotonic()
    while True:
        try:
            for job in client.jobs.watch(job_id):
                answered = time.monotonic()
                yield job
        except Unavailable as error:
            if time.monotonic() - answered > ABSENCE_SECONDS:
                raise
            time.sleep(error.retry_after or 1.0)
        else:
            return


def fetch(
    client: Client,
    job: Job,
    manifest: Manifest,
    folder: Path,
    screen: Screen,
    told: Callable[[Item], Mapping[str, Any]],
    first: int = 1,
) -> None:
    """Saves the pictures of a job that are finished and not in the folder yet, and prints where.

    Args:
        told: what the manifest is to tell of a request beside its files.
        first: the number of the job's first request among all.

    Raises:
        Text2ImageError: the server does not answer.
        NotSaved: the folder cannot be written.
    """
    store = Store(folder)
    for item in client.jobs.all_results(job.id):
        key = item.custom_id or f"{job.id}_{item.index}"
        if item.error:
            manifest.failed(key, item.error.message, told(item))
            screen.say(f"request {first + item.index}: {item.error.message}")
        if item.state is not ItemState.SUCCEEDED or manifest.files_of(key) is not None:
            continue
        files = [
            (client.jobs.picture(job.id, item.index, each.index), suffix_of(each.media_type))
            for each in item.pictures
        ]
        prompt = item.params.prompt if item.params else ""
        paths = save_request(store, first + item.index, prompt, key, files)
        seeds = [each.seed for each in item.pictures]
        manifest.drawn(key, [path.name for path in paths], {"seeds": seeds, **told(item)})
        for path in paths:
            print(path, flush=True)


def run(arguments: Sequence[str], screen: Screen) -> int:
    """Does what is asked of jobs and returns the exit status; what is told of them goes to standard output.

    Raises:
        SystemExit: help was asked for, or an option is wrong.
        CannotDraw: no server listens.
        Text2ImageError: the server refuses it, for one that there is no such job.
        OSError: the folder cannot be written.
    """
    given = _parser().parse_args(arguments or ["list"])
    screen.quiet = given.quiet
    with Client(server_at(given.server, get_settings()), api_key=given.api_key) as client:
        if given.command == "list":
            _list(client)
        elif given.command == "fetch":
            _fetch(client, given.job, given.out.expanduser(), screen)
        elif given.command == "delete":
            client.jobs.delete(given.job)
        else:
            ask = (
                client.jobs.get if given.command == "show" else getattr(client.jobs, given.command)
            )
            print("\n".join(_lines_of(ask(given.job))))
    return 0


def _list(client: Client) -> None:
    for job in _all_jobs(client):
        print(f"{job.id}  {job.state:9}  {_time(job.created_at)}  {progress_of(job)}  {job.name}")


def _all_jobs(client: Client) -> Iterator[Job]:
    """The caller's jobs, newest first."""
    after: str | None = ""
    while after is not None:
        page = client.jobs.list(after=after, limit=100)
        yield from page.jobs
        after = page.after


def _fetch(client: Client, job_id: str, folder: Path, screen: Screen) -> None:
    job = client.jobs.get(job_id)

    def told(item: Item) -> Mapping[str, Any]:
        prompt = item.params.prompt if item.params else None
        return {"number": item.index + 1, "job": job.id, "request": {"prompt": prompt}}

    try:
        with Manifest(folder) as manifest:
            fetch(client, job, manifest, folder, screen, told)
    except FolderTaken as error:
        raise CannotDraw(str(error)) from None


def _lines_of(job: Job) -> Iterator[str]:
    yield f"{job.id}  {job.state}  {progress_of(job)}"
    told = {
        "name": job.name,
        "created": _time(job.created_at),
        "ended": _time(job.ended_at),
        "kept until": _time(job.expires_at),
        "drawn until": _time(job.deadline_at),
        "pictures": f"{job.bytes / 1e6:.1f} MB" if job.bytes else "",
        "note": job.warning,
        **job.metadata,
    }
    yield from itertools.starmap("  {}: {}".format, ((k, v) for k, v in told.items() if v))


def _time(at: float | None) -> str:
    """As people of this machine's time zone write it."""
    return f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M}" if at else ""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m text2image jobs",
        description="The jobs that a server draws in the background for you; `python -m text2image batch --job` makes "
        "them.",
        allow_abbrev=False,
    )
    shared = Parser(add_help=False)
    shared.add_argument("--server", metavar="ADDRESS", help="host and port of a server's gRPC")
    shared.add_argument(
        "--api-key", metavar="KEY", help="key that the server asks for; T2I_API_KEY hides it better"
    )
    shared.add_argument("--quiet", action="store_true", help="say nothing but results and errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", parents=[shared], help="all of them, newest first")
    for name, does in {
        "show": "how one is",
        "cancel": "end it; finished pictures stay",
        "pause": "begin no more of its requests",
        "resume": "go on with it",
        "retry": "draw its failed requests again",
        "delete": "remove it with its pictures",
        "fetch": "save its finished pictures to a folder",
    }.items():
        command = commands.add_parser(name, parents=[shared], help=does)
        command.add_argument("job", metavar="JOB", help="its id")
        if name == "fetch":
            command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    return parser
