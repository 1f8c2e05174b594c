"""Jobs that are drawn in the background: where they are kept, how many, and for how long."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from text2image.core.limits import parse_bytes
from text2image.core.settings.group import Group

_DATABASES = ("postgresql://", "postgres://")


class Jobs(Group):
    """The jobs' database, its folder, and the limits of what is kept there."""

    jobs: bool = Field(True, description="Whether jobs are taken and drawn.")
    data_dir: Path | None = Field(
        None,
        description="Folder of the jobs and their pictures, which must not be lost; if unset one for each gRPC port in "
        "`text2image` in the user's own data folder. Gateways that share `T2I_JOBS_URL` share this folder too.",
    )
    jobs_url: SecretStr | None = Field(
        None,
        description="PostgreSQL in which several gateways share jobs, as `postgresql://user:password@host/database`; "
        "SQLite in `T2I_DATA_DIR` if unset.",
    )
    jobs_max_items: int = Field(
        100_000,
        ge=1,
        description="Requests in the unfinished jobs of each key, or of each address without keys.",
    )
    jobs_keep_seconds: float = Field(
        7 * 24 * 3600.0,
        gt=0,
        description="Seconds that a job which has ended is kept with its pictures; the time that no server runs does "
        "not count.",
    )
    jobs_keep_bytes: int = Field(
        20 << 30,
        gt=0,
        description="Size of the pictures of jobs, as in `20GiB`; beyond it the jobs that ended first go first.",
    )

    batch_file_bytes: int = Field(
        100 << 20,
        gt=0,
        description="Largest file that may be uploaded for a batch (`POST /v1/files`), as in `100MiB`.",
    )
    batch_files_bytes: int = Field(
        1 << 30,
        gt=0,
        description="Size of all files that one caller has uploaded for batches; they are kept for "
        "`T2I_JOBS_KEEP_SECONDS` at most.",
    )
    batch_all_files_bytes: int = Field(
        10 << 30, gt=0, description="Size of the files that all callers have uploaded for batches."
    )
    jobs_body_bytes: int = Field(
        256 << 20,
        gt=0,
        description="Largest body of a job, with the pictures in it, as in `256MiB`.",
    )

    @field_validator(
        "jobs_keep_bytes",
        "jobs_body_bytes",
        "batch_file_bytes",
        "batch_files_bytes",
        "batch_all_files_bytes",
        mode="before",
    )
    @classmethod
    def _check_bytes(cls, value: str | int) -> int:
        return value if isinstance(value, int) else parse_bytes(value)

    @field_validator("jobs_url")
    @classmethod
    def _check_jobs_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(_DATABASES):
            raise ValueError("write it as in postgresql://user:password@host/database")
        return value
