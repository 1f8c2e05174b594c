"""What clients of A1111 ask for before they draw: models, samplers, adapters and the like."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from text2image.api.a1111.overrides import HASH_LETTERS, title_of
from text2image.api.a1111.routes import PREFIX, reading, state_of, told
from text2image.api.asgi import caller_of, gateway_of
from text2image.core.errors import ModelNotFound
from text2image.core.messages import ModelInfo, Sampler, Schedule
from text2image.core.samplers import ALIASES, SCHEDULE_TITLES, TITLES
from text2image.core.validation import MAX_HIRES_SCALE
from text2image.gateway.runners import Runners

router = APIRouter(prefix=PREFIX)


class SamplerItem(BaseModel):
    """A sampler that the model can be drawn with."""

    name: str
    aliases: list[str]
    options: dict[str, str] = {}


class SchedulerItem(BaseModel):
    """A schedule of noise levels."""

    name: str
    label: str
    aliases: list[str] | None = None
    default_rho: float = -1
    need_inner_model: bool = False


class ModelItem(BaseModel):
    """A model that is served; requests name it by its title or its name."""

    title: str
    model_name: str
    hash: str | None = None
    sha256: str | None = None
    filename: str
    config: str | None = None


class VaeItem(BaseModel):
    """A decoder beside those of the models; there are none."""

    model_name: str
    filename: str


class LoraItem(BaseModel):
    """An adapter that prompts may name."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any] = {}


class EmbeddingItem(BaseModel):
    """A textual inversion that prompts may name."""

    step: int | None = None
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    shape: int | None = None
    vectors: int


class Embeddings(BaseModel):
    """All of them, by name."""

    loaded: dict[str, EmbeddingItem]
    skipped: dict[str, EmbeddingItem] = {}


class UpscalerItem(BaseModel):
    """What pictures are enlarged with."""

    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float | None = None


class NamedItem(BaseModel):
    """Of kinds of which there are none."""

    name: str


class Scripts(BaseModel):
    """There are none."""

    txt2img: list[str] = []
    img2img: list[str] = []


class Flags(BaseModel):
    """Options of A1111's command that clients look at."""

    api: bool = True
    nowebui: bool = True


class Memory(BaseModel):
    """Bytes of the machine that answers; devices are elsewhere."""

    ram: dict[str, Any] = Field(description="`free`, `used` and `total`.")
    cuda: dict[str, Any] = Field(description="An error.")


def model_of(request: Request) -> ModelInfo:
    """The model that is drawn with where the caller names none.

    Raises:
        Text2ImageError: it is not known who asks, or there is no model yet.
    """
    runners, chosen = (
        gateway_of(request).runners,
        state_of(request).choices.of(caller_of(request).name),
    )
    try:
        return runners.named(chosen)
    except ModelNotFound:
        return runners.model


async def shown(request: Request, make: Callable[[], Any]) -> Response:
    """What a route tells those who may know; models of pydantic as JSON."""

    async def work() -> Any:
        caller_of(request)
        return _plain(make())

    return await told(work)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.model_dump() if isinstance(value, BaseModel) else value


def _listing(
    path: str, name: str, what: str, kind: Any, example: Any, make: Callable[[Request], Any]
) -> None:
    """Adds a route that lists `what`."""

    async def listing(request: Request) -> Response:
        return await shown(request, lambda: make(request))

    router.add_api_route(
        path,
        listing,
        methods=["GET"],
        name=name,
        summary=f"{what}, in the dialect of A1111",
        tags=["A1111"],
        response_model=kind,
        responses=reading(f"{what}.", _plain(example)),
    )


def _samplers(request: Request) -> list[SamplerItem]:
    return [_sampler(each) for each in model_of(request).samplers]


def _sampler(sampler: Sampler) -> SamplerItem:
    return SamplerItem(name=TITLES.get(sampler, sampler.value), aliases=[*ALIASES.get(sampler, ())])


def _schedulers(request: Request) -> list[SchedulerItem]:
    own = SchedulerItem(name="automatic", label="Automatic")
    return [own, *map(_scheduler, model_of(request).schedules)]


def _scheduler(schedule: Schedule) -> SchedulerItem:
    label = SCHEDULE_TITLES.get(schedule, schedule.value)
    return SchedulerItem(name=schedule.value, label=label)


def _models(request: Request) -> list[ModelItem]:
    runners: Runners = gateway_of(request).runners
    return [_model(each) for each in runners.models]


def _model(model: ModelInfo) -> ModelItem:
    return ModelItem(
        title=title_of(model),
        model_name=model.id,
        hash=model.revision[:HASH_LETTERS],
        filename=model.id,
    )


def _loras(request: Request) -> list[LoraItem]:
    return [
        LoraItem(name=each.name, alias=each.name, path=each.name)
        for each in model_of(request).loras
        if not each.fault
    ]


def _embeddings(request: Request) -> Embeddings:
    found = model_of(request).embeddings
    return Embeddings(loaded={each.name: EmbeddingItem(vectors=each.vectors) for each in found})


def _memory(_: Request) -> Memory:
    elsewhere = {"error": "devices are those of the runners; see /metrics"}
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except ValueError:
        # Not every system tells.
        return Memory(ram={"error": "this system does not tell"}, cuda=elsewhere)
    return Memory(ram={"free": free, "used": total - free, "total": total}, cuda=elsewhere)


_UPSCALERS = [
    UpscalerItem(name="None", scale=MAX_HIRES_SCALE),
    UpscalerItem(name="Lanczos", scale=MAX_HIRES_SCALE),
]


def _upscalers(request: Request) -> list[UpscalerItem]:
    own = gateway_of(request).runners.upscalers
    return _UPSCALERS + [UpscalerItem(name=each.name, scale=each.scale) for each in own]


_SHOWN_MODEL = ModelItem(
    title="embedded [dcfec67f3c]", model_name="embedded", hash="dcfec67f3c", filename="embedded"
)

_listing(
    "/samplers",
    "a1111_samplers",
    "Samplers",
    list[SamplerItem],
    [_sampler(Sampler.EULER_ANCESTRAL)],
    _samplers,
)
_listing(
    "/schedulers",
    "a1111_schedulers",
    "Schedules",
    list[SchedulerItem],
    [_scheduler(Schedule.KARRAS)],
    _schedulers,
)
_listing("/sd-models", "a1111_models", "Models", list[ModelItem], [_SHOWN_MODEL], _models)
_listing("/sd-vae", "a1111_vaes", "Decoders, which are none", list[VaeItem], [], lambda _: [])
_listing(
    "/loras",
    "a1111_loras",
    "Adapters",
    list[LoraItem],
    [LoraItem(name="ink", alias="ink", path="ink")],
    _loras,
)
_listing(
    "/embeddings",
    "a1111_embeddings",
    "Textual inversions",
    Embeddings,
    Embeddings(loaded={"film": EmbeddingItem(vectors=2)}),
    _embeddings,
)
_listing(
    "/upscalers",
    "a1111_upscalers",
    "Upscalers",
    list[UpscalerItem],
    _UPSCALERS,
    _upscalers,
)
for _path, _name, _what in (
    ("/latent-upscale-modes", "latent_upscale_modes", "Upscalers of latents"),
    ("/hypernetworks", "hypernetworks", "Hypernetworks"),
    ("/face-restorers", "face_restorers", "Face restorers"),
    ("/realesrgan-models", "realesrgan_models", "Models of Real-ESRGAN"),
    ("/prompt-styles", "prompt_styles", "Styles"),
    ("/script-info", "script_info", "Arguments of scripts"),
):
    _listing(_path, f"a1111_{_name}", f"{_what}, which are none", list[NamedItem], [], lambda _: [])
_listing(
    "/scripts", "a1111_scripts", "Scripts, which are none", Scripts, Scripts(), lambda _: Scripts()
)
_listing("/cmd-flags", "a1111_flags", "Options of the command", Flags, Flags(), lambda _: Flags())
_listing(
    "/memory",
    "a1111_memory",
    "Memory",
    Memory,
    Memory(ram={"free": 1 << 30, "used": 3 << 30, "total": 4 << 30}, cuda={"error": "elsewhere"}),
    _memory,
)
