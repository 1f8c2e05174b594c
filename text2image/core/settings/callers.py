"""Who may ask, and for how much."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from text2image.core.addresses import parse_networks
from text2image.core.limits import parse_limits
from text2image.core.settings.group import Group


class Callers(Group):
    """Keys, quotas, and the Redis in which gateways share what was spent."""

    keys_file: Path | None = Field(
        None,
        description="File of the API keys that requests must show; without it anybody may do anything. "
        "`python -m text2image.keys create NAME` makes a key.",
    )
    rate_limit: str | None = Field(
        None,
        description="Megapixel-steps that each key, or each address without keys, may spend, as `600/minute` or "
        "`600/minute;5000/day`; no limit if unset. A 512x512 picture of 20 steps is 5.2.",
    )
    max_concurrent: int | None = Field(
        None,
        ge=1,
        description="Requests of each key, or of each address without keys, at work at once; no limit if unset.",
    )
    trusted_proxies: str | None = Field(
        None,
        description="Proxies whose `X-Forwarded-For` is believed: addresses or networks, with commas between them.",
    )
    redis_url: str | None = Field(
        None,
        description="Redis in which several gateways share limits, and pictures if `T2I_CACHE_REDIS_URL` is unset; "
        "without it each gateway process counts for itself.",
    )
    cache_redis_url: str | None = Field(
        None,
        description="Redis for the cache of pictures; `T2I_REDIS_URL` if unset, and the disk if that is unset too.",
    )

    @field_validator("rate_limit")
    @classmethod
    def _check_rate_limit(cls, value: str | None) -> str | None:
        parse_limits(value or "")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str | None) -> str | None:
        parse_networks(value or "")
        return value

    @field_validator("redis_url", "cache_redis_url")
    @classmethod
    def _check_redis(cls, value: str | None) -> str | None:
        if value:
            # Here, since only a server that has a Redis needs the package.
            from redis.connection import parse_url

            parse_url(value)  # type: ignore[no-untyped-call]
        return value
