"""How the server tells others of what has ended."""

from __future__ import annotations

import base64
import binascii

from pydantic import Field, SecretStr, field_validator

from text2image.core.settings.group import Group

_PREFIX = "whsec_"
# Of the Standard Webhooks scheme.
_LEAST_BYTES, _MOST_BYTES = 24, 64


class Webhooks(Group):
    """Webhooks of jobs."""

    webhook_secret: SecretStr | None = Field(
        None,
        description="Secret that signs webhooks by the Standard Webhooks scheme: `whsec_` and 24 to 64 bytes in "
        "base64; of two with a comma between, both sign, so that receivers can change over. No webhooks if unset.",
    )
    webhook_attempts: int = Field(
        10,
        ge=1,
        le=30,
        description="How often a webhook is tried, at growing intervals of up to six hours, before it is given up.",
    )
    webhook_delay: float = Field(
        5.0,
        gt=0,
        description="Seconds until the second attempt; each further interval is three times as long.",
    )
    webhook_timeout: float = Field(
        15.0, gt=0, description="Seconds that the receiver of a webhook may take to answer."
    )
    webhook_allow_private: bool = Field(
        False,
        description="Whether webhooks may go to addresses of private networks and of this machine.",
    )

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, value: SecretStr | None) -> SecretStr | None:
        for secret in value.get_secret_value().split(",") if value else ():
            if not _is_secret(secret.strip()):
                raise ValueError(
                    f"write it as {_PREFIX} and {_LEAST_BYTES} to {_MOST_BYTES} random bytes in base64; "
                    f'`echo "{_PREFIX}$(openssl rand -base64 32)"` makes one'
                )
        return value


def _is_secret(secret: str) -> bool:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return secret.startswith(_PREFIX) and _LEAST_BYTES <= len(key) <= _MOST_BYTES
