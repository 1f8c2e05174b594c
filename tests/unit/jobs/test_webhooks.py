"""Receivers are told of a job's end until they have heard it, signed, and nobody else is."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Verifier

from text2image.core.settings import Settings
from text2image.jobs.records import Again, Counts, Dead, Job, JobState, Webhook, WebhookState
from text2image.jobs.webhooks import Webhooks, message_id

SECRETS = [f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2)]


class Receiver:
    """A real one, whose answers are statuses in this order, the last of them for ever."""

    def __init__(self, *answers: int) -> None:
        self._answers = list(answers)
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []

    async def __aenter__(self) -> Receiver:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._hear)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _hear(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        self.heard.append((dict(request.headers), await request.read()))
        status = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return web.Response(status=status, headers={"Location": "/elsewhere"})


def settings(**others: Any) -> Settings:
    return Settings(
        **{"webhook_secret": ",".join(SECRETS), "webhook_allow_private": True, **others}
    )


def job(url: str, **others: Any) -> Job:
    ended = {
        "state": JobState.COMPLETED,
        "ended_at": 1_800_000_000.5,
        "counts": Counts(succeeded=3),
    }
    hook = Webhook(url, WebhookState.PENDING)
    return Job(**{"id": "job_1", "owner": "key:a", "webhook": hook, **ended, **others})


@pytest.fixture
async def sender() -> AsyncIterator[Callable[..., Webhooks]]:
    made: list[Webhooks] = []

    def make(**others: Any) -> Webhooks:
        made.append(Webhooks(settings(**others), jitter=lambda: 1.0))
        return made[-1]

    yield make
    for each in made:
        await each.close()


Make = Callable[..., Webhooks]


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.CANCELLED])
async def test_a_receiver_hears_of_the_end_signed_by_each_secret(
    sender: Make, state: JobState
) -> None:
    async with Receiver(204) as receiver:
        assert await sender()(job(receiver.url, state=state)) is None
    ((headers, body),) = receiver.heard
    for secret in SECRETS:
        told = Verifier(secret).verify(body, headers)
        assert told["type"] == f"job.{state}"
        assert told["data"]["counts"]["succeeded"] == 3
    with pytest.raises(Exception, match=r"signature"):
        Verifier(SECRETS[0]).verify(body.replace(b"job_1", b"job_2"), headers)


async def test_one_that_is_down_is_told_again_with_the_same_id_until_it_is_given_up(
    sender: Make,
) -> None:
    hooks = sender(webhook_attempts=4, webhook_delay=5)
    async with Receiver(500) as receiver:
        told = job(receiver.url)
        answers = []
        for attempts in range(4):
            hook = replace(told.webhook, attempts=attempts)
            answers.append(await hooks(replace(told, webhook=hook)))
    assert [each.seconds for each in answers[:3] if isinstance(each, Again)] == [5, 15, 45]
    assert isinstance(answers[3], Dead)
    assert "500" in answers[3].error
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    # Nobody listens there any more.
    assert isinstance(await hooks(told), Again)


async def test_each_end_of_a_job_has_an_id_of_its_own() -> None:
    once = job("http://example.com")
    assert message_id(once) == message_id(replace(once, webhook=Webhook()))
    assert message_id(once) != message_id(replace(once, ended_at=1_800_000_001.0))


@pytest.mark.parametrize(("status", "kind"), [(302, Again), (410, Dead), (404, Again), (200, None)])
async def test_redirects_are_not_followed_and_who_wants_no_more_gets_no_more(
    sender: Make, status: int, kind: type | None
) -> None:
    async with Receiver(status) as receiver:
        answer = await sender()(job(receiver.url))
    assert answer is None if kind is None else isinstance(answer, kind)
    assert receiver.paths == ["/hook"]


async def test_who_does_not_answer_in_time_is_told_again(sender: Make) -> None:
    silent = await asyncio.start_server(_trickle, "127.0.0.1", 0)
    async with silent:
        port = silent.sockets[0].getsockname()[1]
        answer = await sender(webhook_timeout=0.2)(job(f"http://127.0.0.1:{port}/"))
    assert isinstance(answer, Again)


async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.05)
    except ConnectionError:
        writer.close()


async def test_private_addresses_hear_nothing_unless_allowed(sender: Make) -> None:
    async with Receiver(200) as receiver:
        answer = await sender(webhook_allow_private=False)(job(receiver.url))
    assert isinstance(answer, Dead)
    assert "T2I_WEBHOOK_ALLOW_PRIVATE" in answer.error
    assert not receiver.heard


def test_delays_vary_by_half_and_end_at_six_hours() -> None:
    for jitter in (0.0, 1.0):
        hooks = Webhooks(settings(), jitter=lambda jitter=jitter: jitter)
        delays = [hooks.delay(attempts) for attempts in range(1, 30)]
        assert delays[0] == pytest.approx(5 * (0.5 + jitter / 2))
        assert max(delays) == pytest.approx(6 * 3600 * (0.5 + jitter / 2))


def test_without_a_secret_nothing_is_sent() -> None:
    assert "T2I_WEBHOOK_SECRET" in Webhooks(Settings()).check("https://example.com/")
    assert Webhooks(settings()).check("https://example.com/") == ""


@pytest.mark.parametrize("secret", ["abc", "whsec_", "whsec_AAAA", f"{SECRETS[0]},whsec_?"])
def test_a_secret_is_one_of_the_scheme(secret: str) -> None:
    with pytest.raises(ValueError, match="openssl"):
        settings(webhook_secret=secret)


def test_the_payload_is_json_with_the_job() -> None:
    from text2image.jobs.webhooks import payload_of

    told = json.loads(payload_of(job("http://example.com", name="Füchse")))
    assert told["data"]["name"] == "Füchse"
    assert told["timestamp"] == told["data"]["ended_at"] == "2027-01-15T08:00:00.500Z"
    assert "webhook" not in told["data"]
