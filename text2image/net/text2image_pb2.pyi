from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageRequest(_message.Message):
    __slots__ = ("context", "text", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "n", "sampler")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    context: str
    text: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    n: int
    sampler: str
    def __init__(self, context: _Optional[str] = ..., text: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., seed: _Optional[int] = ..., n: _Optional[int] = ..., sampler: _Optional[str] = ...) -> None: ...

class ImageResponse(_message.Message):
    __slots__ = ("status_code", "message", "image_base64", "image_path", "images", "retry_after", "seed", "cached")
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BASE64_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PATH_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    status_code: int
    message: str
    image_base64: str
    image_path: str
    images: _containers.RepeatedCompositeFieldContainer[GeneratedPicture]
    retry_after: float
    seed: int
    cached: bool
    def __init__(self, status_code: _Optional[int] = ..., message: _Optional[str] = ..., image_base64: _Optional[str] = ..., image_path: _Optional[str] = ..., images: _Optional[_Iterable[_Union[GeneratedPicture, _Mapping]]] = ..., retry_after: _Optional[float] = ..., seed: _Optional[int] = ..., cached: _Optional[bool] = ...) -> None: ...

class GeneratedPicture(_message.Message):
    __slots__ = ("image_base64", "image_path", "seed")
    IMAGE_BASE64_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PATH_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    image_base64: str
    image_path: str
    seed: int
    def __init__(self, image_base64: _Optional[str] = ..., image_path: _Optional[str] = ..., seed: _Optional[int] = ...) -> None: ...
