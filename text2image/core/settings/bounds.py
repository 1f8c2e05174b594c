"""How much is taken in, and for how long."""

from __future__ import annotations

from pydantic import Field

from text2image.core.settings.group import Group

# Seconds that a client may always name, however short the server's own default is.
LONGEST_NAMED_TIMEOUT = 600.0


class Bounds(Group):
    """The most rows, seconds, bytes and pixels."""

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
