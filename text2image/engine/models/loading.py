"""From the setting T2I_MODEL to a loaded model: where it lies, and which family loads it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from text2image.core.model_names import SUFFIXES, is_single_file, name_of
from text2image.core.settings import EMBEDDED_MODEL, MODELS, Safety, Settings
from text2image.engine import devices
from text2image.engine.layouts.folder import INDEX, WEIGHTS, files_of, read_json
from text2image.engine.layouts.gguf_file import lay_around
from text2image.engine.layouts.headers import Unreadable
from text2image.engine.layouts.safety_checker import checker_bytes
from text2image.engine.layouts.single_file import lay_out
from text2image.engine.layouts.sizes import weight_bytes
from text2image.engine.models import (
    flux,
    general,
    hub,
    safety,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from text2image.engine.models.contract import Model
from text2image.engine.models.families import Families
from text2image.engine.models.safety import CheckedModel
from text2image.engine.models.weights import bytes_on_device
from text2image.engine.preflight.check import REFINER, family_finding, require_usable
from text2image.engine.preflight.findings import Finding
from text2image.engine.runtimes import SHIPPED
from text2image.engine.runtimes.choice import saving_of
from text2image.engine.runtimes.quantize import PLAIN, Saving
from text2image.engine.runtimes.tiling import WHOLE, Tiles, tiles_for

logger = logging.getLogger(__name__)

EMBEDDED_PATH = MODELS / EMBEDDED_MODEL


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files, and how a family is to load them.

    Attributes:
        folder: a diffusers pipeline, with its model_index.json.
        revision: what the model's `info` tells of these files.
        settings: whose defaults go before the model's own.
        report: told in words what is being done.
        refiner: of a second network that the model hands its pictures to.
        saving: how it is made to fit.
        weights: bytes of them that the device holds at once.
        tiles: how pictures are decoded.
    """

    folder: Path
    revision: str
    settings: Settings
    device: torch.device
    dtype: torch.dtype
    report: Callable[[str], None]
    refiner: Checkpoint | None = None
    saving: Saving = PLAIN
    weights: int = 0
    tiles: Tiles = WHOLE

    @property
    def name(self) -> str:
        """What clients may know the model by."""
        return name_of(self.settings.model)


# What loads a pipeline, in the engine's thread, by the `_class_name` of its model_index.json.
FAMILIES = Families(
    {
        "StableDiffusionPipeline": stable_diffusion.load,
        "LatentConsistencyModelPipeline": stable_diffusion.load,
        "StableDiffusionInpaintPipeline": stable_diffusion.load,
        "StableDiffusionXLPipeline": stable_diffusion_xl.load,
        "StableDiffusionXLInpaintPipeline": stable_diffusion_xl.load,
        "StableDiffusion3Pipeline": stable_diffusion_3.load,
        "FluxPipeline": flux.load,
    },
    general.load,
)
# What a model may hand its pictures to.
_REFINERS = Families({REFINER: stable_diffusion_xl.load}, general.load)
# Raise it when the same request to the same model gives another picture than before: it is part of the revision, and so
# of the cache's keys, and runners that draw otherwise are told apart in the middle of an upgrade.
ARITHMETIC = 2
# Files that the revision changes with.
_REVISED = {".json", ".txt", *WEIGHTS}
# It reads those up to this many bytes whole. Of larger ones, whose gigabytes would delay every start, it reads a block
# at every stride: a part of the weights that changed is hardly ever smaller than a stride.
_WHOLE_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 14
_STRIDE_BYTES = 1 << 18


def load_model(
    settings: Settings, index: int, report: Callable[[str], None], *, beside: bool = False
) -> Model:
    """Loads what the settings name onto device number `index`. Called in the engine's thread, or beside it.

    Args:
        report: told in words what is being done.
        beside: the calling thread only loads; the engine's is at work meanwhile.

    Raises:
        ValueError: the folder holds no pipeline of a known family, or not all of it, or the device is not there.
        OSError: the folder or hub model does not exist or cannot be read.
    """
    device = devices.pick_device(settings.device, index)
    dtype = devices.pick_dtype(device, settings.dtype)
    # Another team of threads that compute would stall the engine's.
    threads = 1 if beside else devices.computing_threads(settings)
    devices.prepare_thread(device, threads)
    report(f"loading {settings.model} on {device}")
    folder = locate(settings, report)
    second = refiner_of(settings, device, dtype, report)
    more = weight_bytes(second.folder, dtype.itemsize) if second else 0
    require_usable(settings, folder, FAMILIES, device, dtype, beside=more)
    checkpoint, load = checkpoint_of(settings, folder, device, dtype, report)
    # Each part's bar would be a line in the log.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    model = load(checkpoint)
    checker = safety.load(folder, device, dtype) if settings.checks else None
    return CheckedModel(model, checker) if checker else model


def checkpoint_of(
    settings: Settings,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[str], None],
) -> tuple[Checkpoint, Callable[[Checkpoint], Model]]:
    """What the settings make of a pipeline's folder, and what loads it.

    Raises:
        ValueError, OSError: no family draws with it, the settings do not go together, or a file cannot be read.
    """
    load = family_of(settings, folder)
    second = refiner_of(settings, device, dtype, report)
    if second and load is not stable_diffusion_xl.load:
        raise ValueError(f"T2I_REFINER goes with SDXL, and {settings.model} is another model")
    saving = saving_of(settings, device, by_itself=load is general.load)
    weights = bytes_on_device(settings.model, folder, dtype, saving)
    weights += weight_bytes(second.folder, dtype.itemsize) if second else 0
    weights += checker_bytes(folder, dtype.itemsize) if settings.checks else 0
    upcast = load is stable_diffusion_xl.load and dtype == torch.float16
    tiles = _tiles(settings, folder, device, weights, dtype, upcast=upcast)
    revision = revision_of(folder)
    checkpoint = Checkpoint(
        folder, revision, settings, device, dtype, report, second, saving, weights, tiles
    )
    return checkpoint, load


def _tiles(
    settings: Settings,
    folder: Path,
    device: torch.device,
    weights: int,
    dtype: torch.dtype,
    *,
    upcast: bool,
) -> Tiles:
    """
    Args:
        upcast: whether an autoencoder that asks for it (`force_upcast`) computes in fp32.
    """
    file = folder / "vae" / "config.json"
    if not file.is_file():
        return WHOLE
    config = read_json(file)
    total = devices.total_memory(device)
    room = None if total is None else int(total * (1 - settings.memory_reserve)) - weights
    # So it is where a configuration does not say.
    bytes_each = 4 if upcast and config.get("force_upcast", True) else dtype.itemsize
    return tiles_for(config, settings.tile_above, room, bytes_each)


def refiner_of(
    settings: Settings, device: torch.device, dtype: torch.dtype, report: Callable[[str], None]
) -> Checkpoint | None:
    """Where the model's refiner lies, if the settings name one; its files were looked at.

    Raises:
        ValueError, OSError: it is none, cannot be read or is broken, or the model is not SDXL.
    """
    if settings.refiner is None:
        return None
    own = {"model": settings.refiner, "model_revision": None, "transformer": None, "refiner": None}
    # What it draws goes through the model's own decoder and checker.
    settings_of = settings.model_copy(update=own | {"safety": Safety.OFF})
    try:
        folder = locate(settings_of, report, _REFINERS)
        named = read_json(folder / INDEX).get("_class_name")
        if named != REFINER:
            raise ValueError(f"T2I_MODEL={settings.refiner}: it is a {named}, and no {REFINER}")
        require_usable(settings_of, folder, _REFINERS, device, dtype)
    except (OSError, ValueError) as error:
        raise ValueError(str(error).replace("T2I_MODEL=", "T2I_REFINER=", 1)) from error
    return Checkpoint(folder, revision_of(folder), settings_of, device, dtype, report)


def family_of(settings: Settings, folder: Path) -> Callable[[Checkpoint], Model]:
    """What loads the pipeline in this folder.

    Raises:
        ValueError: no family here draws with its kind.
    """
    named = read_json(folder / INDEX).get("_class_name")
    loader = FAMILIES.loader_of(named)
    if loader is None:
        raise ValueError(f"{settings.model}: {family_finding(named, FAMILIES)}")
    return loader


def locate(
    settings: Settings,
    report: Callable[[str], None],
    families: Families | None = None,
) -> Path:
    """The folder of the model: one beside the code, another local one, one around a single file, or what the hub has,
    fetched if need be. Where the settings name a file for its transformer, a folder of links with that.

    Args:
        families: the classes of pipelines that are fetched; if left out those that are drawn with.

    Raises:
        OSError: there is none that can be drawn with; the text says why, and what to do.
    """
    folder = _own_folder(settings, report, FAMILIES if families is None else families)
    if settings.transformer is None:
        return folder
    try:
        root = settings.cache_root / "transformers"
        return lay_around(settings.transformer.expanduser(), folder, root)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        named = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise OSError(f"T2I_TRANSFORMER={settings.transformer}: {reason}{named}") from error


def _own_folder(settings: Settings, report: Callable[[str], None], families: Families) -> Path:
    if local := settings.local_model:
        return local
    if settings.model == EMBEDDED_MODEL:
        raise OSError(
            f"T2I_MODEL={EMBEDDED_MODEL}: this Bento was built with another model; unset T2I_MODEL to draw with that"
        )
    if is_single_file(settings.model):
        try:
            root = settings.cache_root / "single-files"
            return lay_out(Path(settings.model).expanduser(), root, report)
        except Unreadable as error:
            raise OSError(f"T2I_MODEL={settings.model} {error}") from error
        except OSError as error:
            # Of the file itself, or of the folder that is made around it.
            named = f" ({error.filename})" if error.filename else ""
            reason = f"{error.strerror or error}{named}"
            raise OSError(f"T2I_MODEL={settings.model}: {reason}") from error
    if Path(settings.model).expanduser().is_dir() or settings.model.startswith((".", "/", "~")):
        raise OSError(f"T2I_MODEL={settings.model}: {_why_no_folder(settings.model)}")
    report(f"looking for {settings.model} in the cache and on the Hugging Face hub")
    return hub.fetch(settings, families)


def _why_no_folder(model: str) -> str:
    reason = f"there is no {INDEX} in this folder"
    try:
        names = sorted(path.name for path in Path(model).expanduser().iterdir())
    except OSError:
        return reason
    files = [name for name in names if name.endswith(SUFFIXES)]
    return f"{reason}; name a file in it: {files[0]}" if files else reason


def find(settings: Settings, report: Callable[[str], None]) -> Path | Finding:
    """The model's folder as `locate` finds it, but nothing is fetched: of a hub model that is not in the cache, whether
    it is of a family that is drawn with.

    Raises:
        OSError: as `locate` says.
    """
    on_disk = settings.local_model or is_single_file(settings.model)
    if on_disk or not hub.ID.fullmatch(settings.model):
        return locate(settings, report)
    return (
        hub.cached(settings)
        or hub.family_fault(settings, FAMILIES)
        or Finding(settings.model, "is not fetched yet; its files were not looked at", fatal=False)
    )


def revision_of(folder: Path) -> str:
    """Twelve hex digits that change with the configuration, the weights, or the commit of a model from the hub.

    They change too with how pictures are computed here.
    """
    digest = hashlib.sha256(f"arithmetic {ARITHMETIC}\n".encode())
    if folder.parent.name == "snapshots":
        digest.update(f"{folder.name}\n".encode())
    for path in sorted(files_of(folder)):
        if path.suffix not in _REVISED or not path.is_file():
            continue
        if path.is_relative_to(folder / SHIPPED):
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size}\n".encode())
        with path.open("rb", buffering=0) as file:
            if size <= _WHOLE_BYTES:
                digest.update(file.readall())
                continue
            for start in (*range(0, size, _STRIDE_BYTES), size - _BLOCK_BYTES):
                file.seek(start)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:12]
