"""Every number of a model's weights: whether it is one. This reads the files whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from text2image.engine.layouts.folder import GGUF
from text2image.engine.layouts.headers import Unreadable, load_pickle
from text2image.engine.preflight.files import Files, all_headers
from text2image.engine.preflight.findings import Finding, listed


def check_finite(files: Files) -> None:
    """Tells in `files` of weights with numbers that are infinite or none (NaN)."""
    for place, _ in all_headers(files):
        try:
            broken = [
                name for name, tensor in _tensors(files.folder / place) if not _is_finite(tensor)
            ]
        except (OSError, SafetensorError, Unreadable) as error:
            files.findings.append(Finding(place, f"cannot be read whole ({error})"))
            continue
        if broken:
            what = f"holds NaN or infinite numbers in {len(broken)} parameters: {listed(broken)}"
            files.findings.append(Finding(place, f"{what}; fetch or train them again"))


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if path.suffix == GGUF:
        from gguf import GGUFReader, dequantize

        for each in GGUFReader(path).tensors:
            yield each.name, torch.from_numpy(dequantize(each.data, each.tensor_type).copy())
        return
    if path.suffix != ".safetensors":
        yield from load_pickle(path).items()
        return
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, it is no dict
            yield name, file.get_tensor(name)


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    if tensor.itemsize == 1:
        tensor = tensor.float()
    # The sum of finite numbers is finite in double precision, and takes no second array of the same size.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float64)))
