"""What all groups of settings have in common."""

from __future__ import annotations

import re

from pydantic_settings import BaseSettings, SettingsConfigDict

# Pixels; a picture of this side fits in one message between runner and gateway.
MAX_SIDE = 4096

_WEB_ADDRESS = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")


class Group(BaseSettings):
    """Settings that belong together, which `Settings` takes in."""

    # A variable that is set to nothing counts as unset: nothing is no path, and would be the current folder.
    model_config = SettingsConfigDict(
        env_prefix="T2I_", env_ignore_empty=True, extra="ignore", frozen=True
    )


def check_web_address(value: str | None, example: str) -> str | None:
    """The address of a place on the web, without a query.

    Raises:
        ValueError: it is written otherwise than the example.
    """
    if value and not _WEB_ADDRESS.fullmatch(value):
        raise ValueError(f"write it as in {example}")
    return value
