"""The safety checker that a pipeline's folder may have: published Stable Diffusion brings one. No torch is needed here.

safety_checker/config.json                        a StableDiffusionSafetyChecker
feature_extractor/preprocessor_config.json        how pictures are prepared for it
"""

from __future__ import annotations

from pathlib import Path

from text2image.engine.layouts.folder import INDEX, read_json, variant_among, weights_of
from text2image.engine.layouts.sizes import part_bytes

CHECKER, EXTRACTOR = PARTS = ("safety_checker", "feature_extractor")
# What diffusers' pipelines of Stable Diffusion call it.
_KIND = "StableDiffusionSafetyChecker"
_FILES = (f"{CHECKER}/config.json", f"{EXTRACTOR}/preprocessor_config.json")


def why_unchecked(folder: Path) -> str | None:
    """Why a pipeline's pictures cannot be checked by its own checker, or None.

    Raises:
        OSError, ValueError: its model_index.json, or the index of the checker's shards, cannot be read.
    """
    named = read_json(folder / INDEX).get(CHECKER)
    if not isinstance(named, list) or len(named) != 2 or not named[1]:
        return "the model has no safety checker"
    if named[1] != _KIND:
        return f"the model's safety checker is of the class {named[1]}, and only {_KIND} is known here"
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    part = folder / CHECKER
    if not all(path.is_file() for path in weights_of(part, variant(folder)) or [part]):
        return f"weights of {CHECKER} are missing"
    return None


def variant(folder: Path) -> str | None:
    """The variant to load the checker by: which precision it is there in, where that is not the plain one."""
    return variant_among([[path.name for path in (folder / CHECKER).iterdir()]])


def checker_bytes(folder: Path, bytes_each: int) -> int:
    """Bytes of the checker's weights with so many for each number; 0 where it cannot be used."""
    return 0 if why_unchecked(folder) else part_bytes(folder / CHECKER, bytes_each)
