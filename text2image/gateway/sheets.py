"""Contact sheets: pictures side by side in one, with what each column and each row has in common."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

# Pixels of a picture's longer side, between pictures, and of a letter.
SIDE = 256
_GAP = 8
_LETTER = 14
# Of the column that the rows' labels stand in.
_LABEL_SIDE = 200
_PAPER, _INK, _MISSING = "white", "#222222", "#dddddd"
# A sheet of more is nothing to look at, and gigabytes while it is made.
MAX_CELLS = 1024
_MOST_LINES = 8


def contact_sheet(
    cells: Sequence[Sequence[bytes | None]], columns: Sequence[str], rows: Sequence[str]
) -> bytes:
    """The PNG of a sheet.

    Args:
        cells: files of pictures by row and column; None where there is none.
        columns, rows: their labels; empty ones take no room if all are.

    Raises:
        ValueError: there are more than MAX_CELLS, or fewer labels than columns or rows.
    """
    if len(cells) != len(rows) or any(len(row) != len(columns) for row in cells):
        raise ValueError("each row and each column needs a label")
    if not 0 < len(rows) * len(columns) <= MAX_CELLS:
        raise ValueError(f"a sheet has 1 to {MAX_CELLS} pictures")
    left = _LABEL_SIDE if any(rows) else 0
    heads = [_wrapped(label, SIDE) for label in columns]
    top = (_LETTER + 4) * max(head.count("\n") + 1 for head in heads) + _GAP if any(columns) else 0
    width = left + len(columns) * (SIDE + _GAP) + _GAP
    height = top + len(rows) * (SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LETTER)
    for column, head in enumerate(heads):
        pen.text((left + _GAP + column * (SIDE + _GAP), _GAP), head, _INK, font)
    for number, (label, row) in enumerate(zip(rows, cells, strict=True)):
        y = top + _GAP + number * (SIDE + _GAP)
        pen.text((_GAP, y), _wrapped(label, _LABEL_SIDE - 2 * _GAP), _INK, font)
        for column, file in enumerate(row):
            _place(sheet, left + _GAP + column * (SIDE + _GAP), y, file)
    written = io.BytesIO()
    sheet.save(written, "PNG")
    return written.getvalue()


def _place(sheet: Image.Image, x: int, y: int, file: bytes | None) -> None:
    """Puts a picture into the middle of its cell."""
    if file is None:
        sheet.paste(_MISSING, (x, y, x + SIDE, y + SIDE))
        return
    with Image.open(io.BytesIO(file)) as picture:
        scale = SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        scaled = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(scaled, (x + (SIDE - size[0]) // 2, y + (SIDE - size[1]) // 2))


def _wrapped(label: str, width: int) -> str:
    """A label in lines of about so many pixels."""
    lines = textwrap.wrap(label, max(8, width * 2 // _LETTER)) or [""]
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], "..."]
    return "\n".join(lines)
