"""The files of a pipeline's folder: whether all are there, can be read and are whole. No torch is needed here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from text2image.engine.layouts.folder import (
    INDEX,
    checkpoint_of,
    has_weights,
    parts_of,
    read_json,
    shard_index,
    variant_of,
    weight_map,
    weights_of,
)
from text2image.engine.layouts.headers import Header, Unreadable, read_tensors
from text2image.engine.preflight.findings import Finding, listed

# A tokenizer's files; one of these sets must be there whole.
_TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("vocab.txt",),
)


class Files:
    """A pipeline's files as far as they could be read, and what is wrong with the others.

    Attributes:
        index: the content of model_index.json; empty where that cannot be read.
        configs: by part, the content of its configuration, where there is one.
        headers: by part, those of the files with its weights, by their place in the folder; all of a part, or none.
            A single file with the weights of all parts is here under the name "".
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.findings: list[Finding] = []
        self.index: dict[str, Any] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.headers: dict[str, dict[str, Header]] = {}
        self.index = self._json(folder / INDEX) or {}
        self.variant: str | None = None
        with contextlib.suppress(OSError, ValueError):
            # What is wrong is told of the file itself, below.
            self.variant = variant_of(folder, self.index)
        checkpoint = checkpoint_of(folder)
        if checkpoint:
            self._headers("", [checkpoint])
        for name, (_, kind) in parts_of(self.index).items():
            self._look_at(name, kind, weights=not checkpoint)

    def tell(self, path: Path, what: str) -> None:
        self.findings.append(Finding(self.place(path), what))

    def place(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _look_at(self, name: str, kind: str, *, weights: bool) -> None:
        part = self.folder / name
        if not part.is_dir():
            self.tell(part, _why_missing(part, f"the folder of the {kind} is missing"))
        elif kind == "ByT5Tokenizer":
            # Bytes are its tokens.
            self._json(part / "tokenizer_config.json")
        elif "Tokenizer" in kind:
            self._look_at_tokenizer(part)
        elif kind.endswith("Scheduler"):
            self._config(name, part / "scheduler_config.json")
        elif has_weights(kind):
            self._config(name, part / "config.json")
            if weights:
                self._weights(name, part)

    def _config(self, name: str, path: Path) -> None:
        if (config := self._json(path)) is not None:
            self.configs[name] = config

    def _look_at_tokenizer(self, part: Path) -> None:
        sets = [[part / name for name in names] for names in _TOKENIZERS]
        if any(all(path.exists() for path in files) for files in sets):
            for path in sorted(part.glob("*.json")):
                self._json(path, of_object=False)
            return
        begun = next((files for files in sets if any(path.exists() for path in files)), None)
        if begun:
            missing = next(path for path in begun if not path.exists())
            self.tell(missing, _why_missing(missing, "is missing"))
        else:
            named = " or ".join(" with ".join(names) for names in _TOKENIZERS[:3])
            self.tell(part, f"holds no tokenizer: {named}")

    def _weights(self, name: str, part: Path) -> None:
        variant = self.variant
        try:
            files = (weights_of(part, variant) if variant else []) or weights_of(part)
            index = (shard_index(part, variant) if variant else None) or shard_index(part)
        except (OSError, ValueError) as error:
            self.tell(part, _problem(error))
            return
        if not files:
            others = sorted(path.name for path in part.iterdir() if path.suffix != ".json")
            there = f"; there is {listed(others)}" if others else ""
            self.tell(part, f"holds no weights: no *.safetensors or *.bin{there}")
        elif self._headers(name, files) and index:
            self._check_shards(name, index)

    def _headers(self, name: str, files: list[Path]) -> bool:
        found: dict[str, Header] = {}
        for path in files:
            try:
                found[self.place(path)] = read_tensors(path)
            except (OSError, Unreadable) as error:
                self.tell(path, _why_missing(path, _problem(error)))
        if len(found) < len(files):
            return False
        self.headers[name] = found
        return True

    def _check_shards(self, name: str, index: Path) -> None:
        """Whether each shard holds what the index says is in it."""
        lacking: dict[Path, list[str]] = {}
        for parameter, shard in weight_map(index).items():
            path = index.parent / shard
            if parameter not in self.headers[name][self.place(path)].tensors:
                lacking.setdefault(path, []).append(parameter)
        if lacking:
            # What else is wrong would be told of the same parameters.
            del self.headers[name]
        for path, names in lacking.items():
            self.tell(path, f"lacks what {index.name} says is in it: {listed(names)}")

    def _json(self, path: Path, *, of_object: bool = True) -> dict[str, Any] | None:
        try:
            return read_json(path) if of_object else json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.tell(path, _why_missing(path, _problem(error)))
            return None


def _why_missing(path: Path, otherwise: str) -> str:
    """Of a link that leads nowhere, where to; of anything else what is said."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            return f"is a link to {place.readlink()}, which is not there"
    return otherwise


def _problem(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "is missing"
        case OSError():
            return f"cannot be read ({error.strerror or error})"
        case json.JSONDecodeError() if not error.doc.strip():
            return "is empty"
        case json.JSONDecodeError():
            return f"is no JSON: {error.msg} in line {error.lineno}"
        case UnicodeDecodeError():
            return "is no text in UTF-8"
    return str(error)


def all_headers(files: Files) -> Iterator[tuple[str, Header]]:
    """Every file with weights, by its place in the folder."""
    for found in files.headers.values():
        yield from found.items()
