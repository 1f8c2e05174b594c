"""Every setting in one place, each with its documented default, read from the environment.

Variables carry the prefix `T2I_`; HOST, PORT and GRPC_PORT are read as they are, since that is how they are known.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from text2image.messages import Sampler
from text2image.sockets import own_folder

EMBEDDED_MODEL = "embedded"
# Pixels; a picture of this side fits in one message between runner and gateway.
MAX_SIDE = 4096


class Settings(BaseSettings):
    """The settings of the gateway and its runners; `get_settings()` reads them once a process."""

    model_config = SettingsConfigDict(env_prefix="T2I_", extra="ignore", frozen=True)

    host: str = Field(
        "127.0.0.1",
        validation_alias="HOST",
        description="Address that HTTP and gRPC listen on.",
    )
    port: int = Field(
        3000,
        ge=1,
        le=65535,
        validation_alias="PORT",
        description="Port of HTTP.",
    )
    grpc_port: int = Field(
        50051,
        ge=1,
        le=65535,
        validation_alias="GRPC_PORT",
        description="Port of gRPC.",
    )

    model: str = Field(
        EMBEDDED_MODEL,
        description="`embedded`, a folder in diffusers format, or the id of a model on the Hugging Face hub.",
    )
    model_revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    default_steps: int | None = Field(
        None, ge=1, le=150, description="Steps when a request names none; the model's own if unset."
    )
    default_guidance_scale: float | None = Field(
        None,
        ge=0,
        le=30,
        description="Guidance scale when a request names none; the model's own if unset.",
    )
    default_sampler: Sampler | None = Field(
        None, description="Sampler when a request names none; the model's own if unset."
    )
    max_side: int | None = Field(
        None,
        ge=64,
        le=MAX_SIDE,
        description="Largest width and height in pixels; twice the model's own if unset.",
    )

    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="Precision; by `auto` fp32 on a CPU, else bf16 or fp16, whichever the card supports.",
    )
    compile: bool = Field(
        False, description="Compile the U-Net with torch.compile: slower to start, faster to step."
    )
    threads: int = Field(
        0, ge=0, description="Threads for torch on a CPU; 0 takes the cores the process may use."
    )

    runners: int = Field(
        0, ge=0, description="Runner processes; 0 starts one per GPU, or one without a GPU."
    )
    gateway_workers: int = Field(1, ge=1, description="Gateway processes that share the two ports.")
    runtime_dir: Path | None = Field(
        None,
        description="Folder of the sockets between gateway and runners; a private one per gRPC port if unset.",
    )

    max_batch_rows: int = Field(
        0,
        ge=0,
        description="Most U-Net rows in a batch, at least the 2 of a guided picture; 0 measures what pays off.",
    )
    max_backlog_seconds: float = Field(
        120.0,
        gt=0,
        description="Refuse a request when admitted work would keep it longer than this.",
    )
    request_timeout: float = Field(
        300.0, gt=0, description="Seconds a request may take when its client names none."
    )
    drain_timeout: float = Field(
        60.0, ge=0, description="Seconds that admitted work may take after SIGTERM."
    )
    runner_retries: int = Field(
        2, ge=0, description="How often a request is sent again when its runner dies."
    )
    max_body_bytes: int = Field(1 << 20, gt=0, description="Largest request body, HTTP and gRPC.")

    redis_url: str | None = Field(
        None,
        description="Redis that several gateways share; without it each gateway process is on its own.",
    )

    output_dir: Path = Field(Path("generated_images"), description="Folder of the pictures.")
    save_images: bool = Field(True, description="Save every picture in the output folder.")
    log_prompts: bool = Field(False, description="Write prompts to the log.")

    def socket_of(self, runner: int) -> Path:
        """The private socket of runner `runner`, counted from 0.

        The gRPC port is taken by one server alone, so it tells the servers on one host apart.
        """
        folder = self.runtime_dir or own_folder() / str(self.grpc_port)
        return folder / f"runner-{runner}.sock"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process.

    Raises:
        SystemExit: a variable has a value that its setting does not take; the text says which, and why.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SystemExit("\n".join(_told(problem) for problem in error.errors())) from None


def _told(problem: ErrorDetails) -> str:
    name = str(problem["loc"][0])
    variable = f"T2I_{name.upper()}" if name in Settings.model_fields else name
    return f"text2image: {variable}={problem['input']}: {problem['msg']}"
