"""The processes of a server, and how they reach each other."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from text2image.core.addresses import parse_runners, split_port
from text2image.core.settings.group import Group


class Processes(Group):
    """Runners here and elsewhere, and gateways."""

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
