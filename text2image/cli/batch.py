"""`python -m text2image batch prompts.csv --out folder`: many requests, by the running server or in this process.

What is drawn is not drawn again, so the same command goes on after whatever ended it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from text2image.cli.arguments import as_typed, check
from text2image.cli.batch_arguments import BatchOptions, parse
from text2image.cli.drawing import CannotDraw
from text2image.cli.jobs import draw_as_jobs
from text2image.cli.manifest import FolderTaken, Manifest
from text2image.cli.many import Artist, artist_of
from text2image.cli.output import save_request
from text2image.cli.screen import Screen
from text2image.cli.sheet import check_sheet, write_sheet
from text2image.cli.tasks import Task, tasks_of
from text2image.core.controls import parse_control
from text2image.core.errors import FieldViolation, InvalidRequest, Text2ImageError
from text2image.core.loras import parse_lora
from text2image.core.messages import Picture, RequestParams
from text2image.core.settings import get_settings
from text2image.core.tables import Row
from text2image.gateway.store import Store

SOME_FAILED = 1


def run(arguments: Sequence[str], screen: Screen) -> int:
    """Draws what is not drawn yet and returns the exit status.

    Raises:
        SystemExit: help was asked for, or an option is wrong.
        InvalidRequest: a line or a combination is nothing that could be drawn.
        CannotDraw: there is nobody to draw, or another command is at work in the folder.
        OSError: a file cannot be read or written.
    """
    options = parse(arguments)
    screen.quiet = options.quiet
    tasks = tasks_of(options.rows)
    for each in tasks:
        _check(each.row)
    if options.sheet:
        check_sheet(tasks)
    try:
        with Manifest(options.out) as manifest:
            left = [task for task in tasks if manifest.files_of(task.key) is None]
            if done := len(tasks) - len(left):
                screen.say(f"{done} of {len(tasks)} requests are drawn already")
            failed = 0
            if left and options.job:
                failed = draw_as_jobs(tasks, options, manifest, screen)
            elif left:
                failed = asyncio.run(_draw(left, options, manifest, screen))
            if options.sheet:
                write_sheet(tasks, options, manifest)
    except FolderTaken as error:
        raise CannotDraw(str(error)) from None
    screen.clear()
    if failed:
        screen.fail(
            f"{failed} of {len(tasks)} requests failed, as {options.out}/manifest.jsonl tells; "
            "the same command tries them again"
        )
    return SOME_FAILED if failed else 0


def params_of(fields: Mapping[str, Any]) -> RequestParams:
    """A row in the words of a request; its files are read.

    Raises:
        InvalidRequest: a file cannot be read.
    """
    given = dict(fields)
    for name in ("image", "mask"):
        if name in given:
            given[name] = _file(name, given[name])
    if "loras" in given:
        given["loras"] = tuple(map(parse_lora, given["loras"]))
    if "controls" in given:
        steered = map(parse_control, given["controls"])
        given["controls"] = tuple(
            replace(control, image=_file("controls", path)) for control, path in steered
        )
    return RequestParams(**given)


def _file(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(FieldViolation(name, f"{path}: {error.strerror}")) from None


def _check(row: Row) -> None:
    """Refuses what no model draws, before any is loaded or asked; files and adapters are looked at when it is drawn."""
    later = ("image", "mask", "strength", "loras", "controls")
    plain = {name: value for name, value in row.fields.items() if name not in later}
    try:
        check(params_of(plain))
    except InvalidRequest as error:
        said = [f"{each.field} {each.reason}" for each in error.violations]
        raise InvalidRequest(*(FieldViolation(f"line {row.line}", why) for why in said)) from None


async def _draw(
    tasks: Sequence[Task], options: BatchOptions, manifest: Manifest, screen: Screen
) -> int:
    """Draws all, so many at once; returns how many failed."""
    settings = get_settings()
    async with artist_of(options, settings, screen) as artist:
        desk = _Desk(artist, options, manifest, screen, len(tasks))
        waiting = iter(tasks)

        async def work() -> None:
            # Each takes the next one, so the order is kept but for what is drawn side by side.
            for task in waiting:
                await desk.finish(task)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(options.concurrency, len(tasks))):
                    group.create_task(work())
        except ExceptionGroup as errors:
            # What keeps one from going on keeps all.
            raise errors.exceptions[0] from None
    return desk.failed


class _Desk:
    """Saves what is finished, and shows how far it is."""

    def __init__(
        self,
        artist: Artist,
        options: BatchOptions,
        manifest: Manifest,
        screen: Screen,
        total: int,
    ) -> None:
        self.failed = 0
        self._artist = artist
        self._store = Store(options.out)
        self._manifest = manifest
        self._screen = screen
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._show()

    async def finish(self, task: Task) -> None:
        """Draws one request and keeps what comes of it."""
        told = {"number": task.number, "line": task.row.line, "request": dict(task.row.fields)}
        try:
            params = await asyncio.to_thread(params_of, task.row.fields)
            pictures = await self._artist.draw(params)
        except Text2ImageError as error:
            shown = as_typed(error) if isinstance(error, InvalidRequest) else error
            self.failed += 1
            self._manifest.failed(task.key, shown.message, told)
            self._screen.say(f"line {task.row.line}: {shown.message}")
        else:
            names = await asyncio.to_thread(self._saved, task, pictures)
            seeds = [picture.seed for picture in pictures]
            self._manifest.drawn(task.key, [path.name for path in names], {"seeds": seeds, **told})
            for path in names:
                print(path, flush=True)
        self._done += 1
        self._show()

    def _saved(self, task: Task, pictures: Sequence[Picture]) -> list[Path]:
        files = [(picture.png, ".png") for picture in pictures]
        return save_request(self._store, task.number, task.row.fields["prompt"], task.key, files)

    def _show(self) -> None:
        failed = f", {self.failed} failed" if self.failed else ""
        self._screen.bar(
            self._done, self._total, f"{self._done} of {self._total}{failed}{self._left()}"
        )

    def _left(self) -> str:
        if not self._done:
            return ""
        pace = (time.monotonic() - self._began) / self._done
        seconds = round(pace * (self._total - self._done))
        return f", about {seconds // 60}:{seconds % 60:02d} left" if seconds else ""
