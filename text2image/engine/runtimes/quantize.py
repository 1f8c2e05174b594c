"""Weights in fewer bits, so that a model fits where it would not: int8, fp8 or nf4.

Only weights are: each layer makes of them what it computes with, in the precision of the model, every time. What torch
executes is quantized by torchao (int8 and fp8 with a scale for each row) and bitsandbytes (nf4, Dettmers et al. 2023,
"QLoRA", with a scale for each 64 numbers): the linear layers of the network and of the text encoders, which are nearly
all of a transformer and about half of a U-Net. For OpenVINO `compression.py` writes those of the network in int8.
Autoencoders stay as they are: they are small, and their errors are seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

# What quantizes for torch, by kind.
PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
# Bytes of a number, and numbers that share a scale of four bytes, if that is no row.
_BYTES = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5}
_BLOCK, _ROWS = 64, 32
_SCALE_BYTES = 4
# Parts of a pipeline that stay as they are.
_WHOLE = ("vae", "movq", "vqvae", "vqgan")


@dataclass(frozen=True, slots=True)
class Saving:
    """How a model is made to fit.

    Attributes:
        quantize: `int8`, `fp8`, `nf4` or empty.
        offload: `model`, `sequential` or empty.
        runtime: what executes it.
    """

    quantize: str = ""
    offload: str = ""
    runtime: str = "torch"

    @property
    def is_open(self) -> bool:
        """Whether batches may reach into the network as `open.py` has it, by the same weights as all others.

        Not where weights come and go with calls of the network itself, nor where OpenVINO has them in fewer bits.
        """
        return not self.offload and not (self.quantize and self.runtime == "openvino")

    def revised(self, revision: str) -> str:
        """The revision of weights that are quantized so; their own if they are not."""
        if not self.quantize:
            return revision
        # OpenVINO leaves text encoders as they are.
        by = "openvino" if self.runtime == "openvino" else "torch"
        return hashlib.sha256(f"{revision} {self.quantize} {by}".encode()).hexdigest()[:12]


# As it is, all of it on the device.
PLAIN = Saving()


def is_host(device: torch.device) -> bool:
    """Whether weights on this device are in the host's memory anyway."""
    return device.type in ("cpu", "mps")


def quantize(pipeline: Any, kind: str) -> None:
    """Quantizes the layers of a pipeline whose weights are on the CPU.

    Args:
        kind: a key of `PACKAGES`.

    Raises:
        ImportError: the package is not here.
    """
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and name not in _WHOLE:
            quantize_layers(part, kind)


@torch.no_grad()
def quantize_layers(network: nn.Module, kind: str) -> None:
    """Quantizes the linear layers of a network in place; raises as `quantize` does."""
    if kind == "nf4":
        _to_nf4(network)
        return
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    config = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]
    # What torch.compile does with other models is not this one's to change.
    chosen = {id(layer) for layer in layers_of(network, kind)}
    quantize_(
        network, config(set_inductor_config=False), filter_fn=lambda layer, _: id(layer) in chosen
    )


def _to_nf4(network: nn.Module) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    chosen = {id(layer) for layer in layers_of(network, "nf4")}
    places = [
        (module, name, child)
        for module in network.modules()
        for name, child in module.named_children()
        if id(child) in chosen
    ]
    for module, name, layer in places:
        with torch.device("meta"):
            made = Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=False,
                compute_dtype=layer.weight.dtype,
                quant_type="nf4",
            )
        weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
        # Quantized where it lies, so that the card never holds all of it.
        made.weight, made.bias = weight.to(layer.weight.device), layer.bias
        setattr(module, name, made)


def layers_of(network: nn.Module, kind: str) -> Iterator[nn.Linear]:
    """The layers of a network that torch has quantized."""
    # T5's, in fp16, overflow in any other precision than fp32.
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, layer in network.named_modules():
        if type(layer) is not nn.Linear or any(part in kept for part in name.split(".")):
            continue
        # Kernels of a CPU want blocks that end with a row, and so many rows; what is quantized is the same everywhere.
        if kind != "nf4" or not (layer.in_features % _BLOCK or layer.out_features % _ROWS):
            yield layer


def weight_bytes(networks: Mapping[str, nn.Module], dtype: torch.dtype, saving: Saving) -> int:
    """Bytes of a model's weights as the device holds them at once.

    Args:
        networks: by their names in the pipeline; they need have no weights.
        dtype: of what is not quantized.
    """
    sizes = [_bytes_of(name, network, dtype, saving) for name, network in networks.items()]
    if not sizes:
        return 0
    if saving.offload == "sequential":
        own = (
            sum(each.numel() for each in module.parameters(recurse=False)) * dtype.itemsize
            for network in networks.values()
            for module in network.modules()
        )
        return max(own)
    return int(max(sizes) if saving.offload else sum(sizes))


def _bytes_of(name: str, network: nn.Module, dtype: torch.dtype, saving: Saving) -> float:
    total = float(sum(each.numel() for each in network.state_dict().values()) * dtype.itemsize)
    if not saving.quantize or name in _WHOLE:
        return total
    if saving.runtime == "openvino" and name not in ("unet", "transformer"):
        return total
    for layer in layers_of(network, saving.quantize):
        numbers, rows = layer.weight.numel(), len(layer.weight)
        scales = numbers // _BLOCK if saving.quantize == "nf4" else rows
        total += numbers * (_BYTES[saving.quantize] - dtype.itemsize) + scales * _SCALE_BYTES
    return total


def why_not(kind: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why torch cannot execute weights of this kind on this device; None if it can.

    It is tried: packages tell of cards that they know, and know some that they have no kernels for.
    """
    package = PACKAGES[kind]
    if find_spec(package) is None:
        return f"{package} is not installed; pip install -r requirements/quantize.txt"
    layer = nn.Sequential(nn.Linear(_BLOCK, _BLOCK, dtype=dtype))
    try:
        quantize_layers(layer, kind)
        output = layer.to(device)(torch.ones(2, _BLOCK, dtype=dtype, device=device))
        finite = bool(output.isfinite().all())
    except Exception as error:
        # Whatever a package raises on a device that its authors did not think of.
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None if finite else "its numbers are not finite"


def refusal(
    saving: Saving,
    device: torch.device,
    dtype: torch.dtype,
    tried: Callable[[str, torch.device, torch.dtype], str | None] = why_not,
) -> str | None:
    """Why weights cannot be quantized as the settings ask for, and what would work; None if they can."""
    if not saving.quantize or saving.runtime == "openvino":
        return None
    reason = tried(saving.quantize, device, dtype)
    if reason is None:
        return None
    others = [each for each in PACKAGES if each != saving.quantize]
    works = [each for each in others if tried(each, device, dtype) is None]
    fix = f"what works here: {', '.join([*works, 'none'])}"
    return f"{saving.quantize} cannot be computed with on {device} ({reason}); {fix}"
