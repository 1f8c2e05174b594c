"""The requests of a batch, and what each is known by in a folder."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from text2image.core.tables import Row

_KEY_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Task:
    """One request of a batch: its place in all of them, from 1, and what its pictures are known by."""

    number: int
    key: str
    row: Row


def tasks_of(rows: Sequence[Row]) -> list[Task]:
    """The requests with their keys, which depend on what is asked for and not on where it stands among others."""
    seen: Counter[str] = Counter()
    tasks = []
    for number, row in enumerate(rows, 1):
        written = json.dumps(dict(row.fields), sort_keys=True)
        seen[written] += 1
        # The same once more without a seed is another picture.
        named = f"{written} {seen[written]}".encode()
        key = hashlib.sha256(named).hexdigest()[:_KEY_DIGITS]
        tasks.append(Task(number, key, row))
    return tasks
