"""Between our nouns and the messages of gRPC v1, in both directions."""

from __future__ import annotations

from typing import Any

from text2image.core.controls import MAX_CONTROLS
from text2image.net.wire.events import (
    client_event_from,
    client_event_to,
    event_from,
    event_to,
    image_to,
    progress_to,
)
from text2image.net.wire.models import (
    model_from,
    model_to,
    models_from,
    models_to,
)
from text2image.net.wire.requests import (
    MessageWithPresence,
    Metadata,
    controls_to,
    loras_to,
    optional_fields,
    options_from,
    params_from,
    params_to,
    request_to,
    sent_params_from,
    share_from,
    share_to,
)
from text2image.net.wire.status import (
    status_from,
    status_to,
)
from text2image.v1.image_generation_pb2_grpc import ImageGenerationStub

__all__ = [
    "MAX_PICTURE_BYTES",
    "MAX_REQUEST_BYTES",
    "MessageWithPresence",
    "Metadata",
    "client_event_from",
    "client_event_to",
    "controls_to",
    "event_from",
    "event_to",
    "image_to",
    "loras_to",
    "model_from",
    "model_to",
    "models_from",
    "models_to",
    "optional_fields",
    "options_from",
    "params_from",
    "params_to",
    "progress_to",
    "request_to",
    "sent_params_from",
    "share_from",
    "share_to",
    "status_from",
    "status_to",
    "stub",
]

# A 4096 x 4096 picture is 48 MiB of RGB, and its mask 16 more; the receiving side's default of 4 MiB would refuse it.
MAX_PICTURE_BYTES = 68 << 20

# A request has pictures that steer it besides.
MAX_REQUEST_BYTES = MAX_PICTURE_BYTES * (1 + MAX_CONTROLS)


def stub(channel: Any) -> Any:
    """The methods of v1 on a channel, blocking ones or asyncio's as the channel is."""
    return ImageGenerationStub(channel)  # type: ignore[no-untyped-call]
