"""The models that T2I_MODELS names: a folder of models, a list of them, or a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from text2image.core.loras import is_writable
from text2image.core.messages import Sampler
from text2image.core.model_names import is_single_file, name_of
from text2image.core.samplers import sampler_of
from text2image.core.upscalers import PREFIX, SUFFIXES

if TYPE_CHECKING:
    from text2image.core.settings import Settings

INDEX = "model_index.json"
MAX_NAME = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model by its name.

    Attributes:
        source: a folder in diffusers' format, a checkpoint in a single file, or an id of the Hugging Face hub.
        price: what its pixel-steps count against the limits of callers.
        changes: settings that this model has otherwise than the others, by their names.
        stamp: changes with the files of a folder.
    """

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    licence: str = ""
    price: float = 1.0
    changes: tuple[tuple[str, Any], ...] = ()
    stamp: int = 0

    def applied_to(self, settings: Settings) -> Settings:
        """The settings that this model is loaded with."""
        # What names a part of the default model is no other's.
        own = {"model": self.source, "model_revision": None, "transformer": None, "refiner": None}
        own |= dict(self.changes)
        return settings.model_copy(update=own)


class _Table(BaseModel):
    """What a TOML file says of a model; what it leaves out is as the settings have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    aliases: tuple[str, ...] = ()
    licence: str = ""
    price: float = Field(1.0, gt=0, le=1000)
    steps: int | None = Field(None, ge=1, le=150)
    guidance_scale: float | None = Field(None, ge=0, le=30)
    true_cfg_scale: float | None = Field(None, gt=1, le=30)
    sampler: Annotated[
        Sampler | None, BeforeValidator(lambda name: sampler_of(str(name)) or name)
    ] = None
    max_side: int | None = Field(None, ge=64, le=4096)
    precision: Literal["auto", "float32", "float16", "bfloat16"] | None = None
    quantize: Literal["none", "int8", "fp8", "nf4"] | None = None
    offload: Literal["none", "model", "sequential"] | None = None
    tile_above: int | None = Field(None, ge=0, le=4096)
    revision: str | None = None
    transformer: str | None = Field(None, min_length=1)
    refiner: str | None = Field(None, min_length=1)
    refiner_switch: float | None = Field(None, gt=0, lt=1)
    loras: Path | None = None
    controlnets: Path | None = None
    clip_skip: int | None = Field(None, ge=1, le=64)
    embeddings: str | None = Field(None, min_length=1)


# What these are called among the settings.
_SETTINGS = {
    "steps": "default_steps",
    "guidance_scale": "default_guidance_scale",
    "true_cfg_scale": "true_cfg_scale",
    "sampler": "default_sampler",
    "max_side": "max_side",
    "precision": "dtype",
    "quantize": "quantize",
    "offload": "offload",
    "tile_above": "tile_above",
    "revision": "model_revision",
    "refiner_switch": "refiner_switch",
    "loras": "loras",
    "clip_skip": "default_clip_skip",
}


def find_entries(setting: str | None) -> dict[str, Entry]:
    """The models by name, as they are on disk now, in the order in which they are named.

    Raises:
        ValueError: nothing is there, or it cannot be understood; the text says what.
        OSError: a file cannot be read.
    """
    if not setting:
        return {}
    path = Path(setting).expanduser()
    if path.suffix == ".toml":
        entries = _in_file(path)
    elif path.is_dir() and not (path / INDEX).is_file():
        there = sorted(each for each in path.iterdir() if _is_model(each))
        entries = [_entry(name_of(str(each)), str(each)) for each in there]
    elif "," not in setting and "=" not in setting and setting.startswith((".", "/", "~")):
        if not path.exists():
            raise ValueError("there is no such folder")
        entries = [_entry(name_of(setting), str(path))]
    else:
        entries = [_listed(item.strip()) for item in setting.split(",") if item.strip()]
    _require_distinct(entries)
    return {entry.name: entry for entry in entries}


def default_entry(settings: Settings) -> Entry:
    """The model that T2I_MODEL names, which may be one of T2I_MODELS.

    Raises:
        ValueError, OSError: as `find_entries` says.
    """
    named = settings.model
    if entry := find_entries(settings.models).get(named):
        return _with_aliases(entry, settings)
    own: tuple[tuple[str, Any], ...] = (("model_revision", settings.model_revision),)
    parts = []
    if settings.transformer:
        parts.append(settings.transformer.expanduser())
        own += (("transformer", parts[-1]),)
    if settings.refiner:
        parts.append(Path(settings.refiner).expanduser())
        own += (("refiner", settings.refiner),)
    entry = _entry(name_of(named), named, changes=own, parts=parts)
    return _with_aliases(entry, settings)


def all_entries(settings: Settings) -> dict[str, Entry]:
    """The default model, first, and those of T2I_MODELS that have other names.

    Raises:
        ValueError, OSError: as `find_entries` says.
    """
    default = default_entry(settings)
    others = {
        name: _with_aliases(entry, settings)
        for name, entry in find_entries(settings.models).items()
        if name != default.name
    }
    return {default.name: default} | others | upscaler_entries(settings)


def upscaler_entries(settings: Settings) -> dict[str, Entry]:
    """The upscalers of T2I_UPSCALERS, which are as models are but for the prefix of their names.

    Raises:
        OSError: the folder cannot be read.
    """
    if settings.upscalers is None:
        return {}
    entries: dict[str, Entry] = {}
    for path in sorted(settings.upscalers.expanduser().iterdir()):
        name = PREFIX + path.stem
        fits = is_writable(path.stem) and "[" not in path.stem and len(name) <= MAX_NAME
        if path.suffix in SUFFIXES and fits and path.is_file() and not path.name.startswith("."):
            # Of two files of one name the first is taken, which is the .pth; they are mostly the same.
            entries.setdefault(name, _entry(name, str(path)))
    return entries


def parse_aliases(text: str) -> dict[str, str]:
    """Models by their further names, as T2I_MODEL_ALIASES has them: `dall-e-3=sdxl,gpt-image-1=sdxl`.

    Raises:
        ValueError: the text is none of that; the message says what is wrong.
    """
    aliases: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        alias, named, model = (part.strip() for part in item.partition("="))
        if not (alias and named and model):
            raise ValueError(
                f"{item!r} is no alias; write ALIAS=MODEL, several with commas between"
            )
        _require_name(alias)
        if alias in aliases:
            raise ValueError(f"{alias!r} is named twice")
        aliases[alias] = model
    return aliases


def _with_aliases(entry: Entry, settings: Settings) -> Entry:
    """A model with the names that T2I_MODEL_ALIASES gives it; it may be called there by any of its own."""
    own = {entry.name, entry.source, *entry.aliases}
    more = [
        alias
        for alias, model in parse_aliases(settings.model_aliases or "").items()
        if model in own and alias not in own
    ]
    return replace(entry, aliases=(*entry.aliases, *more))


def _is_model(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return (path / INDEX).is_file() or (path.is_file() and is_single_file(str(path)))


def _listed(item: str) -> Entry:
    """A model of a list: NAME=FOLDER, a folder, which is its name, or a hub id."""
    name, named, source = item.partition("=")
    if not named:
        source = item
        name = name_of(item)
    if not name.strip() or not source.strip():
        raise ValueError(f"{item!r} is no model; write NAME=FOLDER, a folder, or owner/name")
    return _entry(name.strip(), source.strip())


def _in_file(path: Path) -> list[Entry]:
    """Models of a TOML file, each in a table `[models.NAME]`; paths are relative to the file's folder."""
    try:
        tables = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    if set(tables) - {"models"} or not isinstance(tables.get("models"), dict):
        raise ValueError(f"{path} must hold a table [models.NAME] for each model, and no others")
    entries = []
    for name, values in tables["models"].items():
        try:
            table = _Table.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the table"
            raise ValueError(f"{path}: [models.{name}] {field}: {first['msg']}") from None
        beside = path.parent / Path(table.path).expanduser()
        changes: dict[str, Any] = {
            setting: getattr(table, field)
            for field, setting in _SETTINGS.items()
            if getattr(table, field) is not None
        }
        parts = []
        if table.refiner:
            refiner = path.parent / Path(table.refiner).expanduser()
            changes["refiner"] = str(refiner) if refiner.exists() else table.refiner
            parts.append(refiner)
        if table.transformer:
            changes["transformer"] = path.parent / Path(table.transformer).expanduser()
            parts.append(changes["transformer"])
        if table.loras:
            changes["loras"] = path.parent / table.loras.expanduser()
        if table.controlnets:
            changes["controlnets"] = path.parent / table.controlnets.expanduser()
        if table.embeddings is not None:
            changes["embeddings"] = path.parent / Path(table.embeddings).expanduser()
        entries.append(
            _entry(
                name,
                str(beside) if beside.exists() else table.path,
                aliases=table.aliases,
                licence=table.licence,
                price=table.price,
                changes=tuple(changes.items()),
                parts=parts,
            )
        )
    return entries


def _entry(name: str, source: str, *, parts: Iterable[Path] = (), **more: Any) -> Entry:
    stamp = _stamp(Path(source).expanduser(), *parts)
    return Entry(name=name, source=source, stamp=stamp, **more)


def _stamp(*sources: Path) -> int:
    """A number that changes when a model's file does, or one of its folders', or comes, or goes."""
    files = []
    for path in (each for source in sources for each in _files_of(source)):
        try:
            told = path.stat()
        except OSError:
            # It is being replaced just now, or none of a disk.
            continue
        files.append((str(path), told.st_size, told.st_mtime_ns))
    return hash(tuple(files))


def _files_of(source: Path) -> list[Path]:
    return sorted(source.rglob("*")) if source.is_dir() else [source]


def _require_name(name: str) -> None:
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"{name[:80]!r} is no name; at most {MAX_NAME} printed characters")


def _require_distinct(entries: list[Entry]) -> None:
    known: set[str] = set()
    for entry in entries:
        for name in (entry.name, *entry.aliases):
            _require_name(name)
            if name in known:
                raise ValueError(f"{name!r} names two models")
            known.add(name)
