from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_LOADING: _ClassVar[State]
    STATE_READY: _ClassVar[State]
    STATE_DRAINING: _ClassVar[State]
    STATE_FAILED: _ClassVar[State]
STATE_UNSPECIFIED: State
STATE_LOADING: State
STATE_READY: State
STATE_DRAINING: State
STATE_FAILED: State

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "n", "sampler", "progress_every", "preview_every", "schedule", "quality", "model", "loras", "image", "strength", "mask", "controls", "clip_skip", "hires_scale", "hires_strength", "hires_steps", "hires_upscaler", "request_id", "background")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_EVERY_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_EVERY_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    HIRES_SCALE_FIELD_NUMBER: _ClassVar[int]
    HIRES_STRENGTH_FIELD_NUMBER: _ClassVar[int]
    HIRES_STEPS_FIELD_NUMBER: _ClassVar[int]
    HIRES_UPSCALER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    n: int
    sampler: str
    progress_every: int
    preview_every: int
    schedule: str
    quality: str
    model: str
    loras: _containers.RepeatedCompositeFieldContainer[Lora]
    image: bytes
    strength: float
    mask: bytes
    controls: _containers.RepeatedCompositeFieldContainer[Control]
    clip_skip: int
    hires_scale: float
    hires_strength: float
    hires_steps: int
    hires_upscaler: str
    request_id: str
    background: bool
    def __init__(self, prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., seed: _Optional[int] = ..., n: _Optional[int] = ..., sampler: _Optional[str] = ..., progress_every: _Optional[int] = ..., preview_every: _Optional[int] = ..., schedule: _Optional[str] = ..., quality: _Optional[str] = ..., model: _Optional[str] = ..., loras: _Optional[_Iterable[_Union[Lora, _Mapping]]] = ..., image: _Optional[bytes] = ..., strength: _Optional[float] = ..., mask: _Optional[bytes] = ..., controls: _Optional[_Iterable[_Union[Control, _Mapping]]] = ..., clip_skip: _Optional[int] = ..., hires_scale: _Optional[float] = ..., hires_strength: _Optional[float] = ..., hires_steps: _Optional[int] = ..., hires_upscaler: _Optional[str] = ..., request_id: _Optional[str] = ..., background: _Optional[bool] = ...) -> None: ...

class Lora(_message.Message):
    __slots__ = ("name", "weight", "hash")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight: float
    hash: str
    def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ..., hash: _Optional[str] = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("name", "image", "scale", "start", "end", "preprocess", "hash", "mask")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    name: str
    image: bytes
    scale: float
    start: float
    end: float
    preprocess: str
    hash: str
    mask: bytes
    def __init__(self, name: _Optional[str] = ..., image: _Optional[bytes] = ..., scale: _Optional[float] = ..., start: _Optional[float] = ..., end: _Optional[float] = ..., preprocess: _Optional[str] = ..., hash: _Optional[str] = ..., mask: _Optional[bytes] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("queued", "progress", "image", "completed", "loading")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    queued: Queued
    progress: Progress
    image: Image
    completed: Completed
    loading: Loading
    def __init__(self, queued: _Optional[_Union[Queued, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., completed: _Optional[_Union[Completed, _Mapping]] = ..., loading: _Optional[_Union[Loading, _Mapping]] = ...) -> None: ...

class Loading(_message.Message):
    __slots__ = ("detail", "seconds")
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    detail: str
    seconds: float
    def __init__(self, detail: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("predicted_seconds",)
    PREDICTED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    predicted_seconds: float
    def __init__(self, predicted_seconds: _Optional[float] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("index", "step", "steps", "preview")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    index: int
    step: int
    steps: int
    preview: Pixels
    def __init__(self, index: _Optional[int] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., preview: _Optional[_Union[Pixels, _Mapping]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("index", "seed", "width", "height", "png", "rgb", "path", "timings", "cached")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    RGB_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    index: int
    seed: int
    width: int
    height: int
    png: bytes
    rgb: bytes
    path: str
    timings: Timings
    cached: bool
    def __init__(self, index: _Optional[int] = ..., seed: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., png: _Optional[bytes] = ..., rgb: _Optional[bytes] = ..., path: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., cached: _Optional[bool] = ...) -> None: ...

class Pixels(_message.Message):
    __slots__ = ("width", "height", "rgb")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RGB_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    rgb: bytes
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., rgb: _Optional[bytes] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queued", "denoising", "decoding", "encoding")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    DENOISING_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    queued: float
    denoising: float
    decoding: float
    encoding: float
    def __init__(self, queued: _Optional[float] = ..., denoising: _Optional[float] = ..., decoding: _Optional[float] = ..., encoding: _Optional[float] = ...) -> None: ...

class Completed(_message.Message):
    __slots__ = ("left_out", "left_out_negative")
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    left_out: str
    left_out_negative: str
    def __init__(self, left_out: _Optional[str] = ..., left_out_negative: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("id", "revision", "family", "width", "height", "min_side", "max_side", "steps", "guidance_scale", "sampler", "samplers", "max_prompt_tokens", "device", "dtype", "schedules", "max_steps", "quality", "fast", "aliases", "licence", "price", "side_multiple", "loras", "controls", "inputs", "embeddings", "quantization", "tiled_above", "clip_skip", "max_clip_skip", "prompt_syntax", "upscale", "upscalers")
    class MaxStepsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    MIN_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    SAMPLERS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    FAST_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    SIDE_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    TILED_ABOVE_FIELD_NUMBER: _ClassVar[int]
    CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    MAX_CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SYNTAX_FIELD_NUMBER: _ClassVar[int]
    UPSCALE_FIELD_NUMBER: _ClassVar[int]
    UPSCALERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    revision: str
    family: str
    width: int
    height: int
    min_side: int
    max_side: int
    steps: int
    guidance_scale: float
    sampler: str
    samplers: _containers.RepeatedScalarFieldContainer[str]
    max_prompt_tokens: int
    device: str
    dtype: str
    schedules: _containers.RepeatedScalarFieldContainer[str]
    max_steps: _containers.ScalarMap[str, int]
    quality: str
    fast: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    licence: str
    price: float
    side_multiple: int
    loras: _containers.RepeatedCompositeFieldContainer[LoraInfo]
    controls: _containers.RepeatedCompositeFieldContainer[ControlInfo]
    inputs: _containers.RepeatedScalarFieldContainer[str]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    quantization: str
    tiled_above: int
    clip_skip: int
    max_clip_skip: int
    prompt_syntax: str
    upscale: int
    upscalers: _containers.RepeatedCompositeFieldContainer[UpscalerInfo]
    def __init__(self, id: _Optional[str] = ..., revision: _Optional[str] = ..., family: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., min_side: _Optional[int] = ..., max_side: _Optional[int] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., sampler: _Optional[str] = ..., samplers: _Optional[_Iterable[str]] = ..., max_prompt_tokens: _Optional[int] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., schedules: _Optional[_Iterable[str]] = ..., max_steps: _Optional[_Mapping[str, int]] = ..., quality: _Optional[str] = ..., fast: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., licence: _Optional[str] = ..., price: _Optional[float] = ..., side_multiple: _Optional[int] = ..., loras: _Optional[_Iterable[_Union[LoraInfo, _Mapping]]] = ..., controls: _Optional[_Iterable[_Union[ControlInfo, _Mapping]]] = ..., inputs: _Optional[_Iterable[str]] = ..., embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., quantization: _Optional[str] = ..., tiled_above: _Optional[int] = ..., clip_skip: _Optional[int] = ..., max_clip_skip: _Optional[int] = ..., prompt_syntax: _Optional[str] = ..., upscale: _Optional[int] = ..., upscalers: _Optional[_Iterable[_Union[UpscalerInfo, _Mapping]]] = ...) -> None: ...

class UpscalerInfo(_message.Message):
    __slots__ = ("name", "hash", "scale", "tile")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    TILE_FIELD_NUMBER: _ClassVar[int]
    name: str
    hash: str
    scale: int
    tile: int
    def __init__(self, name: _Optional[str] = ..., hash: _Optional[str] = ..., scale: _Optional[int] = ..., tile: _Optional[int] = ...) -> None: ...

class LoraInfo(_message.Message):
    __slots__ = ("name", "hash", "base", "trigger_words", "fault")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_WORDS_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    hash: str
    base: str
    trigger_words: _containers.RepeatedScalarFieldContainer[str]
    fault: str
    def __init__(self, name: _Optional[str] = ..., hash: _Optional[str] = ..., base: _Optional[str] = ..., trigger_words: _Optional[_Iterable[str]] = ..., fault: _Optional[str] = ...) -> None: ...

class ControlInfo(_message.Message):
    __slots__ = ("name", "hash", "base", "fault")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    hash: str
    base: str
    fault: str
    def __init__(self, name: _Optional[str] = ..., hash: _Optional[str] = ..., base: _Optional[str] = ..., fault: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("name", "hash", "vectors")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    name: str
    hash: str
    vectors: int
    def __init__(self, name: _Optional[str] = ..., hash: _Optional[str] = ..., vectors: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[GetModelResponse]
    def __init__(self, models: _Optional[_Iterable[_Union[GetModelResponse, _Mapping]]] = ...) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchStatusResponse(_message.Message):
    __slots__ = ("state", "detail", "backlog_seconds", "active", "counters", "pace", "models", "waiting", "utilization")
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    state: State
    detail: str
    backlog_seconds: float
    active: int
    counters: Counters
    pace: float
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    waiting: int
    utilization: float
    def __init__(self, state: _Optional[_Union[State, str]] = ..., detail: _Optional[str] = ..., backlog_seconds: _Optional[float] = ..., active: _Optional[int] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ..., pace: _Optional[float] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., waiting: _Optional[int] = ..., utilization: _Optional[float] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "revision", "state", "detail", "seconds", "offers", "adapters", "waiting_adapters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    WAITING_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    state: str
    detail: str
    seconds: float
    offers: str
    adapters: _containers.RepeatedScalarFieldContainer[str]
    waiting_adapters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., seconds: _Optional[float] = ..., offers: _Optional[str] = ..., adapters: _Optional[_Iterable[str]] = ..., waiting_adapters: _Optional[_Iterable[str]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

class Counters(_message.Message):
    __slots__ = ("admitted", "completed", "failed", "cancelled", "refused", "batches", "sample_steps", "steps_saved", "retries", "dropped", "out_of_memory")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_SAVED_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_MEMORY_FIELD_NUMBER: _ClassVar[int]
    admitted: int
    completed: int
    failed: int
    cancelled: int
    refused: int
    batches: int
    sample_steps: int
    steps_saved: int
    retries: int
    dropped: int
    out_of_memory: int
    def __init__(self, admitted: _Optional[int] = ..., completed: _Optional[int] = ..., failed: _Optional[int] = ..., cancelled: _Optional[int] = ..., refused: _Optional[int] = ..., batches: _Optional[int] = ..., sample_steps: _Optional[int] = ..., steps_saved: _Optional[int] = ..., retries: _Optional[int] = ..., dropped: _Optional[int] = ..., out_of_memory: _Optional[int] = ...) -> None: ...
