"""Writes a model's U-Net and decoder as OpenVINO reads them.

    python -m text2image.engine.runtimes.conversion FROM [TO]

Without TO they are put beside the model's other folders, and go wherever that goes. Rows and sizes stay open. What was
written is run once, and compared with torch at another size than the traced one.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from text2image.core.lifecycle import end_with_parent
from text2image.engine.lazy import hush
from text2image.engine.runtimes import SHIPPED
from text2image.engine.runtimes.choice import load_pipeline
from text2image.engine.runtimes.deep import OuterPass, WholePass
from text2image.engine.runtimes.openvino import DECODER, OUTER, UNET, OpenVinoNetworks, name_of

# Of the largest number that the network puts out.
_TOLERANCE = 1e-3
_ROWS = 2
# Sides of the traced latents. Not even in any U-Net's halves, so that the trace scales to the size that comes.
_TRACED = (17, 19)


class _Decoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        pictures: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return pictures


def convert(folder: Path, target: Path) -> None:
    """Converts a pipeline in diffusers' format; `target` is there whole or not at all.

    Raises:
        ValueError: what OpenVINO puts out is not what torch does.
    """
    pipeline = load_pipeline(folder, torch.float32, text_encoder=None, tokenizer=None)
    whole, outer = WholePass(pipeline.unet).eval(), OuterPass(pipeline.unet).eval()
    decoder = _Decoder(pipeline.vae).eval()
    config = pipeline.unet.config
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as around:
        parts = Path(around, "parts")
        parts.mkdir()
        _write(whole, _unet_inputs(config, *_TRACED), parts / UNET)
        _write(outer, _outer_inputs(whole, config, *_TRACED), parts / OUTER)
        _write(decoder, _decoder_inputs(pipeline.vae.config, *_TRACED), parts / DECODER)
        networks = OpenVinoNetworks(parts, torch.float32, torch.get_num_threads(), deep=True)
        side = int(config.sample_size)
        _compare(whole, _unet_inputs(config, side, side), networks.predict_whole)
        _compare(outer, _outer_inputs(whole, config, side, side), networks.predict_outer)
        _compare(decoder, _decoder_inputs(pipeline.vae.config, side, side), networks.decode)
        parts.rename(target)


def _unet_inputs(config: Any, height: int, width: int) -> tuple[torch.Tensor, ...]:
    inputs = (
        torch.randn(_ROWS, config.in_channels, height, width),
        torch.linspace(1.0, 900.0, _ROWS),
        torch.randn(_ROWS, 77, config.cross_attention_dim),
    )
    if config.time_cond_proj_dim is None:
        return inputs
    return (*inputs, torch.randn(_ROWS, config.time_cond_proj_dim))


@torch.no_grad()
def _outer_inputs(
    whole: WholePass, config: Any, height: int, width: int
) -> tuple[torch.Tensor, ...]:
    latents, timesteps, embeddings, *guidance = _unet_inputs(config, height, width)
    _, features = whole(latents, timesteps, embeddings, *guidance)
    return (latents, timesteps, embeddings, features, *guidance)


def _decoder_inputs(config: Any, height: int, width: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, config.latent_channels, height, width),)


@torch.inference_mode()
def _compare(network: nn.Module, inputs: tuple[torch.Tensor, ...], converted: Any) -> None:
    """Compares a network's outputs with those of a method of `Networks`, whose last input may be missing."""
    missing = (None,) * (len(inspect.signature(converted).parameters) - len(inputs))
    expected, given = _listed(network(*inputs)), _listed(converted(*inputs, *missing))
    for one, other in zip(expected, given, strict=True):
        off = (other - one).abs().max() / one.abs().max()
        # Written this way round so that NaN is refused too.
        if not off <= _TOLERANCE:
            raise ValueError(f"OpenVINO's output differs from torch's by {off:.1g} of its range")


def _listed(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@torch.no_grad()
def _write(network: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    # Converting would report to its makers that it did.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    # Open are the rows, the sides of latents and the number of tokens: all but channels and widths.
    fixed = {4: 1, 3: 2, 2: 1}
    shapes = [
        openvino.PartialShape(
            [
                size if place == fixed.get(each.dim()) else -1
                for place, size in enumerate(each.shape)
            ]
        )
        for each in inputs
    ]
    with warnings.catch_warnings():
        # What a trace holds fast is compared below, at a size that it has not seen.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        model = openvino.convert_model(network, example_input=inputs, input=shapes)
    openvino.save_model(model, path, compress_to_fp16=False)


def ship(folder: Path) -> None:
    """Converts a pipeline into a folder of its own, in place of what an earlier version left there."""
    from text2image.engine.models.loading import revision_of

    target = folder / SHIPPED / name_of(revision_of(folder))
    if not target.exists():
        shutil.rmtree(folder / SHIPPED, ignore_errors=True)
        convert(folder, target)


if __name__ == "__main__":
    end_with_parent()
    hush()
    try:
        if len(sys.argv) > 2:
            convert(Path(sys.argv[1]), Path(sys.argv[2]))
        else:
            ship(Path(sys.argv[1]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
