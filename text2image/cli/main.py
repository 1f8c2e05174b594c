"""What the command does, and how it ends: paths on standard output, everything else on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from text2image.cli import batch, jobs
from text2image.cli.arguments import BAD_USAGE, Options, as_typed, parse
from text2image.cli.drawing import CannotDraw, draw
from text2image.cli.output import Save, saver
from text2image.cli.screen import Screen
from text2image.core.errors import InvalidRequest, Text2ImageError, Unauthenticated
from text2image.core.messages import ClientEvent, Completed, Loading, Picture, Progress, Queued
from text2image.core.settings import get_settings
from text2image.gateway.store import NotSaved
from text2image.ops import check

# As the first word each is a command; a picture of that word takes quotes around it and more.
CHECK, BATCH, JOBS = "check", "batch", "jobs"
FAILED = 1
# As shells say it of a command that Ctrl-C has ended.
INTERRUPTED = 130
# Shorter waits are not worth a word, in seconds.
_LONG_WAIT = 5.0


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status; every failure is one line on standard error.

    Raises:
        SystemExit: help was asked for, or the parser of the options has told what is wrong with them.
    """
    if arguments[:1] == [CHECK]:
        return check.main(arguments[1:])
    if arguments[:1] == [BATCH]:
        return _ended(lambda screen: batch.run(arguments[1:], screen))
    if arguments[:1] == [JOBS]:
        return _ended(lambda screen: jobs.run(arguments[1:], screen))
    return _ended(lambda screen: _draw(arguments, screen))


def _draw(arguments: Sequence[str], screen: Screen) -> int:
    options = parse(arguments)
    screen.quiet = options.quiet
    _run(options, screen)
    return 0


def _ended(work: Callable[[Screen], int]) -> int:
    """The status of a command, and what is told of one that did not end well."""
    screen = Screen(sys.stderr)
    try:
        status = work(screen)
        sys.stdout.flush()
    except KeyboardInterrupt:
        screen.fail("cancelled")
        return INTERRUPTED
    except InvalidRequest as error:
        screen.fail(as_typed(error).message)
        return BAD_USAGE
    except Text2ImageError as error:
        screen.fail(_in_words(error))
        return FAILED
    except NotSaved as error:
        screen.fail(f"the picture could not be saved: {error}")
        return FAILED
    except BrokenPipeError:
        # Whoever read the paths has left; nothing may be written to them while the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        screen.fail(f"{named}{error.strerror or error}")
        return FAILED
    except (CannotDraw, ValueError) as error:
        screen.fail(str(error))
        return FAILED
    except SystemExit as error:
        if not isinstance(error.code, str):
            raise
        screen.fail(error.code.removeprefix("text2image: "))
        return BAD_USAGE
    return status


def _run(options: Options, screen: Screen) -> None:
    n = options.params.n or 1
    easel = _Easel(saver(options.output, options.title, n), n, screen)
    draw(options, get_settings(), screen, easel)


class _Easel:
    """Saves what is finished and shows what is not."""

    def __init__(self, save: Save, n: int, screen: Screen) -> None:
        self._save = save
        self._n = n
        self._screen = screen
        self._steps: dict[int, int] = {}

    def __call__(self, event: ClientEvent) -> None:
        match event:
            case Loading(detail=detail, seconds=seconds):
                left = f", about {seconds:.0f} s" if seconds and seconds >= _LONG_WAIT else ""
                self._screen.bar(0, 1, f"loading the model: {detail}{left}")
            case Queued(predicted_seconds=seconds):
                wait = f", ready in about {seconds:.0f} s" if seconds >= _LONG_WAIT else ""
                self._screen.bar(0, 1, f"drawing{wait}")
            case Progress(index=index, step=step, steps=steps):
                self._steps[index] = step
                done, total = sum(self._steps.values()), steps * self._n
                self._screen.bar(done, total, f"step {done} of {total}")
            case Picture():
                path = self._save(event)
                self._screen.say(f"seed {event.seed}, {event.timings.total:.1f} s")
                print(path, flush=True)
            case Completed():
                self._screen.clear()
                for name, end in event.unread:
                    self._screen.say(f"the {name} was too long, left out: {end}")


def _in_words(error: Text2ImageError) -> str:
    """What happened, and what to do or when to try again."""
    if isinstance(error, Unauthenticated):
        return f"{error.message}; this command takes it from T2I_API_KEY"
    if error.retry_after is None:
        return error.message
    return f"{error.message}; try again in {max(1, round(error.retry_after))} s"
