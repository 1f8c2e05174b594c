"""What the server tells of itself, and what shows its pictures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from text2image.core.settings.group import Group, check_web_address


class Watching(Group):
    """Logs, traces, and the page."""

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

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_otlp_endpoint(cls, value: str | None) -> str | None:
        return check_web_address(value, "http://localhost:4318")
