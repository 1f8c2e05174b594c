"""Where pictures are kept."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator

from text2image.core.limits import parse_bytes
from text2image.core.settings.group import Group, check_web_address


class Storage(Group):
    """The cache, the output folder, and URLs of pictures."""

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
    public_url: str | None = Field(
        None,
        description="Where clients reach HTTP, as in `https://pictures.example`, for the URLs of pictures; the host "
        "that each request names if unset.",
    )

    @field_validator("url_bytes", mode="before")
    @classmethod
    def _check_url_bytes(cls, value: str | int) -> int:
        return value if isinstance(value, int) else parse_bytes(value)

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        return check_web_address(value, "https://pictures.example")
