"""Models of the Hugging Face hub: what is read of them first, what is fetched, and why nothing was."""

from __future__ import annotations

import re
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from text2image.core.settings import Settings
from text2image.engine.layouts.folder import INDEX, read_json, variant_among
from text2image.engine.layouts.gguf_file import PART
from text2image.engine.layouts.safety_checker import PARTS as CHECKER
from text2image.engine.models.families import Families
from text2image.engine.preflight.check import family_finding
from text2image.engine.preflight.findings import Finding
from text2image.engine.runtimes.choice import LEFT_OUT

# How the hub names its models.
ID = re.compile(r"[\w.-]+/[\w.-]+")


class NoPipeline(OSError):
    """A model of the hub that is not in diffusers' format."""


# What the hub says of a model that it will not give, in the cache or not.
_REFUSALS = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, NoPipeline)


def fetch(settings: Settings, families: Families) -> Path:
    """The folder of a model in the hub's cache, fetched if need be, without the parts that neither draw nor check.

    Args:
        families: what draws here; of what it does not draw with no weights are fetched.

    Raises:
        OSError: there is none that can be drawn with; the text says why, and what to do.
    """
    if fault := family_fault(settings, families):
        raise OSError(f"T2I_MODEL={settings.model}: {fault}; nothing was fetched")
    left_out = dict(LEFT_OUT)
    if settings.checks:
        for part in CHECKER:
            del left_out[part]
    if settings.transformer is not None:
        # Gigabytes that another file stands in for; of them the configuration alone is needed.
        left_out[PART] = None
    try:
        folder = DiffusionPipeline.download(
            settings.model,
            revision=settings.model_revision,
            variant=_variant(settings),
            **left_out,
        )
        if PART in left_out:
            hf_hub_download(settings.model, f"{PART}/config.json", revision=settings.model_revision)
        return Path(folder)
    except (OSError, ValueError) as error:
        raise OSError(f"T2I_MODEL={settings.model}: {why_not_fetched(error)}") from error


def cached(settings: Settings) -> Path | None:
    """The folder of a model that was fetched before, or None."""
    try:
        return Path(
            snapshot_download(
                settings.model, revision=settings.model_revision, local_files_only=True
            )
        )
    except (OSError, ValueError):
        return None


def family_fault(settings: Settings, families: Families) -> Finding | None:
    """Why a model's pipeline is not drawn with, or None; a few hundred bytes are fetched for it.

    Raises:
        OSError: there is no such model; the text says why.
    """
    try:
        return family_finding(_class_of(settings), families)
    except (OSError, ValueError) as error:
        raise OSError(f"T2I_MODEL={settings.model}: {why_not_fetched(error)}") from error


def _class_of(settings: Settings) -> object:
    model, revision = settings.model, settings.model_revision
    try:
        # Asked first, since what fetches files tries for half a minute to reach a hub that is not there.
        if INDEX not in _files(settings):
            raise NoPipeline(INDEX)
        path = hf_hub_download(model, INDEX, revision=revision)
    except OSError as error:
        there = try_to_load_from_cache(model, INDEX, revision=revision)
        if isinstance(error, _REFUSALS) or not isinstance(there, str):
            raise
        path = there
    return read_json(Path(path)).get("_class_name")


def _files(settings: Settings) -> list[str]:
    """The files of a model on the hub.

    Raises:
        OSError, ValueError: the hub does not tell.
    """
    try:
        found = HfApi().model_info(settings.model, revision=settings.model_revision)
    except (OSError, ValueError):
        raise
    except Exception as error:
        # The hub's client lets through what its HTTP library raises without a connection.
        raise ConnectionError(str(error)) from None
    return [each.rfilename for each in found.siblings or ()]


def _variant(settings: Settings) -> str | None:
    """The variant to fetch, where a model has no plain weights."""
    try:
        files = _files(settings)
    except OSError:
        # Offline, where nothing is fetched.
        return None
    parts: dict[str, list[str]] = {}
    for part, _, name in (file.rpartition("/") for file in files):
        parts.setdefault(part, []).append(name)
    return variant_among(parts.values())


def why_not_fetched(error: Exception) -> str:
    """Why the hub gave nothing, and what to do. What diffusers raises tells it in its cause, if at all."""
    told = isinstance(error, (*_REFUSALS, OfflineModeIsEnabled, HFValidationError))
    match error if told else error.__cause__ or error:
        case HFValidationError():
            return "is neither a folder that is there nor an id of the hub, as in owner/name"
        case NoPipeline():
            return (
                f"this model of the hub has no {INDEX}, so it is not in diffusers' format; a checkpoint in a single "
                "file can be fetched by hand: set T2I_MODEL to its path"
            )
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
