"""`python -m text2image check [MODEL]`: what is wrong with a model, told before a server is started with it.

One line for each thing that it finds goes to standard output. The exit status is 0 for a model that can be served, 1
for one that cannot. A server looks for the same when it starts, but for numbers that are none, for which all weights
are read here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from text2image.core.catalogue import upscaler_entries
from text2image.core.extras import require_extra
from text2image.core.settings import Settings, get_settings
from text2image.engine.lazy import hush

if TYPE_CHECKING:
    from text2image.engine.preflight.findings import Finding


def main(arguments: Sequence[str]) -> int:
    """The exit status of the command.

    Raises:
        SystemExit: help was asked for, or an option is unknown, or a setting has a value that it does not take.
    """
    given = _parser().parse_args(arguments)
    settings = get_settings()
    if given.model:
        others = {"transformer": None, "refiner": None}
        settings = settings.model_copy(update={"model": given.model, **others})
    try:
        findings = findings_of(settings, deep=not given.headers_only)
    except (OSError, ValueError) as error:
        print(error)
        return 1
    for finding in findings:
        print(finding if finding.fatal else f"note: {finding}")
    faults = sum(finding.fatal for finding in findings)
    verdict = f"cannot be served, for the {faults} above" if faults else "no fault was found"
    print(f"{settings.model}: {verdict}", file=sys.stderr)
    return 1 if faults else 0


def findings_of(settings: Settings, *, deep: bool) -> list[Finding]:
    """What is found of the model of the settings; one that is still on the hub is not fetched for it.

    Raises:
        OSError: there is no such model, or none that is read here; the text says why.
        ValueError: the settings name a device that is not there.
    """
    hush()
    # Here, since it imports torch, which takes seconds.
    from diffusers.utils import logging as diffusers_logging

    from text2image.engine import devices
    from text2image.engine.layouts.sizes import weight_bytes
    from text2image.engine.models.loading import FAMILIES, find, refiner_of
    from text2image.engine.preflight.check import check
    from text2image.engine.preflight.findings import Finding

    diffusers_logging.set_verbosity_error()
    device = devices.pick_device(settings.device)
    dtype = devices.pick_dtype(device, settings.dtype)
    folder = find(settings, lambda detail: print(detail, file=sys.stderr))
    if not isinstance(folder, Path):
        return [folder]
    found, beside = [], 0
    try:
        if second := refiner_of(settings, device, dtype, lambda detail: None):
            beside = weight_bytes(second.folder, dtype.itemsize)
    except ValueError as error:
        found.append(Finding("T2I_REFINER", str(error)))
    found += _of_upscalers(settings)
    return (
        check(folder, FAMILIES, device, dtype, settings=settings, deep=deep, beside=beside) + found
    )


def _of_upscalers(settings: Settings) -> list[Finding]:
    """What is wrong with upscalers, without which the model is served all the same."""
    from text2image.engine.preflight.findings import Finding

    if not settings.upscalers:
        return []
    require_extra("upscale", "T2I_UPSCALERS")
    from text2image.engine.upscalers.files import NotAnUpscaler, read

    found = []
    for entry in upscaler_entries(settings).values():
        path = Path(entry.source)
        try:
            read(path)
        except (NotAnUpscaler, OSError) as error:
            found.append(Finding(path.name, str(error), fatal=False))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m text2image check",
        description="Tells what keeps a model from being served.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder in diffusers format, a checkpoint in a single file, or an id on the hub; T2I_MODEL if not named",
    )
    parser.add_argument(
        "--headers-only",
        action="store_true",
        help="do not read the weights whole, to find what is no number in them",
    )
    return parser
