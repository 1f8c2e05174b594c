"""Checkpoints in a single file: which model one is, and a folder in diffusers' format around it.

A file is recognised by the names and shapes of its weights. The folder holds the configurations that these imply, the
tokenizer, and a link to the file; so all that reads a pipeline's folder reads this one too, and no hub is asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text2image.engine.layouts import structure
from text2image.engine.layouts.folder import INDEX, made_whole
from text2image.engine.layouts.headers import Header, Unreadable, read_tensors
from text2image.engine.layouts.tokenizer import END, VOCABULARY, write_tokenizer

# Raise it when another folder is made of the same file.
_FORMAT = 1
_SD_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,
}
# What else people keep in such files, by a part of some name in it.
_OTHERS = {
    "lora_": "is an adapter (LoRA), which changes a model and is none",
    ".lora_": "is an adapter (LoRA), which changes a model and is none",
    "control_model.": "is a ControlNet, which steers a model and is none",
    "controlnet_": "is a ControlNet, which steers a model and is none",
    "joint_blocks.": "is a Stable Diffusion 3, which is read from a folder in diffusers' format alone",
    "double_blocks.": "is a Flux, which is read from a folder in diffusers' format alone",
    "down_blocks.": "is one part of a folder in diffusers' format; name the folder that has the model_index.json",
    "decoder.conv_in.": "is an autoencoder alone, without a U-Net",
    "text_model.": "is a text encoder alone, without a U-Net",
    "string_to_param": "is an embedding (textual inversion), which adds a word to a model and is none",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of checkpoint that is read: its pipeline in diffusers, and what no weight tells of it.

    Attributes:
        side: of its pictures in pixels, where nothing else is known.
        scheduler: the class that such models are published with.
    """

    title: str
    pipeline: str
    side: int
    scaling_factor: float
    scheduler: str


SD1 = Kind("Stable Diffusion 1.x", "StableDiffusionPipeline", 512, 0.18215, "PNDMScheduler")
SD2 = Kind("Stable Diffusion 2.x", "StableDiffusionPipeline", 768, 0.18215, "DDIMScheduler")
SDXL = Kind(
    "Stable Diffusion XL", "StableDiffusionXLPipeline", 1024, 0.13025, "EulerDiscreteScheduler"
)


def kind_of(header: Header) -> Kind:
    """
    Raises:
        Unreadable: it is none of these; the text says what it is, if that is known.
    """
    shapes = _shapes(header)
    if f"{structure.UNET}input_blocks.0.0.weight" not in shapes:
        for mark, what in _OTHERS.items():
            if any(mark in name for name in shapes):
                raise Unreadable(what)
        raise Unreadable(
            f"is no checkpoint known here; read are {', '.join(each.title for each in (SD1, SD2, SDXL))}"
        )
    for prefix, what in ((structure.VAE, "autoencoder"), ("cond", "text encoder")):
        if not any(name.startswith(prefix) for name in shapes):
            raise Unreadable(f"has no {what} ({prefix}*); fetch the whole checkpoint")
    if f"{structure.OPEN_CLIP_XL}positional_embedding" in shapes:
        return SDXL
    if "conditioner.embedders.0.model.positional_embedding" in shapes:
        raise Unreadable("is the refiner of SDXL, which draws nothing alone; name the base model")
    if f"{structure.OPEN_CLIP}positional_embedding" in shapes:
        return SD2
    if f"{structure.CLIP}embeddings.position_embedding.weight" in shapes:
        return SD1
    raise Unreadable("has a text encoder that is not known here")


def _shapes(header: Header) -> dict[str, tuple[int, ...]]:
    return {name: stored.shape for name, stored in header.tensors.items()}


def prediction_of(header: Header, kind: Kind, path: Path) -> str | None:
    """What the U-Net predicts, `epsilon` or `v_prediction`; None where nothing tells.

    Weights look alike in both. It stands in the original configuration, `NAME.yaml` beside `NAME.safetensors`, in the
    file's metadata (https://github.com/Stability-AI/ModelSpec), or in a tensor `v_pred` (SDXL).
    """
    configuration = path.with_suffix(".yaml")
    if configuration.is_file():
        text = configuration.read_text(errors="replace")
        is_v = re.search(r"""^\s*parameterization:\s*["']?v\b""", text, re.MULTILINE)
        return "v_prediction" if is_v else "epsilon"
    named = header.metadata.get("modelspec.prediction_type", "").lower()
    architecture = header.metadata.get("modelspec.architecture", "")
    if "v_pred" in header.tensors or named.startswith("v") or "768-v" in architecture:
        return "v_prediction"
    return "epsilon" if named or "v2-512" in architecture or kind is not SD2 else None


def configurations(header: Header, path: Path) -> dict[str, dict[str, Any]]:
    """The JSON files of a folder in diffusers' format, by their place in it.

    Raises:
        Unreadable: it is no checkpoint that is read here, or not whole; the text says what it is.
    """
    kind = kind_of(header)
    prediction = prediction_of(header, kind, path)
    shapes = _shapes(header)
    try:
        unet, vae = structure.unet_config(shapes), structure.vae_config(shapes)
        encoders = _encoders(kind, shapes)
    except (KeyError, StopIteration, ValueError, IndexError) as error:
        raise Unreadable(f"is a {kind.title} that lacks weights: {error}") from None
    takes, gives = unet["in_channels"], vae["latent_channels"]
    # A mask and a masked picture besides.
    inpaints = takes == 2 * gives + 1
    if takes != gives and not inpaints:
        raise Unreadable(
            f"is a {kind.title} whose U-Net takes {takes} channels, as for upscaling; drawn with are those that take "
            f"{gives}, or {2 * gives + 1} for inpainting"
        )
    for name, config in encoders.items():
        if config["vocab_size"] != VOCABULARY:
            raise Unreadable(
                f"has a {name} of {config['vocab_size']} tokens; CLIP's tokenizer has {VOCABULARY}"
            )
    side = kind.side if prediction != "epsilon" or kind is not SD2 else SD1.side
    unet["sample_size"] = side // 2 ** (len(vae["block_out_channels"]) - 1)
    vae |= {"sample_size": side, "scaling_factor": kind.scaling_factor}
    scheduler = _scheduler(header, kind, prediction or "v_prediction")
    files = {"unet/config.json": unet, "vae/config.json": vae}
    files |= {f"{name}/config.json": config for name, config in encoders.items()}
    index = _index(kind, scheduler["_class_name"], encoders)
    if inpaints:
        index["_class_name"] = kind.pipeline.replace("Pipeline", "InpaintPipeline")
    return files | {"scheduler/scheduler_config.json": scheduler, INDEX: index}


def _encoders(kind: Kind, shapes: structure.Shapes) -> dict[str, dict[str, Any]]:
    if kind is SD1:
        return {"text_encoder": structure.clip_config(shapes, structure.CLIP)}
    if kind is SD2:
        config = structure.open_clip_config(shapes, structure.OPEN_CLIP, projected=False)
        return {"text_encoder": config}
    second = structure.open_clip_config(shapes, structure.OPEN_CLIP_XL, projected=True)
    return {
        "text_encoder": structure.clip_config(shapes, structure.CLIP_XL),
        "text_encoder_2": second,
    }


def _scheduler(header: Header, kind: Kind, prediction: str) -> dict[str, Any]:
    name = SD1.scheduler if kind is SD2 and prediction == "epsilon" else kind.scheduler
    config = {"_class_name": name, **_SD_BETAS, "prediction_type": prediction}
    if kind is SDXL:
        # The others leave it to diffusers, which has another spacing for each class.
        config["timestep_spacing"] = "leading"
    if "ztsnr" in header.tensors:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def _index(kind: Kind, scheduler: str, encoders: dict[str, dict[str, Any]]) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": kind.pipeline,
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "feature_extractor": [None, None],
    }
    for name, config in encoders.items():
        index[name] = ["transformers", config["architectures"][0]]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if kind is SDXL:
        return index | {"force_zeros_for_empty_prompt": True}
    return index | {"safety_checker": [None, None], "requires_safety_checker": False}


def lay_out(path: Path, root: Path, report: Callable[[str], None]) -> Path:
    """A folder in diffusers' format around a checkpoint, made now if it is not there yet.

    Args:
        root: the folder of such folders.
        report: told in words what had to be guessed.

    Raises:
        OSError: the file cannot be read, or the folder not be written.
        Unreadable: as `configurations` says.
    """
    header = read_tensors(path)
    files = configurations(header, path)
    kind = kind_of(header)
    if prediction_of(header, kind, path) is None:
        report(
            f"nothing tells what {path.name} predicts; taken for v and {kind.side} pixels. If its pictures are noise, "
            f"put its original configuration beside it, as {path.stem}.yaml"
        )
    found = path.resolve()
    identity = [_FORMAT, str(found), found.stat().st_size, found.stat().st_mtime_ns, files]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    target = root / f"{path.stem}-{digest}"
    if (target / INDEX).is_file():
        return target
    with made_whole(target) as made:
        for place, content in files.items():
            (made / place).parent.mkdir(parents=True, exist_ok=True)
            (made / place).write_text(json.dumps(content, indent=2) + "\n")
        write_tokenizer(made / "tokenizer", padding="!" if kind is SD2 else END)
        if kind is SDXL:
            write_tokenizer(made / "tokenizer_2", padding="!")
        (made / f"checkpoint{path.suffix}").symlink_to(found)
    return target
