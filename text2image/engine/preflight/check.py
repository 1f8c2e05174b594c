"""All checks of one model, in the order in which what they need is known."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from text2image.core.settings import Settings
from text2image.engine.layouts.folder import INDEX
from text2image.engine.layouts.safety_checker import checker_bytes
from text2image.engine.models.families import Families
from text2image.engine.preflight.files import Files
from text2image.engine.preflight.findings import Finding, summary
from text2image.engine.preflight.finite import check_finite
from text2image.engine.preflight.fitting import (
    check_checker,
    check_device,
    check_fit,
    check_parts,
    check_saving,
    check_scheduler,
)
from text2image.engine.preflight.networks import build_networks, check_types, compare
from text2image.engine.runtimes.choice import saving_of
from text2image.engine.runtimes.quantize import PLAIN

logger = logging.getLogger(__name__)

# The pipeline that SDXL's refiner is published as.
REFINER = "StableDiffusionXLImg2ImgPipeline"


def check(
    folder: Path,
    families: Families,
    device: torch.device,
    dtype: torch.dtype,
    *,
    settings: Settings | None = None,
    deep: bool = False,
    beside: int = 0,
) -> list[Finding]:
    """What is wrong with a pipeline's folder; the first finding is told first.

    Args:
        families: what draws here.
        settings: how the model is to be made to fit; as it is if left out.
        deep: whether weights are read whole, to find what is no number in them.
        beside: bytes of weights that are loaded besides.

    Raises:
        ValueError: what the settings ask for does not go together.
    """
    files = Files(folder)
    if files.index and (finding := family_finding(files.index.get("_class_name"), families)):
        # What its parts should be, nobody here knows.
        return [finding]
    check_parts(files)
    check_types(files)
    networks = build_networks(files)
    compare(files, networks)
    is_known = files.index.get("_class_name") in families.own
    if is_known:
        # Families that take the steps themselves list their classes; all others step with their own scheduler.
        check_scheduler(files)
    check_fit(files, networks)
    saving = saving_of(settings, device, by_itself=not is_known) if settings else PLAIN
    if settings and settings.checks:
        check_checker(files, settings)
        beside += checker_bytes(folder, dtype.itemsize)
    check_device(files, networks, device, dtype, saving, beside)
    if settings:
        check_saving(files, device, dtype, saving, settings.offload)
    if deep:
        check_finite(files)
    return files.findings


def family_finding(named: object, families: Families) -> Finding | None:
    """Why a pipeline of this class is not drawn with, or None."""
    if families.loader_of(named):
        return None
    if not isinstance(named, str):
        return Finding(INDEX, "names no pipeline class (_class_name)")
    if named == REFINER:
        what = f"it is a {named}, as SDXL's refiner is, which draws from a picture; name the base model, and this one"
        return Finding(INDEX, f"{what} as its refiner (T2I_REFINER)")
    drawn = (
        f"{', '.join(families.own)}, and whatever else in diffusers makes a picture of a text alone"
    )
    return Finding(INDEX, f"it is a {named}; this server draws with {drawn}")


def require_usable(
    settings: Settings,
    folder: Path,
    families: Families,
    device: torch.device,
    dtype: torch.dtype,
    *,
    beside: int = 0,
) -> None:
    """Does nothing if a model can be served.

    Args:
        beside: bytes of weights that are loaded besides.

    Raises:
        ValueError: with one line of what is wrong, file by file.
    """
    findings = check(folder, families, device, dtype, settings=settings, beside=beside)
    for finding in findings:
        if not finding.fatal:
            logger.warning("%s: %s", settings.model, finding)
    if any(finding.fatal for finding in findings):
        raise ValueError(summary(settings.model, findings))
