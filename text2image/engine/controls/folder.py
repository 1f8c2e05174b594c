"""The folder of ControlNets as one model sees it: which there are, and by which of them it can be steered."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from text2image.core.loras import HASH_DIGITS, is_writable
from text2image.core.messages import ControlInfo
from text2image.engine.controls.files import (
    CONFIG,
    WEIGHTS,
    NotAControlNet,
    Target,
    base_of,
    config_in,
    inspect,
)
from text2image.engine.layouts.headers import Header, Unreadable, read_header

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
MOST_NETS = 200
# Of gigabytes so many parts are hashed, of so many bytes each, evenly spread, and the size.
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 20
_MOST_FAULT_CHARS = 400

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class File:
    """A ControlNet as it was found. `stamp` changes with its files; `config` is what it is built by."""

    path: Path
    stamp: Stamp
    info: ControlInfo
    header: Header | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return self.header.numbers if self.header else 0

    def is_still(self) -> bool:
        """Whether its files are those that were looked at."""
        return _stamp(self.path, *(each for each in (_config(self.path),) if each)) == self.stamp


class ControlFolder:
    """What of a folder a model can be steered by. Safe to use from several threads."""

    def __init__(self, path: Path, target: Target) -> None:
        self.path = path
        self.target = target
        self._files: Mapping[str, File] = {}
        self._complaint = ""

    def find(self, name: str, content_hash: str) -> File | None:
        """The usable net of this name and hash, as it was at the last look."""
        file = self._files.get(name)
        usable = file is not None and file.header is not None and file.info.hash == content_hash
        return file if usable else None

    def look(self) -> tuple[ControlInfo, ...]:
        """What there is now, by name. Of a net that is new its header is read, and parts of its weights."""
        found: dict[str, File] = {}
        for name, weights in self._nets().items():
            known = self._files.get(name)
            try:
                config = _config(weights)
                stamp = _stamp(weights, *(each for each in (config,) if each))
                is_known = known is not None and known.stamp == stamp
                found[name] = known if known and is_known else self._read(name, weights, stamp)
            except OSError as error:
                logger.warning("ControlNet %s is left out: %s", weights, error.strerror or error)
        self._files = found
        return tuple(file.info for file in found.values())

    def _nets(self) -> dict[str, Path]:
        """The weights of each net by its name."""
        try:
            there = sorted(each for each in self.path.iterdir() if not each.name.startswith("."))
            nets = {each.name.removesuffix(SUFFIX): _weights(each) for each in there}
        except OSError as error:
            self._complain(f"no ControlNets in {self.path}: {error.strerror or error}")
            return {}
        named = {name: path for name, path in nets.items() if path is not None}
        odd = [name for name in named if not is_writable(name)]
        if odd:
            self._complain(f"ControlNets in {self.path} that no request could name: {odd[:5]}")
        elif len(named) > MOST_NETS:
            self._complain(
                f"{len(named)} ControlNets in {self.path}, of which {MOST_NETS} are used"
            )
        return dict([each for each in named.items() if each[0] not in odd][:MOST_NETS])

    def _complain(self, text: str) -> None:
        """Says what is wrong, once."""
        if text != self._complaint:
            self._complaint = text
            logger.warning("%s", text)

    def _read(self, name: str, weights: Path, stamp: Stamp) -> File:
        """A net that is new, or has changed.

        Raises:
            OSError: it cannot be read.
        """
        info = ControlInfo(name, _hash_of(weights))
        try:
            header, config = read_header(weights), _config(weights)
            info = replace(info, base=base_of(header))
            built = inspect(header, config_in(config) if config else None, self.target)
        except (NotAControlNet, Unreadable) as error:
            fault = "".join(each for each in str(error) if each.isprintable())[:_MOST_FAULT_CHARS]
            logger.warning("ControlNet %s %s", weights, fault)
            return File(weights, stamp, replace(info, fault=fault))
        return File(weights, stamp, info, header, built)


def _weights(path: Path) -> Path | None:
    """The weights of what lies in the folder; None if it is no net."""
    if path.is_file():
        return path if path.name.endswith(SUFFIX) else None
    if not (path / CONFIG).is_file():
        return None
    there = [path / name for name in WEIGHTS if (path / name).is_file()]
    # Without any, reading it says what is missing.
    return there[0] if there else path / WEIGHTS[0]


def _config(weights: Path) -> Path | None:
    """The configuration beside the weights of a folder; None for a single file."""
    return weights.parent / CONFIG if weights.name in WEIGHTS else None


def _stamp(*paths: Path) -> Stamp:
    told = [(path, path.stat()) for path in paths]
    return tuple((str(path), each.st_size, each.st_mtime_ns, each.st_ino) for path, each in told)


def _hash_of(path: Path) -> str:
    """The first digits of a SHA-256 of the file's size and of parts of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8))
    last = max(0, size - _SAMPLE_BYTES)
    with path.open("rb") as file:
        for place in sorted({last * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)}):
            file.seek(place)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:HASH_DIGITS]
