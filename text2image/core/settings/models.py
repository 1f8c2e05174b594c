"""Which models are served, and what may be added to them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from text2image.core.catalogue import find_entries, parse_aliases
from text2image.core.limits import parse_bytes
from text2image.core.settings.group import Group

# What lies here is found by its name: the embedded model, or the one that a Bento was built with in its place.
MODELS = Path(__file__).parents[3] / "models"
EMBEDDED_MODEL = "embedded"


def brought_model(models: Path = MODELS) -> str:
    """The name of the model that comes with the code."""
    brought = [path.parent.relative_to(models) for path in models.rglob("model_index.json")]
    if not brought or Path(EMBEDDED_MODEL) in brought:
        return EMBEDDED_MODEL
    return min(brought).as_posix()


class Models(Group):
    """The models, their adapters and ControlNets, and the memory that these may take."""

    model: str = Field(
        default_factory=brought_model,
        description="`embedded`, a folder in diffusers format, a checkpoint in a single file, or the id of a model on "
        "the Hugging Face hub.",
    )
    model_revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    transformer: Path | None = Field(
        None,
        description="GGUF file whose weights the model's transformer has in place of its own.",
    )
    refiner: str | None = Field(
        None,
        description="Refiner that an SDXL model hands its pictures to: a folder in diffusers format, or a hub id.",
    )
    refiner_switch: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="Share of the noise that the model takes away before the refiner goes on.",
    )
    models: str | None = Field(
        None,
        description="Models that requests may name beside `T2I_MODEL`, which may be one of them: a folder whose "
        "sub-folders are models, a list as in `NAME=FOLDER,owner/name`, or a TOML file.",
    )
    model_aliases: str | None = Field(
        None,
        description="Other names that requests may give models, as in `dall-e-3=sdxl,gpt-image-1=sdxl`; it is read "
        "where the runners are.",
    )
    model_memory: int | None = Field(
        None,
        gt=0,
        description="Bytes of weights that are loaded at once, as in `6GiB`; only the free memory limits it if unset.",
    )
    model_host_memory: int | None = Field(
        None,
        ge=0,
        description="Bytes of weights of models that left a GPU, as in `32GiB`, that are kept in the host's memory, "
        "so that they come back without the disk; 0 keeps none, and half of what is free if unset.",
    )
    loras: Path | None = Field(
        None,
        description="Folder of adapters (LoRA) in `.safetensors`, which requests name as the files are without suffix; "
        "none if unset.",
    )
    prompt_loras: bool = Field(
        True,
        description="Whether `<lora:name:0.8>` in a prompt is an adapter, as in A1111, or words like any others.",
    )
    adapter_memory: int = Field(
        1 << 30,
        gt=0,
        description="Bytes of adapters that are kept in memory, as in `2GiB`; those used least recently leave.",
    )
    controlnets: Path | None = Field(
        None,
        description="Folder of ControlNets, in diffusers' folders and `.safetensors` files, which requests name as "
        "they are called without suffix; none if unset.",
    )
    controlnet_memory: int = Field(
        4 << 30,
        gt=0,
        description="Bytes of ControlNets that are kept in memory, as in `6GiB`; those used least recently leave.",
    )

    upscalers: Path | None = Field(
        None,
        description="Folder of upscalers (ESRGAN and its like) in `.safetensors` and `.pth`, which requests name as "
        "the files are without suffix; none if unset.",
    )

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: str | None) -> str | None:
        try:
            find_entries(value)
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}") from None
        return value

    @field_validator("model_aliases")
    @classmethod
    def _check_aliases(cls, value: str | None) -> str | None:
        parse_aliases(value or "")
        return value

    @field_validator(
        "model_memory", "model_host_memory", "adapter_memory", "controlnet_memory", mode="before"
    )
    @classmethod
    def _check_memory(cls, value: str | int | None) -> int | None:
        return value if value is None or isinstance(value, int) else parse_bytes(value)
