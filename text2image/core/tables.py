"""Many requests as people keep them: a table (CSV), JSON by line, or one prompt a line.

Columns are the fields of a request, by their names in `RequestParams`; `text` is the prompt, and `context` is added to
it. A cell that is empty leaves its field out. Files (image, mask) are named by their paths, and are not read here.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from text2image.core.controls import parse_control
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.loras import parse_lora
from text2image.core.validation import compose_prompt

# What a batch may have, of one file and its matrix.
MAX_ROWS = 100_000
_SIZE = re.compile(r"(\d{1,9})[x×](\d{1,9})")
_RANGE = re.compile(r"(\d{1,19})-(\d{1,19})")

Fields = dict[str, Any]


class Form(StrEnum):
    """How a list of requests is written."""

    CSV = "csv"
    JSONL = "jsonl"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Row:
    """One request: the line that it stands in, from 1, and its fields, `prompt` among them."""

    line: int
    fields: Mapping[str, Any]


def form_of(name: str, text: str) -> Form:
    """How a text is written: by the name of its file, or else by how it begins."""
    suffix = name.lower().rpartition(".")[2]
    if suffix in ("csv", "tsv"):
        return Form.CSV
    if suffix in ("jsonl", "ndjson"):
        return Form.JSONL
    if suffix == "txt":
        return Form.TEXT
    first = text.lstrip("\ufeff \t\r\n").partition("\n")[0].strip()
    if first.startswith("{"):
        return Form.JSONL
    names = [name.strip().strip('"').lower() for name in re.split("[,;\t]", first)]
    known = {"prompt", "text"} & set(names)
    return Form.CSV if known and set(names) <= _NAMES.keys() | _OTHERS else Form.TEXT


def read_rows(text: str, form: Form) -> list[Row]:
    """The requests of a text.

    Raises:
        InvalidRequest: names the lines that are wrong, the first of them, or says that there is none.
    """
    text = text.removeprefix("\ufeff")
    readers = {Form.CSV: _of_csv, Form.JSONL: _of_jsonl, Form.TEXT: _of_text}
    rows: list[Row] = []
    violations: list[FieldViolation] = []
    for line, given in readers[form](text):
        try:
            if isinstance(given, str):
                raise InvalidRequest(FieldViolation("", given))
            rows.append(Row(line, _typed(given)))
        except InvalidRequest as error:
            violations += [
                FieldViolation(f"line {line}", f"{each.field} {each.reason}".strip())
                for each in error.violations
            ]
    if violations:
        raise InvalidRequest(*violations)
    if not rows:
        raise InvalidRequest(FieldViolation("prompts", "are none; write one a line"))
    return rows


Given = Iterable[tuple[int, Mapping[str, Any] | str]]


def _of_text(text: str) -> Given:
    for line, words in enumerate(text.splitlines(), 1):
        if words.strip() and not words.lstrip().startswith("#"):
            yield line, {"prompt": words.strip()}


def _of_jsonl(text: str) -> Given:
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            given = json.loads(written)
        except ValueError as error:
            yield line, f"is no JSON: {error}"
            continue
        yield line, given if isinstance(given, dict) else 'is no object, as in {"prompt": "a fox"}'


def _of_csv(text: str) -> Given:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if not {"prompt", "text"} & set(names):
            yield 1, f"names the columns {', '.join(names)[:80] or 'nothing'}, and no prompt"
            return
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(names):
                yield reader.line_num, f"has {len(cells)} cells, and there are {len(names)} columns"
            else:
                yield reader.line_num, dict(zip(names, cells, strict=False))
    except csv.Error as error:
        yield reader.line_num, f"is no row of a table: {error}"


def _typed(given: Mapping[str, Any]) -> Fields:
    """Fields in the types of a request; texts are read as numbers where those are meant.

    Raises:
        InvalidRequest: names the fields that cannot be read.
    """
    fields: Fields = {}
    violations: list[FieldViolation] = []
    for name, value in given.items():
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        try:
            fields |= typed(name.strip(), value)
        except ValueError as error:
            violations.append(FieldViolation(name[:40], str(error)))
    text, other = fields.pop("text", None), fields.get("prompt")
    if text is not None and other is not None:
        violations.append(FieldViolation("text", "says the same as prompt; name one of both"))
    prompt = other if text is None else text
    if prompt is None and not any(each.field in ("prompt", "text") for each in violations):
        violations.append(FieldViolation("prompt", "is missing"))
    elif prompt is not None:
        fields["prompt"] = compose_prompt(prompt, fields.pop("context", None))
    if violations:
        raise InvalidRequest(*violations)
    return fields


def typed(name: str, value: Any) -> Fields:
    """A field by its name, in its type; a size is two of them.

    Raises:
        ValueError: there is no such field, or the value is none of its; the text says which.
    """
    name = name.lower()
    if name == "size":
        sides = _SIZE.fullmatch(str(value).strip())
        if not sides:
            raise ValueError(f"is {str(value)[:40]!r}; write width and height as in 512x512")
        return {"width": int(sides[1]), "height": int(sides[2])}
    if name not in _NAMES:
        raise ValueError(f"is no field of a request; those are {', '.join(sorted(_NAMES))}, size")
    return {name: _NAMES[name](value)}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is {value!r:.40}, and no text")
    return value


def _whole(value: Any) -> int:
    # As JSON has it, 20.0 is an integer.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool | float):
        raise ValueError(f"is {value!r:.40}, and no whole number")
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"is {value!r:.40}, and no whole number") from None


def _number(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"is {value!r:.40}, and no number") from None


def _loras(value: Any) -> list[str]:
    """Adapters as they are written, `ink:0.8`, several with spaces or semicolons between them, or as JSON has them."""
    if isinstance(value, str):
        value = [word for word in re.split(r"[;\s]+", value) if word]
    if not isinstance(value, list):
        raise ValueError("must be a list, as in ink:0.8 wool")
    named = []
    for each in value:
        if isinstance(each, dict):
            each = f"{each.get('name', '')}:{each.get('weight', 1)}"
        try:
            parse_lora(each)
        except (ValueError, AttributeError):
            raise ValueError(
                f"hold {each!r:.40}; write a name, or a name and a weight as in ink:0.8"
            ) from None
        named.append(each)
    return named


def _controls(value: Any) -> list[str]:
    value = [part for part in value.split(";") if part.strip()] if isinstance(value, str) else value
    try:
        for each in value:
            parse_control(each)
    except (TypeError, ValueError):
        raise ValueError("must name a ControlNet and a file, as in canny=edges.png:0.8") from None
    return list(value)


_NAMES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("prompt", "text", "context", "negative_prompt", "sampler", "schedule", "quality"), _text
    ),
    **dict.fromkeys(("model", "image", "mask", "hires_upscaler"), _text),
    **dict.fromkeys(("width", "height", "steps", "seed", "n", "clip_skip", "hires_steps"), _whole),
    **dict.fromkeys(("guidance_scale", "strength", "hires_scale", "hires_strength"), _number),
    "loras": _loras,
    "controls": _controls,
}
_OTHERS = {"size"}


# The matrix


@dataclass(frozen=True, slots=True)
class Axis:
    """One field and the values that it takes in turn; a value is what it adds to a request."""

    name: str
    values: tuple[Fields, ...]
    labels: tuple[str, ...]


def parse_seeds(text: str) -> Axis:
    """Seeds as people write them: `1-4`, `7`, `1-4,10,20`.

    Raises:
        ValueError: they are none; the text says what they may be.
    """
    seeds: list[int] = []
    for part in text.split(","):
        ends = _RANGE.fullmatch(part.strip())
        first, last = (int(ends[1]), int(ends[2])) if ends else (_seed(part), _seed(part))
        if last < first or last - first >= MAX_ROWS:
            raise ValueError(f"{part.strip()!r} is no range of at most {MAX_ROWS} seeds")
        seeds += range(first, last + 1)
    return Axis("seed", tuple({"seed": seed} for seed in seeds), tuple(map(str, seeds)))


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is no seed; write seeds as in 1-4,10") from None


def parse_axis(name: str, values: Sequence[str]) -> Axis:
    """A field that takes each of these values, as `steps` and `10`, `20`, or `loras` and `ink:0.4`, `ink:0.8`.

    Raises:
        ValueError: there is no such field, or a value is none of its.
    """
    if name in ("prompt", "text", "context"):
        raise ValueError(f"{name} is what the rows are for")
    cells = [value.strip() for value in values if value.strip()]
    if not cells:
        raise ValueError(f"{name} has no values")
    return Axis(name, tuple(typed(name, cell) for cell in cells), tuple(cells))


def labels_of(axes: Sequence[Axis]) -> tuple[list[str], list[str]]:
    """Of a sheet of what `crossed` gives: its columns, which are the last axis, and what its rows are in turn."""
    *others, last = axes or [Axis("", ({},), ("",))]
    columns = [f"{last.name} {label}".strip() for label in last.labels]
    varied = [
        ", ".join(f"{axis.name} {label}" for axis, label in zip(others, labels, strict=True))
        for labels in itertools.product(*(axis.labels for axis in others))
    ]
    return columns, varied


def crossed(rows: Iterable[Row], axes: Sequence[Axis], given: Mapping[str, Any]) -> list[Row]:
    """Each row with each combination of values, the last axis fastest; `given` is what rows do not say themselves.

    Raises:
        InvalidRequest: that would be too many, or a row names what an axis varies.
    """
    rows = list(rows)
    count = len(rows)
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_ROWS:
        reason = f"would be {count} with all combinations; at most {MAX_ROWS} are taken at once"
        raise InvalidRequest(FieldViolation("prompts", reason))
    varied = {name for axis in axes for value in axis.values for name in value}
    for row in rows:
        if both := sorted(varied & row.fields.keys()):
            reason = f"names {both[0]}, which is varied for all rows; leave out one of both"
            raise InvalidRequest(FieldViolation(f"line {row.line}", reason))
    return [
        Row(row.line, _merged(given, row.fields, *combination))
        for row in rows
        for combination in itertools.product(*(axis.values for axis in axes))
    ]


def _merged(*parts: Mapping[str, Any]) -> Fields:
    merged: Fields = {}
    for part in parts:
        merged |= part
    return merged
