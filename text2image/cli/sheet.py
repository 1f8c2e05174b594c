"""All pictures of a batch side by side, in one file of its folder."""

from __future__ import annotations

from collections.abc import Sequence

from text2image.cli.batch_arguments import BatchOptions
from text2image.cli.manifest import Manifest
from text2image.cli.tasks import Task
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.tables import labels_of
from text2image.gateway.sheets import MAX_CELLS, contact_sheet

NAME = "sheet.png"
_DRAFT = f".{NAME}.part"


def check_sheet(tasks: Sequence[Task]) -> None:
    """Does nothing if they fit a sheet.

    Raises:
        InvalidRequest: there are too many.
    """
    if len(tasks) > MAX_CELLS:
        reason = f"is for at most {MAX_CELLS} requests; these are {len(tasks)}"
        raise InvalidRequest(FieldViolation("--sheet", reason))


def write_sheet(tasks: Sequence[Task], options: BatchOptions, manifest: Manifest) -> None:
    """Writes the sheet: what is varied last from left to right, all else from top to bottom.

    Of a request with several pictures the first one is shown; what could not be drawn is left grey.

    Raises:
        OSError: a picture cannot be read, or the sheet not written.
    """
    columns, varied = labels_of(options.axes)
    across = len(columns)
    rows, cells = [], []
    for number, start in enumerate(range(0, len(tasks), across)):
        some = tasks[start : start + across]
        said = (str(some[0].row.fields["prompt"]), varied[number % len(varied)])
        rows.append("; ".join(part for part in said if part))
        cells.append([_picture(task, options, manifest) for task in some])
    draft = options.out / _DRAFT
    draft.write_bytes(contact_sheet(cells, columns, rows))
    draft.replace(options.out / NAME)


def _picture(task: Task, options: BatchOptions, manifest: Manifest) -> bytes | None:
    names = manifest.files_of(task.key)
    return (options.out / names[0]).read_bytes() if names else None
