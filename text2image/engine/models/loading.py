"""From the setting T2I_MODEL to a loaded model: where it lies, which family it is, and what its defaults are."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from text2image.core.messages import ModelInfo, Sampler, Schedule
from text2image.core.samplers import SCHEDULES_OF
from text2image.core.settings import EMBEDDED_MODEL, MAX_SIDE, MODELS, Settings
from text2image.core.validation import MAX_STEPS
from text2image.engine import devices
from text2image.engine.models.contract import Model
from text2image.engine.models.stable_diffusion import StableDiffusion
from text2image.engine.runtimes import openvino
from text2image.engine.runtimes.choice import LEFT_OUT, networks_of
from text2image.engine.samplers.registry import limit_steps, own_sampler
from text2image.engine.samplers.tables import offered

logger = logging.getLogger(__name__)

EMBEDDED_PATH = MODELS / EMBEDDED_MODEL

# Pipelines that a family's file takes apart, by the `_class_name` of their model_index.json.
FAMILIES: dict[str, tuple[str, Any]] = {
    "StableDiffusionPipeline": ("stable-diffusion", StableDiffusion),
    "LatentConsistencyModelPipeline": ("stable-diffusion", StableDiffusion),
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
    family, make = FAMILIES[pipeline_class]
    # Each part's bar would be a line in the log.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    revision = revision_of(folder)
    with devices.device_errors():
        pipeline, networks = networks_of(settings, folder, revision, device, dtype, report)
    info = describe(pipeline, settings, family, revision, device, dtype)
    model: Model = make(pipeline, networks, info, device)
    return model


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
        if path.is_relative_to(folder / openvino.SHIPPED):
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


def describe(
    pipeline: Any,
    settings: Settings,
    family: str,
    revision: str,
    device: torch.device,
    dtype: torch.dtype,
) -> ModelInfo:
    """The model's limits and defaults, as its configuration implies them and the settings override them."""
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    side = int(pipeline.unet.config.sample_size) * scale
    steps, guidance, suited = _defaults(pipeline, settings.model)
    samplers = offered(pipeline.scheduler.config)
    limits = {each: limit_steps(each, pipeline.scheduler.config) for each in samplers}
    return ModelInfo(
        id=_public_name(settings.model),
        revision=revision,
        family=family,
        width=side,
        height=side,
        min_side=min(64, side),
        max_side=settings.max_side or min(2 * side, MAX_SIDE),
        steps=settings.default_steps or steps,
        guidance_scale=guidance
        if settings.default_guidance_scale is None
        else settings.default_guidance_scale,
        sampler=_default_sampler(settings, suited, samplers),
        samplers=samplers,
        schedules=tuple(
            each for each in Schedule if any(each in SCHEDULES_OF[sampler] for sampler in samplers)
        ),
        max_steps=tuple((each, limit) for each, limit in limits.items() if limit < MAX_STEPS),
        max_prompt_tokens=int(pipeline.tokenizer.model_max_length),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
    )


def _default_sampler(settings: Settings, suited: Sampler, samplers: tuple[Sampler, ...]) -> Sampler:
    """The sampler of requests that name none: the one that is set, or else the one that suits the model.

    Raises:
        ValueError: the model cannot be drawn with the one that is set, or with any.
    """
    if not samplers:
        raise ValueError(f"{settings.model} has a scheduler that no sampler here can stand in for")
    if settings.default_sampler is None:
        return suited if suited in samplers else samplers[0]
    if settings.default_sampler not in samplers:
        raise ValueError(
            f"T2I_DEFAULT_SAMPLER is {settings.default_sampler}; {settings.model} is drawn with one of "
            f"{', '.join(samplers)}"
        )
    return settings.default_sampler


def _public_name(model: str) -> str:
    """What clients may know a model by: a hub id, or a folder's name without the way to it."""
    return Path(model).name if Path(model).expanduser().is_dir() else model


def _defaults(pipeline: Any, name: str) -> tuple[int, float, Sampler]:
    """Steps, guidance scale and sampler that suit the model."""
    if pipeline.unet.config.time_cond_proj_dim is not None:
        return 4, 8.5, Sampler.LCM
    if type(pipeline.scheduler).__name__ == "LCMScheduler":
        return 4, 1.0, Sampler.LCM
    if "turbo" in name.lower():
        # Adversarially distilled: few steps, and guidance would burn the picture.
        return 1, 0.0, Sampler.EULER_ANCESTRAL
    if name == EMBEDDED_MODEL:
        return 20, 3.0, Sampler.DPMPP_2M
    return 25, 7.5, own_sampler(pipeline.scheduler.config) or Sampler.DPMPP_2M
