"""The nouns of the service: what is asked for, what happens on the way, and what comes back.

Frozen and typed; nothing here knows of torch or of a transport.
"""

from text2image.core.messages.events import (
    ClientEvent,
    Completed,
    Event,
    GeneratedImage,
    Loading,
    Picture,
    Pixels,
    Progress,
    Queued,
    Timings,
)
from text2image.core.messages.models import (
    SIDE_MULTIPLE,
    ControlInfo,
    Embedding,
    LoraInfo,
    ModelInfo,
    ModelStatus,
    UpscalerInfo,
)
from text2image.core.messages.names import (
    Input,
    ModelState,
    PromptSyntax,
    Quality,
    Sampler,
    Schedule,
)
from text2image.core.messages.requests import (
    Control,
    LoraWeight,
    Request,
    RequestParams,
    Share,
    StreamOptions,
    steps_drawn,
)
from text2image.core.messages.status import (
    Counters,
    State,
    Status,
)

__all__ = [
    "SIDE_MULTIPLE",
    "ClientEvent",
    "Completed",
    "Control",
    "ControlInfo",
    "Counters",
    "Embedding",
    "Event",
    "GeneratedImage",
    "Input",
    "Loading",
    "LoraInfo",
    "LoraWeight",
    "ModelInfo",
    "ModelState",
    "ModelStatus",
    "Picture",
    "Pixels",
    "Progress",
    "PromptSyntax",
    "Quality",
    "Queued",
    "Request",
    "RequestParams",
    "Sampler",
    "Schedule",
    "Share",
    "State",
    "Status",
    "StreamOptions",
    "Timings",
    "UpscalerInfo",
    "steps_drawn",
]
