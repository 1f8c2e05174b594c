"""Writes a model's U-Net or transformer, and its decoder, as OpenVINO reads them.

    python -m text2image.engine.runtimes.conversion FROM [TO]

Without TO they are put beside the model's other folders, and go wherever that goes. Rows and sizes stay open. What was
written is run once, and compared with torch at another size than the traced one.
"""

from __future__ import annotations

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
from text2image.engine.runtimes.choice import TEXTS, load_pipeline, network_of, sample_size
from text2image.engine.runtimes.deep import OuterPass, WholePass
from text2image.engine.runtimes.forward import forward_of, is_flux, is_sd3, patch_size
from text2image.engine.runtimes.networks import SCORE_NUMBERS, SIZE_NUMBERS
from text2image.engine.runtimes.openvino import DECODER, OUTER, UNET, OpenVinoNetworks, name_of

# Of the largest number that the network puts out.
_TOLERANCE = 1e-3
_ROWS = 2
# Sides of the traced latents. Not even in any U-Net's halves, so that the trace scales to the size that comes.
_TRACED = (17, 19)


class _UNetXL(nn.Module):
    """SDXL's U-Net as OpenVINO calls it, by the places of its inputs; so are the next one, and those of `deep.py`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.call = forward_of(network)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        pooled: torch.Tensor,
        time_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        more = [pooled, time_ids, *([] if guidance is None else [guidance])]
        return self.call(latents, timesteps, embeddings, *more)


class _Transformer(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.call = forward_of(network)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        pooled: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        more = [pooled, *([] if guidance is None else [guidance])]
        return self.call(latents, timesteps, embeddings, *more)


def _wrapped(network: Any) -> nn.Module:
    if _is_transformer(network.config):
        return _Transformer(network).eval()
    is_xl = network.config.addition_embed_type == "text_time"
    return (_UNetXL(network) if is_xl else WholePass(network)).eval()


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
    pipeline = load_pipeline(folder, torch.float32, without=TEXTS)
    network, decoder = _wrapped(network_of(pipeline)), _Decoder(pipeline.vae).eval()
    config, vae = network_of(pipeline).config, pipeline.vae.config
    numbers = SCORE_NUMBERS if pipeline.config.get("requires_aesthetics_score") else SIZE_NUMBERS
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as around:
        parts = Path(around, "parts")
        parts.mkdir()
        side = sample_size(config)
        _write(network, _inputs(config, *_TRACED, numbers), parts / UNET)
        _write(decoder, _decoder_inputs(vae, *_TRACED), parts / DECODER)
        deep = isinstance(network, WholePass)
        if deep:
            outer = OuterPass(pipeline.unet).eval()
            _write(outer, _outer_inputs(network, _inputs(config, *_TRACED)), parts / OUTER)
        networks = OpenVinoNetworks(parts, torch.float32, torch.get_num_threads(), deep=deep)
        inputs = _inputs(config, side, side, numbers)
        _compare(network, inputs, networks.predict_whole if deep else networks.predict)
        if deep:
            _compare(outer, _outer_inputs(network, inputs), networks.predict_outer)
        _compare(decoder, _decoder_inputs(vae, side, side), networks.decode)
        parts.rename(target)


def _is_transformer(config: Any) -> bool:
    return is_sd3(config) or is_flux(config)


def _inputs(
    config: Any, height: int, width: int, numbers: int = SIZE_NUMBERS
) -> dict[str, torch.Tensor]:
    """What the network takes, by the names of `Networks.predict` and in the order of the trace.

    Args:
        numbers: those that SDXL's is told of the picture.
    """
    patch, channels = patch_size(config), config.in_channels
    if is_flux(config):
        channels //= patch**2
    sides = (height // patch * patch, width // patch * patch)
    inputs = {
        "latents": torch.randn(_ROWS, channels, *sides),
        "timesteps": torch.linspace(1.0, 900.0, _ROWS),
    }
    if _is_transformer(config):
        inputs["embeddings"] = torch.randn(_ROWS, 77, config.joint_attention_dim)
        inputs["pooled"] = torch.randn(_ROWS, config.pooled_projection_dim)
        if is_flux(config) and config.guidance_embeds:
            inputs["guidance"] = torch.linspace(1.0, 7.0, _ROWS)[:, None]
        return inputs
    inputs["embeddings"] = torch.randn(_ROWS, 77, config.cross_attention_dim)
    if config.addition_embed_type == "text_time":
        width_of_all = config.projection_class_embeddings_input_dim
        pooled = width_of_all - numbers * config.addition_time_embed_dim
        inputs["pooled"] = torch.randn(_ROWS, pooled)
        inputs["time_ids"] = torch.linspace(0.0, 1024.0, _ROWS * numbers).view(_ROWS, -1)
    if config.time_cond_proj_dim is not None:
        inputs["guidance"] = torch.randn(_ROWS, config.time_cond_proj_dim)
    return inputs


@torch.no_grad()
def _outer_inputs(whole: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What an outer pass takes after a whole one with these inputs, in the order of the trace."""
    _, features = whole(**inputs)
    given = {**inputs, "features": features}
    order = ("latents", "timesteps", "embeddings", "features", "guidance")
    return {name: given[name] for name in order if name in given}


def _decoder_inputs(config: Any, height: int, width: int) -> dict[str, torch.Tensor]:
    return {"latents": torch.randn(1, config.latent_channels, height, width)}


@torch.inference_mode()
def _compare(network: nn.Module, inputs: dict[str, torch.Tensor], converted: Any) -> None:
    """Compares a network's outputs with those of a method of `Networks`."""
    expected, given = _listed(network(**inputs)), _listed(converted(**inputs))
    for one, other in zip(expected, given, strict=True):
        off = (other - one).abs().max() / one.abs().max()
        # Written this way round so that NaN is refused too.
        if not off <= _TOLERANCE:
            raise ValueError(f"OpenVINO's output differs from torch's by {off:.1g} of its range")


def _listed(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@torch.no_grad()
def _write(network: nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    # Converting would report to its makers that it did.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Open are the rows, the sides of latents and the number of tokens: all but channels and widths.
    fixed = {4: 1, 3: 2, 2: 1}
    shapes = [
        openvino.PartialShape(
            [
                size if place == fixed.get(each.dim()) else -1
                for place, size in enumerate(each.shape)
            ]
        )
        for each in inputs.values()
    ]
    with warnings.catch_warnings():
        # What a trace holds fast is compared below, at a size that it has not seen. So torch need not trace it again to
        # see that it gets the same, which takes as long.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = TorchScriptPythonDecoder(
            network, example_input=tuple(inputs.values()), trace_kwargs={"check_trace": False}
        )
        model = openvino.convert_model(traced, input=shapes)
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
