"""`make docs`: writes the table in docs/settings.md from the settings themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo

from text2image.core.settings import Settings

DOCUMENT = Path(__file__).parents[1] / "docs" / "settings.md"
_BETWEEN = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)


def table() -> str:
    """One row for each setting: variable, default, meaning."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    variable = field.validation_alias or f"T2I_{name.upper()}"
    default = "" if _default(field) is None else f"`{_shown(field)}`"
    return f"| `{variable}` | {default} | {field.description} |"


def _shown(field: FieldInfo) -> object:
    if field.annotation is bool or bool in get_args(field.annotation):
        return int(field.default)
    return _default(field)


def _default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True)


def with_table(document: str) -> str:
    """The text of the document with its table renewed."""
    return _BETWEEN.sub(lambda _: table(), document)


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
