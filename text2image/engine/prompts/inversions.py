"""Textual inversions (Gal et al. 2022): words that a file teaches a model, as vectors in place of tokens.

Read are the forms that people share: diffusers', with one tensor by any name; A1111's, with `string_to_param` or
`emb_params`; for SDXL `clip_l` and `clip_g`, a tensor for each of its encoders. Files are data: pickles are read with
torch's `weights_only`, which builds tensors and executes nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from text2image.core.messages import Embedding
from text2image.engine.layouts.headers import Unreadable, read_header

logger = logging.getLogger(__name__)

SAFE, PICKLED = ".safetensors", (".pt", ".bin")
MAX_BYTES = 64 << 20
MAX_NAME = 96
# What the tensors of a model's encoders are called, where it has two.
_PARTS = ("clip_l", "clip_g")
_HASH_DIGITS = 12


class Unfit(Exception):
    """A file that holds no textual inversion for this model; the text says why."""


@dataclass(frozen=True, slots=True)
class Encoders:
    """What a model's text encoders take.

    Attributes:
        widths: numbers of a vector, for each encoder.
        parts: what each is called in files for several.
        most: vectors that fit in one chunk.
    """

    widths: tuple[int, ...]
    parts: tuple[str, ...]
    most: int

    @classmethod
    def of(cls, pipeline: Any) -> Encoders:
        """Those of a diffusers pipeline, which may be configurations alone."""
        there = [
            (part, getattr(pipeline, f"tokenizer{end}"), encoder)
            for part, end in zip(_PARTS, ("", "_2"), strict=True)
            if (encoder := getattr(pipeline, f"text_encoder{end}", None))
        ]
        return cls(
            tuple(int(getattr(encoder.config, "hidden_size", 512)) for _, _, encoder in there),
            tuple(part for part, _, _ in there),
            min(int(tokenizer.model_max_length) for _, tokenizer, _ in there) - 2,
        )


@dataclass(frozen=True, slots=True)
class Inversion:
    """A word and its vectors (n, width), for each encoder, in fp32."""

    name: str
    hash: str
    vectors: tuple[torch.Tensor, ...] = field(repr=False)

    @property
    def size(self) -> int:
        """Tokens that it takes."""
        return len(self.vectors[0])

    @property
    def described(self) -> Embedding:
        return Embedding(self.name, self.hash, self.size)


def find(folder: Path | None, encoders: Encoders) -> list[Inversion]:
    """The textual inversions for a model in a folder and those in it, by name; what cannot be read is logged.

    Raises:
        ValueError: there is no such folder.
    """
    if folder is None:
        return []
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ValueError(f"T2I_EMBEDDINGS={folder}: there is no such folder")
    found: dict[str, Inversion] = {}
    # Of two files of one name that which can hold nothing but numbers.
    files = (path for path in folder.rglob("*") if path.suffix in (SAFE, *PICKLED))
    for path in sorted(files, key=lambda path: (path.suffix != SAFE, str(path))):
        if path.is_file() and path.stem.lower() not in found:
            told = path.stat()
            inversion = _known(path, told.st_mtime_ns, told.st_size, encoders)
            if inversion is not None:
                found[path.stem.lower()] = inversion
    return [found[name] for name in sorted(found)]


@lru_cache(maxsize=4096)
def _known(path: Path, changed: int, size: int, encoders: Encoders) -> Inversion | None:
    """A file's inversion, read once: a model is described before it is loaded, and when it is."""
    try:
        return read(path, encoders)
    except Unfit as error:
        logger.warning("the embedding %s is left out: it %s", path, error)
        return None


def read(path: Path, encoders: Encoders) -> Inversion:
    """
    Raises:
        Unfit: it is damaged, no textual inversion, or one for another model.
    """
    name = path.stem
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise Unfit(f"has no name that can be written; at most {MAX_NAME} printed characters")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Unfit(f"is larger than {MAX_BYTES >> 20} MiB, and so no textual inversion")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:_HASH_DIGITS]
        tensors = _tensors(path)
    except OSError as error:
        raise Unfit(f"cannot be read: {error.strerror or error}") from error
    vectors = _chosen(tensors, encoders)
    if len({len(each) for each in vectors}) > 1:
        raise Unfit("has more vectors for one encoder than for the other")
    if not 0 < len(vectors[0]) <= encoders.most:
        raise Unfit(f"has {len(vectors[0])} vectors; at most {encoders.most} fit in a chunk")
    return Inversion(name, digest, tuple(vectors))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name.

    Raises:
        Unfit: it holds something else, or is damaged.
        OSError: it cannot be read.
    """
    try:
        if path.suffix == SAFE:
            read_header(path)
            return dict(load_file(path))
        told = torch.load(path, map_location="cpu", weights_only=True)
    except Unreadable as error:
        raise Unfit(str(error)) from error
    except OSError:
        raise
    except Exception as error:
        # Of damaged files torch and safetensors raise whatever comes to their parsers.
        first = str(error).strip().partition("\n")[0][:200]
        raise Unfit(f"is damaged, or holds more than numbers: {first}") from error
    if isinstance(told, Mapping) and isinstance(told.get("string_to_param"), Mapping):
        told = told["string_to_param"]
    if not isinstance(told, Mapping):
        raise Unfit("is no textual inversion: it holds no tensors by name")
    return {str(key): each for key, each in told.items() if isinstance(each, torch.Tensor)}


def _chosen(tensors: Mapping[str, torch.Tensor], encoders: Encoders) -> Sequence[torch.Tensor]:
    """The vectors (n, width) for each encoder.

    Raises:
        Unfit: there are none that fit.
    """
    if set(encoders.parts) <= set(tensors):
        chosen = [tensors[part] for part in encoders.parts]
    elif len(encoders.widths) == 1 and len(tensors) == 1:
        chosen = [*tensors.values()]
    else:
        names = ", ".join(sorted(tensors)[:4]) or "nothing"
        raise Unfit(f"holds {names}; this model's are one tensor for each text encoder")
    vectors = []
    for given, width in zip(chosen, encoders.widths, strict=True):
        each = given.detach()
        if not each.is_floating_point() or each.layout != torch.strided or each.ndim not in (1, 2):
            raise Unfit("is no textual inversion: its tensors are no vectors")
        each = each.float().reshape(-1, each.shape[-1])
        if each.shape[-1] != width:
            raise Unfit(
                f"is made for another model: {each.shape[-1]} numbers in a vector, not {width}"
            )
        if not each.isfinite().all():
            raise Unfit("holds numbers that are not finite")
        vectors.append(each)
    return vectors
