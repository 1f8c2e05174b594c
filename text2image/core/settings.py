"""Every setting in one place, each with its documented default, read from the environment.

Variables carry the prefix `T2I_`; HOST, PORT and GRPC_PORT are read as they are, since that is how they are known.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from text2image.core.addresses import (
    address_of,
    parse_networks,
    parse_runners,
    reachable,
    split_port,
)
from text2image.core.catalogue import find_entries, parse_aliases
from text2image.core.folders import own_folder
from text2image.core.formats import Metadata
from text2image.core.guidance import parse_interval
from text2image.core.limits import parse_bytes, parse_limits
from text2image.core.messages import PromptSyntax, Quality, Sampler
from text2image.core.samplers import sampler_of

# What lies here is found by its name: the embedded model, or the one that a Bento was built with in its place.
MODELS = Path(__file__).parents[2] / "models"
EMBEDDED_MODEL = "embedded"
# Pixels; a picture of this side fits in one message between runner and gateway.
MAX_SIDE = 4096
# Layers of the largest text encoder there is.
MAX_CLIP_SKIP = 64
# Seconds that a client may always name, however short the server's own default is.
LONGEST_NAMED_TIMEOUT = 600.0
_ORIGIN = re.compile(r"https?://[a-z0-9.:\[\]-]+")
_HOST = re.compile(r"\*|(\*\.)?[a-z0-9_.-]+", re.IGNORECASE)
_WEB_ADDRESS = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
# The name and the password in a URL, which nobody is told.
_USER = re.compile(r"^(\w+://)?.*@")


def brought_model(models: Path = MODELS) -> str:
    """The name of the model that comes with the code."""
    brought = [path.parent.relative_to(models) for path in models.rglob("model_index.json")]
    if not brought or Path(EMBEDDED_MODEL) in brought:
        return EMBEDDED_MODEL
    return min(brought).as_posix()


class Settings(BaseSettings):
    """The settings of the gateway and its runners; `get_settings()` reads them once a process."""

    # A variable that is set to nothing counts as unset: nothing is no path, and would be the current folder.
    model_config = SettingsConfigDict(
        env_prefix="T2I_", env_ignore_empty=True, extra="ignore", frozen=True
    )

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

    tls_cert: Path | None = Field(
        None,
        description="Certificate chain in PEM; with it and its key, HTTP and gRPC are served over TLS alone.",
    )
    tls_key: Path | None = Field(None, description="Key of the certificate, in PEM, not locked.")
    tls_client_ca: Path | None = Field(
        None,
        description="Authorities in PEM; clients must show a certificate that one of them has signed.",
    )
    cors_origins: str | None = Field(
        None,
        description="Origins whose pages may call HTTP from a browser, with commas between, or `*`; if unset none but "
        "the server's own.",
    )
    allowed_hosts: str | None = Field(
        None,
        description="Names that HTTP answers to beside `localhost`, `HOST` and all addresses, with commas between, as "
        "in `pictures.example,*.internal`, or `*`; if unset any, save on loopback without keys, TLS or proxies.",
    )

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
    default_clip_skip: int | None = Field(
        None,
        ge=1,
        le=MAX_CLIP_SKIP,
        description="Layer of the text encoder when a request names none, where 1 is the last; the model's own if "
        "unset.",
    )
    prompt_syntax: PromptSyntax = Field(
        PromptSyntax.A1111,
        description="How prompts are read: `a1111`, where brackets weigh words, or `plain`, as they stand.",
    )
    max_prompt_chunks: int = Field(
        4,
        ge=1,
        le=16,
        description="Chunks of 75 tokens that CLIP reads of a prompt; the rest is told and not drawn.",
    )
    embeddings: Path | None = Field(
        None,
        description="Folder of textual inversions, which prompts name as their files are called; none if unset.",
    )
    quality: Quality = Field(
        Quality.EXACT,
        description="Quality when a request names none: `exact`, or `fast`, which approximates.",
    )
    guidance_interval: str = Field(
        "0-0.3",
        description="Part of its passes in which a `fast` picture is guided, as in `0.1-0.6`: 0 is before the first, 1 "
        "after the last; with `0-1` it is the exact one.",
    )
    deep_cache: int = Field(
        1,
        ge=1,
        le=20,
        description="A `fast` picture of Stable Diffusion 1.x and 2.x computes the deep part of the U-Net in the first "
        "of so many of its passes alone; 1 is in each.",
    )
    guidance_rescale: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How far guided predictions are brought back to their size without guidance, against pictures that "
        "are burnt by it: 0 is not at all, 1 altogether; if unset what suits the model.",
    )
    true_cfg_scale: float | None = Field(
        None,
        gt=1,
        le=30,
        description="Scale of the guidance away from a negative prompt by Flux, whose own `guidance_scale` is another; "
        "its pictures with one take twice the time, and if unset it is refused.",
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

    runners: str | None = Field(
        None,
        description="Runners elsewhere, with commas between: `host:port`, `unix:/path`, or `dns:///name:port` for all "
        "addresses behind a name; the server starts its own if unset.",
    )
    runner_workers: int = Field(
        0, ge=0, description="Runner processes; 0 starts one per GPU, or one without a GPU."
    )
    runner_listen: str | None = Field(
        None,
        description="`host:port` at which the first runner here takes work from gateways elsewhere, and each further "
        "one at the next port.",
    )
    runner_tls_cert: Path | None = Field(
        None,
        description="Certificate chain in PEM that gateways and runners show each other over TCP.",
    )
    runner_tls_key: Path | None = Field(
        None, description="Key of that certificate, in PEM, not locked."
    )
    runner_tls_ca: Path | None = Field(
        None,
        description="Authorities in PEM that must have signed what the other side shows.",
    )
    gateway_workers: int = Field(1, ge=1, description="Gateway processes that share the two ports.")
    runtime_dir: Path | None = Field(
        None,
        description="Folder of what one server's processes share, as sockets and metrics; a private one for each "
        "server if unset.",
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
    memory_reserve: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the free memory, of the card or on a CPU of the container, that batches leave alone.",
    )
    request_timeout: float = Field(
        300.0, gt=0, description="Seconds a request may take when its client names none."
    )
    send_timeout: float = Field(
        60.0,
        gt=0,
        description="Seconds after which a client that takes nothing of its answer is cut off.",
    )
    drain_timeout: float = Field(
        60.0, ge=0, description="Seconds that admitted work may take after SIGTERM."
    )
    drain_notice: float = Field(
        0.0,
        ge=0,
        description="Seconds after SIGTERM in which requests are still taken while `/readyz` says 503 already, so that "
        "balancers that look at it send no more before any is refused.",
    )
    runner_retries: int = Field(
        2, ge=0, description="How often a request is sent again when its runner dies."
    )
    max_body_bytes: int = Field(
        1 << 20,
        gt=0,
        description="Largest request body, HTTP and gRPC, less the pictures in it.",
    )
    max_image_bytes: int = Field(
        10 << 20,
        gt=0,
        description="Largest file of a picture that a request begins from or is steered by, or its mask.",
    )
    max_image_pixels: int = Field(
        25_000_000, gt=0, description="Most pixels of a picture that a request begins from."
    )

    keys_file: Path | None = Field(
        None,
        description="File of the API keys that requests must show; without it anybody may do anything. "
        "`python -m text2image.keys create NAME` makes a key.",
    )
    rate_limit: str | None = Field(
        None,
        description="Megapixel-steps that each key, or each address without keys, may spend, as `600/minute` or "
        "`600/minute;5000/day`; no limit if unset. A 512x512 picture of 20 steps is 5.2.",
    )
    max_concurrent: int | None = Field(
        None,
        ge=1,
        description="Requests of each key, or of each address without keys, at work at once; no limit if unset.",
    )
    trusted_proxies: str | None = Field(
        None,
        description="Proxies whose `X-Forwarded-For` is believed: addresses or networks, with commas between them.",
    )
    redis_url: str | None = Field(
        None,
        description="Redis in which several gateways share limits, and pictures if `T2I_CACHE_REDIS_URL` is unset; "
        "without it each gateway process counts for itself.",
    )
    cache_redis_url: str | None = Field(
        None,
        description="Redis for the cache of pictures; `T2I_REDIS_URL` if unset, and the disk if that is unset too.",
    )

    cache_bytes: int = Field(
        1 << 30,
        ge=0,
        description="Size of the cache of pictures on disk; 0 switches caching off, in Redis too.",
    )
    cache_dir: Path | None = Field(
        None,
        description="Folder of pictures and converted models; `text2image` in the user's own cache folder if unset.",
    )
    cache_ttl: int = Field(
        7 * 24 * 3600,
        gt=0,
        description="Seconds after its last use that Redis, where it is the cache, forgets a picture.",
    )

    output_dir: str | Path = Field(
        Path("generated_images"),
        description="Folder of the pictures, or a URL that fsspec knows, as `s3://bucket/folder`.",
    )
    save_images: bool = Field(True, description="Save every picture in the output folder.")
    save_max_bytes: int | None = Field(
        None,
        gt=0,
        description="Size of the output folder's pictures, of which the oldest go first; all are kept if unset.",
    )
    save_max_age: float | None = Field(
        None, gt=0, description="Seconds that a saved picture is kept; for ever if unset."
    )
    url_ttl: int = Field(
        3600,
        ge=0,
        le=7 * 24 * 3600,
        description="Seconds for which the URL of a picture works (`response_format: url`); 0 gives none out.",
    )
    url_bytes: int = Field(
        1 << 30,
        gt=0,
        description="Size on disk of the pictures that have URLs, of which those that were not asked for longest go "
        "first.",
    )
    url_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Secret that signs the URLs; several gateways without a common Redis need the same. A random one "
        "if unset.",
    )
    batch_file_bytes: int = Field(
        100 << 20,
        gt=0,
        description="Largest file that may be uploaded for a batch (`POST /v1/files`), as in `100MiB`.",
    )
    batch_files_bytes: int = Field(
        1 << 30,
        gt=0,
        description="Size of all files that one caller has uploaded for batches.",
    )
    public_url: str | None = Field(
        None,
        description="Where clients reach HTTP, as in `https://pictures.example`, for the URLs of pictures; the host "
        "that each request names if unset.",
    )
    metadata: Metadata = Field(
        Metadata.FULL,
        description="What files tell beside the picture: `full` is the parameters that draw it again, and that a model "
        "drew it (IPTC's digital source type); `source` is the latter alone, `none` neither.",
    )
    c2pa_cert: Path | None = Field(
        None,
        description="Certificate chain in PEM, the signer's own first, to sign pictures with as C2PA has it; with its "
        "key and the extra `c2pa`.",
    )
    c2pa_key: Path | None = Field(None, description="Key of that certificate, in PEM, not locked.")
    prompt_denylist: Path | None = Field(
        None,
        description="File of words, phrases and `/patterns/`, one a line, that prompts may not have; read again when "
        "it changes.",
    )
    safety: bool = Field(
        False,
        description="Whether pictures are looked at before they are given out; blocked ones are an error.",
    )
    safety_model: Path | None = Field(
        None,
        description="ONNX file of the classifier that looks at them; Yahoo's open_nsfw, which the extra `safety` "
        "brings, if unset.",
    )
    safety_threshold: float = Field(
        0.8, ge=0, le=1, description="Probability from which on a picture is blocked."
    )
    a1111: bool = Field(
        True, description="Serve the API of A1111's web UI, `/sdapi/v1/`, beside the others."
    )
    log_prompts: bool = Field(False, description="Write prompts to the log.")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto",
        description="Form of the log: `text`, `json`, or by `auto` text on a terminal and JSON elsewhere.",
    )
    otlp_endpoint: str | None = Field(
        None,
        description="Collector that takes traces by OTLP over HTTP, as in `http://localhost:4318`; none without it.",
    )

    page_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port at which the server shows the page too; no page if unset.",
    )
    server: str | None = Field(
        None,
        description="Host and gRPC port of the server that the page and the command draw with; `HOST` and `GRPC_PORT` "
        "if unset.",
    )

    @field_validator("default_sampler", mode="before")
    @classmethod
    def _check_sampler(cls, value: str | None) -> str | None:
        return (sampler_of(value) or value) if value else None

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

    @field_validator("url_bytes", "batch_file_bytes", "batch_files_bytes", mode="before")
    @classmethod
    def _check_bytes(cls, value: str | int) -> int:
        return value if isinstance(value, int) else parse_bytes(value)

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value and not _WEB_ADDRESS.fullmatch(value):
            raise ValueError("write it as in https://pictures.example")
        return value

    @field_validator(
        "model_memory", "model_host_memory", "adapter_memory", "controlnet_memory", mode="before"
    )
    @classmethod
    def _check_memory(cls, value: str | int | None) -> int | None:
        return value if value is None or isinstance(value, int) else parse_bytes(value)

    @field_validator("prompt_syntax")
    @classmethod
    def _check_syntax(cls, value: PromptSyntax) -> PromptSyntax:
        if value not in tuple(PromptSyntax):
            raise ValueError(f"it must be one of {', '.join(PromptSyntax)}")
        return value

    @field_validator("guidance_interval")
    @classmethod
    def _check_interval(cls, value: str) -> str:
        return str(parse_interval(value))

    @field_validator("runners")
    @classmethod
    def _check_runners(cls, value: str | None) -> str | None:
        if value and value.strip().isdigit():
            raise ValueError(
                "it names the addresses of runners; how many run here is set by T2I_RUNNER_WORKERS"
            )
        parse_runners(value or "")
        return value

    @field_validator("runner_listen")
    @classmethod
    def _check_runner_listen(cls, value: str | None) -> str | None:
        if value:
            split_port(value)
        return value

    @field_validator("rate_limit")
    @classmethod
    def _check_rate_limit(cls, value: str | None) -> str | None:
        parse_limits(value or "")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str | None) -> str | None:
        parse_networks(value or "")
        return value

    @field_validator("redis_url", "cache_redis_url")
    @classmethod
    def _check_redis(cls, value: str | None) -> str | None:
        if value:
            # Here, since only a server that has a Redis needs the package.
            from redis.connection import parse_url

            parse_url(value)  # type: ignore[no-untyped-call]
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_otlp_endpoint(cls, value: str | None) -> str | None:
        if value and not _WEB_ADDRESS.fullmatch(value):
            raise ValueError("write it as in http://localhost:4318")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str | None) -> str | None:
        # One that is written otherwise would never be equal to what a browser sends.
        for origin in (value or "*").split(","):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write it as in https://example.com:8443"
                )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: str | None) -> str | None:
        for host in (value or "*").split(","):
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f"{host!r} is no name of a host; write it as in pictures.example, without a port"
                )
        return value

    @property
    def longest_timeout(self) -> float:
        """The most seconds that a request can take, whatever its client names."""
        return max(self.request_timeout, LONGEST_NAMED_TIMEOUT)

    @property
    def cache_root(self) -> Path:
        """The folder of what can be made again."""
        users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return self.cache_dir or Path(users, "text2image")

    @property
    def picture_cache_dir(self) -> Path:
        """The cache's folder, which nothing else is kept in."""
        return self.cache_root / "pictures"

    @property
    def local_model(self) -> Path | None:
        """The folder of a pipeline beside the code, or of one that is named by its path; None for any other model."""
        beside, elsewhere = MODELS / self.model, Path(self.model).expanduser()
        for folder in (elsewhere,) if self.model_revision else (beside, elsewhere):
            if (folder / "model_index.json").is_file():
                return folder
        return None

    def socket_of(self, runner: int) -> Path:
        """The private socket of runner `runner`, counted from 0.

        Each server names its processes a `runtime_dir` of its own when it starts.
        """
        folder = self.runtime_dir or own_folder() / str(self.grpc_port)
        return folder / f"runner-{runner}.sock"

    @property
    def server_address(self) -> str:
        """Host and gRPC port of the server that programs on this machine draw with."""
        return self.server or address_of(reachable(self.host), self.grpc_port)

    def listen_address_of(self, runner: int) -> tuple[str, int] | None:
        """Host and port at which runner `runner` takes work from other machines; None where it takes none."""
        if not self.runner_listen:
            return None
        host, port = split_port(self.runner_listen)
        return host, port + runner


def is_url(folder: str | Path) -> bool:
    """Whether a folder is elsewhere, and named by a URL."""
    return "://" in str(folder)


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
    secret = name == "url_key"
    shown = "***" if secret else _USER.sub(r"\1***@", str(problem["input"]))
    return f"text2image: {variable}={shown}: {problem['msg'].removeprefix('Value error, ')}"
