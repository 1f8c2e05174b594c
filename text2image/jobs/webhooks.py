"""Tells receivers of the end of jobs, by the Standard Webhooks scheme (standardwebhooks.com), at least once each.

How far the news has come is kept with the job, so a restart goes on where it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime

import httpcore
from standardwebhooks.webhooks import Webhook as Signer

from text2image import __version__
from text2image.core.settings import Settings
from text2image.jobs.records import Again, Dead, Job
from text2image.jobs.views import job_view
from text2image.net.outbound import CheckedBackend, Refused, check_url

logger = logging.getLogger(__name__)

_RANDOM = random.SystemRandom()
_FACTOR = 3.0
_LONGEST_DELAY = 6 * 3600.0
# With it a receiver says that nothing is to be sent there any more.
_GONE = 410
_MOST_TOLD = 200


class Webhooks:
    """A handler for `Jobs.on_ended`."""

    def __init__(self, settings: Settings, jitter: Callable[[], float] = _RANDOM.random) -> None:
        """`jitter` gives a random share from 0 to 1."""
        secrets = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
        self._signers = [Signer(secret.strip()) for secret in secrets.split(",") if secret.strip()]
        self._settings = settings
        self._jitter = jitter
        self._pool = httpcore.AsyncConnectionPool(
            network_backend=CheckedBackend(allow_private=settings.webhook_allow_private),
            max_connections=16,
            max_keepalive_connections=0,
        )

    def check(self, url: str) -> str:
        """What keeps the server from sending to a URL, as far as that can be told by its text; else empty."""
        if not self._signers:
            return "is not sent, as this server has no secret to sign it by; set T2I_WEBHOOK_SECRET"
        try:
            check_url(url)
        except ValueError as error:
            return str(error)
        return ""

    async def __call__(self, job: Job) -> Again | Dead | None:
        """Sends once; None if the receiver took it."""
        try:
            check_url(job.webhook.url)
            status = await self._send(job)
        except (Refused, ValueError) as error:
            # It is the same tomorrow, or would be somebody's attempt to find a moment when it is not.
            return self._given_up(job, str(error))
        except Exception as error:
            return self._later(job, f"{type(error).__name__}: {error}"[:_MOST_TOLD])
        if 200 <= status < 300:
            return None
        if status == _GONE:
            return self._given_up(job, "the receiver answered 410: it wants no more")
        moved = "; redirects are not followed" if 300 <= status < 400 else ""
        return self._later(job, f"the receiver answered {status}{moved}")

    async def close(self) -> None:
        await self._pool.aclose()

    def _later(self, job: Job, error: str) -> Again | Dead:
        attempts = job.webhook.attempts + 1
        if attempts >= self._settings.webhook_attempts:
            return self._given_up(job, f"given up after {attempts} attempts; {error}")
        return Again(self.delay(attempts), error)

    def _given_up(self, job: Job, error: str) -> Dead:
        logger.warning("the webhook of %s is dead: %s", job.id, error)
        return Dead(error)

    def delay(self, attempts: int) -> float:
        """Seconds until the next attempt after so many: they grow threefold, and vary by half, so that many spread."""
        longest = min(_LONGEST_DELAY, self._settings.webhook_delay * _FACTOR ** (attempts - 1))
        return longest * (0.5 + 0.5 * self._jitter())

    async def _send(self, job: Job) -> int:
        content = payload_of(job)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"text2image/{__version__}",
            **self._signed(message_id(job), content, datetime.now(UTC)),
        }
        seconds = self._settings.webhook_timeout
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        # Whatever the receiver says beside its status is not read, and nor is it waited for byte by byte.
        async with (
            asyncio.timeout(seconds),
            self._pool.stream(
                "POST",
                job.webhook.url,
                headers=[(name.encode(), value.encode()) for name, value in headers.items()],
                content=content,
                extensions={"timeout": timeouts},
            ) as response,
        ):
            return int(response.status)

    def _signed(self, identity: str, content: bytes, now: datetime) -> dict[str, str]:
        signatures = [signer.sign(identity, now, content.decode()) for signer in self._signers]
        return {
            "webhook-id": identity,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def message_id(job: Job) -> str:
    """The same at each attempt to tell of the same end of a job, and another for each end."""
    ended = f"{job.id} {job.state} {job.ended_at!r}"
    return f"msg_{hashlib.sha256(ended.encode()).hexdigest()[:32]}"


def payload_of(job: Job) -> bytes:
    """`job.completed` or `job.cancelled`, and the job as GET /v1/jobs/{id} tells of it, less how its webhook fares."""
    shown = job_view(job)
    body = {
        "type": f"job.{job.state}",
        "timestamp": shown.ended_at,
        "data": shown.model_dump(mode="json", exclude={"webhook"}),
    }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
