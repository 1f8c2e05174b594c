"""The folder of adapters as one model sees it: which files there are, and which of them it can be drawn with."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from text2image.core.loras import HASH_DIGITS, is_writable
from text2image.core.messages import LoraInfo
from text2image.engine.adapters.files import Layers, NotAnAdapter, inspect
from text2image.engine.layouts.headers import Header, Unreadable, read_header

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
# Files of a folder that are looked at, by their names.
MOST_FILES = 1000
# Seconds of one look, after which files that are yet to be hashed are left to the next.
LOOK_SECONDS = 2.0
_CHUNK_BYTES = 1 << 22
# Trigger words that are told of an adapter, and characters of each.
_MOST_WORDS, _MOST_CHARS = 10, 60
_MOST_FAULT_CHARS = 400


@dataclass(frozen=True, slots=True)
class File:
    """An adapter's file as it was found. `stamp` changes with it."""

    path: Path
    stamp: tuple[int, int, int]
    info: LoraInfo
    header: Header | None = None

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return self.header.numbers if self.header else 0


class LoraFolder:
    """What of a folder a model with certain layers can be drawn with. Safe to use from several threads."""

    def __init__(self, path: Path, layers: Layers) -> None:
        self.path = path
        self.layers = layers
        self._files: Mapping[str, File] = {}
        self._complaint = ""

    def find(self, name: str, content_hash: str) -> File | None:
        """The usable file of this name and hash, as it was at the last look."""
        file = self._files.get(name)
        usable = file is not None and file.header is not None and file.info.hash == content_hash
        return file if usable else None

    def look(self, seconds: float = LOOK_SECONDS) -> tuple[LoraInfo, ...]:
        """What there is now, by name. Files that are new are read once, as many as there is time for."""
        ends = time.monotonic() + seconds
        found: dict[str, File] = {}
        for path in self._paths():
            name = path.name.removesuffix(SUFFIX)
            known = self._files.get(name)
            try:
                told = path.stat()
                stamp = (told.st_size, told.st_mtime_ns, told.st_ino)
                if known and known.stamp == stamp:
                    found[name] = known
                elif not found or time.monotonic() < ends:
                    found[name] = self._read(path, name, stamp)
            except OSError as error:
                logger.warning("adapter %s is left out: %s", path, error.strerror or error)
        self._files = found
        return tuple(file.info for file in found.values())

    def _paths(self) -> list[Path]:
        try:
            paths = sorted(
                each
                for each in self.path.iterdir()
                if each.name.endswith(SUFFIX) and not each.name.startswith(".") and each.is_file()
            )
        except OSError as error:
            self._complain(f"no adapters in {self.path}: {error.strerror or error}")
            return []
        odd = [each.name for each in paths if not is_writable(each.name.removesuffix(SUFFIX))]
        if odd:
            self._complain(f"adapters in {self.path} that no request could name: {odd[:5]}")
        elif len(paths) > MOST_FILES:
            self._complain(f"{len(paths)} adapters in {self.path}, of which {MOST_FILES} are used")
        return [each for each in paths if each.name not in odd][:MOST_FILES]

    def _complain(self, text: str) -> None:
        """Says what is wrong, once."""
        if text != self._complaint:
            self._complaint = text
            logger.warning("%s", text)

    def _read(self, path: Path, name: str, stamp: tuple[int, int, int]) -> File:
        """A file that is new, or has changed.

        Raises:
            OSError: it cannot be read.
        """
        info = LoraInfo(name, _hash_of(path))
        try:
            header = read_header(path)
            info = replace(
                info, base=_base_of(header), trigger_words=_trigger_words(header.metadata)
            )
            inspect(path, header, self.layers)
        except (NotAnAdapter, Unreadable) as error:
            fault = _plain(str(error), _MOST_FAULT_CHARS)
            logger.warning("adapter %s %s", path, fault)
            return File(path, stamp, replace(info, fault=fault))
        except OSError:
            raise
        except Exception:
            # Whatever else a stranger's file brings about keeps no model from being loaded.
            logger.exception("adapter %s cannot be read", path)
            return File(
                path, stamp, replace(info, fault="cannot be read; the server's log says why")
            )
        return File(path, stamp, info, header)


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()[:HASH_DIGITS]


# By the width of the text that a U-Net's layers read, which every file that changes these tells.
_BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


def _base_of(header: Header) -> str:
    """The family that an adapter was made for, by its metadata or else its shapes; empty if neither tells."""
    for key in ("modelspec.architecture", "ss_base_model_version"):
        if told := header.metadata.get(key):
            return _plain(told)
    widths = {
        each.shape[1]
        for name, each in header.tensors.items()
        if len(each.shape) >= 2
        and "attn2" in name
        and ("to_k" in name or "to_v" in name)
        and ("down" in name or "lora_A" in name)
    }
    return _BASES.get(widths.pop(), "") if len(widths) == 1 else ""


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What calls for an adapter: as its maker says, or else the most frequent tags of what it was trained on."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        words = [_plain(word) for word in phrase.split(",")]
        return tuple(word for word in words if word)[:_MOST_WORDS]
    counts: Counter[str] = Counter()
    for tags in _objects_in(metadata.get("ss_tag_frequency", "{}")):
        for tag, count in tags.items():
            if isinstance(count, int | float) and (word := _plain(tag)):
                counts[word] += int(min(max(count, 0), 1 << 30))
    return tuple(word for word, _ in counts.most_common(_MOST_WORDS))


def _objects_in(text: str) -> list[dict[str, Any]]:
    """The objects in a JSON object; none where it is no such thing."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return (
        [each for each in told.values() if isinstance(each, dict)] if isinstance(told, dict) else []
    )


def _plain(text: str, most: int = _MOST_CHARS) -> str:
    """A few printable characters of a text that a stranger wrote."""
    return "".join(each for each in " ".join(text.split()) if each.isprintable())[:most]
