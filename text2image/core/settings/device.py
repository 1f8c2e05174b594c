"""What the networks are executed on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from text2image.core.settings.group import MAX_SIDE, Group


class Device(Group):
    """The device, its precision and runtime, and what is done where its memory is small."""

    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="Precision; by `auto` fp32 on a CPU, else bf16 or fp16, whichever the card supports.",
    )
    runtime: Literal["auto", "torch", "compile", "openvino"] = Field(
        "auto",
        description="What executes the networks: `torch`, `compile` (torch.compile, in the background while torch "
        "serves: faster steps after some minutes), or on a CPU `openvino`; by `auto` OpenVINO on a CPU, else torch.",
    )
    quantize: Literal["none", "int8", "fp8", "nf4"] = Field(
        "none",
        description="Weights in fewer bits, for less memory and slightly other pictures: `int8`, `fp8`, or `nf4` of "
        "four bits. OpenVINO has `int8`.",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        "none",
        description="Keeps weights in the host's memory and brings them to the card when they are needed: `model` one "
        "network at a time, `sequential` one layer at a time, for the least memory and the longest time.",
    )
    tile_above: int | None = Field(
        None,
        ge=0,
        le=MAX_SIDE,
        description="Pictures with more pixels than a square of this side are decoded in tiles, none by 0; if unset "
        "those that the device's memory is too small to decode whole.",
    )
    compile: bool = Field(False, description="The same as `T2I_RUNTIME=compile`.")
    threads: int = Field(
        0, ge=0, description="Threads that compute on a CPU; 0 takes the cores the process may use."
    )
