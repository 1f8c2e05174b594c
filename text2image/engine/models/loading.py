"""From the setting T2I_MODEL to a loaded model: where it lies, and which family loads it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging as transformers_logging

from text2image.core.settings import EMBEDDED_MODEL, MODELS, Settings
from text2image.engine import devices
from text2image.engine.models import flux, stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from text2image.engine.models.contract import Model
from text2image.engine.runtimes import SHIPPED
from text2image.engine.runtimes.choice import LEFT_OUT

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
    """

    folder: Path
    revision: str
    settings: Settings
    device: torch.device
    dtype: torch.dtype
    report: Callable[[str], None]

    @property
    def name(self) -> str:
        """What clients may know the model by: a hub id, or a folder's name without the way to it."""
        model = self.settings.model
        return Path(model).name if Path(model).expanduser().is_dir() else model


# What loads a pipeline, in the engine's thread, by the `_class_name` of its model_index.json.
FAMILIES: dict[str, Callable[[Checkpoint], Model]] = {
    "StableDiffusionPipeline": stable_diffusion.load,
    "LatentConsistencyModelPipeline": stable_diffusion.load,
    "StableDiffusionXLPipeline": stable_diffusion_xl.load,
    "StableDiffusion3Pipeline": stable_diffusion_3.load,
    "FluxPipeline": flux.load,
}
# Raise it when the same request to the same model gives another picture than before: it is part of the revision, and so
# of the cache's keys, and runners that draw otherwise are told apart in the middle of an upgrade.
ARITHMETIC = 2
# The revision reads files up to this many bytes whole. Of larger ones, whose gigabytes would delay every start, it
# reads a block at every stride: a part of the weights that changed is hardly ever smaller than a stride.
_WHOLE_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 14
_STRIDE_BYTES = 1 << 18


def load_model(settings: Settings, index: int, report: Callable[[str], None]) -> Model:
    """Loads what the settings name onto device number `index`. Called in the engine's thread.

    Args:
        report: told in words what is being done.

    Raises:
        ValueError: the folder holds no pipeline of a known family, or the device is not there.
        OSError: the folder or hub model does not exist or cannot be read.
    """
    device = devices.pick_device(settings.device, index)
    dtype = devices.pick_dtype(device, settings.dtype)
    devices.prepare_thread(device, settings.threads, sharers=max(1, settings.runner_workers))
    report(f"loading {settings.model} on {device}")
    folder = locate(settings, report)
    pipeline_class = json.loads((folder / "model_index.json").read_text())["_class_name"]
    if pipeline_class not in FAMILIES:
        raise ValueError(
            f"{settings.model} is a {pipeline_class}; this server draws with {', '.join(FAMILIES)}"
        )
    # Each part's bar would be a line in the log.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return FAMILIES[pipeline_class](
        Checkpoint(folder, revision_of(folder), settings, device, dtype, report)
    )


def locate(settings: Settings, report: Callable[[str], None]) -> Path:
    """The folder of the model: one beside the code, another local one, or what the hub has, fetched if need be.

    Raises:
        OSError: there is none; the text says why, and what to do.
    """
    if local := settings.local_model:
        return local
    if settings.model == EMBEDDED_MODEL:
        raise OSError(
            f"T2I_MODEL={EMBEDDED_MODEL}: this Bento was built with another model; unset T2I_MODEL to draw with that"
        )
    if Path(settings.model).expanduser().is_dir() or settings.model.startswith((".", "/", "~")):
        raise OSError(f"T2I_MODEL={settings.model}: there is no model_index.json in this folder")
    report(f"looking for {settings.model} in the cache and on the Hugging Face hub")
    try:
        return Path(
            DiffusionPipeline.download(settings.model, revision=settings.model_revision, **LEFT_OUT)
        )
    except (OSError, ValueError) as error:
        raise OSError(f"T2I_MODEL={settings.model}: {why_not_fetched(error)}") from error


def why_not_fetched(error: Exception) -> str:
    """Why the hub gave nothing, and what to do. What diffusers raises tells it in its cause, if at all."""
    match error.__cause__ or error:
        case HFValidationError():
            return "is neither a folder that is there nor an id of the hub, as in owner/name"
        case GatedRepoError():
            return (
                "this model asks for consent; give it on the model's page, and set HF_TOKEN to a "
                "token of yours"
            )
        case RevisionNotFoundError():
            return "the hub has this model without that T2I_MODEL_REVISION"
        case RepositoryNotFoundError():
            return (
                "the hub knows no such model; check the spelling, and set HF_TOKEN if it is private"
            )
        case OfflineModeIsEnabled():
            return (
                "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset that, or set "
                "T2I_MODEL to a folder"
            )
        case cause:
            return (
                f"is not in the cache, and the hub cannot be reached ({cause}); check the network, "
                "or set T2I_MODEL to a folder, or to `embedded`, which needs none"
            )


def revision_of(folder: Path) -> str:
    """Twelve hex digits that change with the configuration, the weights, or the commit of a model from the hub.

    They change too with how pictures are computed here.
    """
    digest = hashlib.sha256(f"arithmetic {ARITHMETIC}\n".encode())
    if folder.parent.name == "snapshots":
        digest.update(f"{folder.name}\n".encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".json", ".safetensors", ".bin", ".txt"} or not path.is_file():
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
