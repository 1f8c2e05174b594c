"""Two gateway processes that share a Redis keep one limit, on every transport, and go on without it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count

import httpx
import pytest
from redis import Redis

from tests.e2e.dialects import DIALECTS, KINDS, SECONDS, Answer, Ask, ask_rest, ask_v1, metadata
from tests.e2e.harness import Server, eventually, serving
from tests.redis import RedisServer, redis_server
from tests.samples import Charge
from text2image.core.limits import MEGA, Allowance, parse_limits
from text2image.core.messages import Share
from text2image.gateway.auth import Caller
from text2image.gateway.quota import Quotas
from text2image.gateway.shared.rate_limits import RedisStore
from text2image.gateway.shared.state import SharedState
from text2image.net import wire
from text2image.v1 import image_generation_pb2 as v1

LIMIT, CAP = 4, 2
# 128 x 128 pixels: what a step costs, and a picture of as many as take a while.
STEP, LONG = 128 * 128, 60
_numbers = count(1)


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def limited(
    server: Server, shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Open to all addresses, behind a proxy that is this machine: each test is a caller of its own."""
    settings = {
        "HOST": "0.0.0.0",
        "T2I_GATEWAY_WORKERS": "2",
        "T2I_REDIS_URL": shared_redis.url,
        "T2I_RATE_LIMIT": f"{LIMIT}/hour;100/day",
        "T2I_MAX_CONCURRENT": str(CAP),
        "T2I_TRUSTED_PROXIES": "127.0.0.1",
        "T2I_CACHE_BYTES": "0",
    }
    folder = tmp_path_factory.mktemp("limited")
    with serving(Server(folder, engine_of=server, **settings)) as limited:
        eventually(lambda: both_are_ready(limited), "both processes know the model")
        yield limited
        metrics = httpx.get(f"{limited.url}/metrics").text
        assert 'code="INTERNAL"' not in metrics
        assert 'text2image_refusals_total{reason="QUOTA_EXCEEDED"}' in metrics


@pytest.fixture
def me() -> dict[str, str]:
    """The headers of a caller who has not asked for anything yet."""
    return from_address(f"198.51.100.{next(_numbers)}")


def from_address(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


def both_are_ready(server: Server) -> bool:
    prober = from_address("192.0.2.200")
    httpx.get(f"{server.url}/v1/models", headers=prober)
    return len(processes_of(server, prober, "status=200")) == 2


def spend(redis: RedisServer, headers: dict[str, str], work: int) -> None:
    """Lets a third gateway draw so many pixel-steps for a caller."""

    async def draw() -> None:
        state = SharedState(redis.url)
        quotas = Quotas(RedisStore(state))
        name = f"address:{headers['X-Forwarded-For']}"
        caller = Caller(name, Share(name), Allowance(parse_limits(f"{LIMIT}/hour;100/day")))
        async with quotas.reserved(caller, work, Charge()) as reservation:
            reservation.taken = True
        await quotas.close()
        await state.close()

    asyncio.run(draw())


@pytest.fixture
def spent(shared_redis: RedisServer) -> dict[str, str]:
    """The headers of a caller who has 0.7 left."""
    headers = from_address(f"192.0.2.{next(_numbers)}")
    spend(shared_redis, headers, LIMIT * MEGA - 700_000)
    return headers


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ask(dialect: str) -> Ask:
    return DIALECTS[dialect]


def spent_in_redis(redis: Redis, headers: dict[str, str]) -> int:
    """Pixel-steps that a caller has spent, as the gateways share it."""
    key = f"text2image:caller:address:{headers['X-Forwarded-For']}:hour"
    return sum(map(int, redis.hgetall(key).values()))


def processes_of(server: Server, headers: dict[str, str], status: str = "") -> set[str]:
    """Which gateway processes have answered a caller over HTTP, by the access log."""
    address = f'"{headers["X-Forwarded-For"]}:'
    lines = [line for line in server.log.splitlines() if address in line and status in line]
    return {match[0] for line in lines if (match := re.search(r"text2image-gateway:\d+", line))}


def test_one_limit_holds_for_both_processes_and_both_protocols(
    limited: Server, shared_redis: RedisServer, me: dict[str, str]
) -> None:
    fitting, steps = 3, 10
    before = LIMIT * MEGA - (fitting * steps + 1) * STEP
    spend(shared_redis, me, before)
    answers = []

    def drawn() -> bool:
        with ThreadPoolExecutor(CAP) as pool:
            asks = [pool.submit(ask, limited, me, steps=steps) for ask in (ask_rest, ask_v1)]
            answers.extend(asked.result() for asked in asks)
        return len(answers) > 2 * fitting and len(processes_of(limited, me)) == 2

    eventually(drawn, "both processes have answered")
    assert {answer.status for answer in answers} == {200, 429}
    assert sum(answer.status == 200 for answer in answers) == fitting
    with shared_redis.connection as redis:
        assert spent_in_redis(redis, me) == before + fitting * steps * STEP


def check_headers(answer: Answer, left: int) -> None:
    policies, standings = (
        answer.headers.get_list(name, split_commas=True)
        for name in ("RateLimit-Policy", "RateLimit")
    )
    assert policies == [
        f'"hour";q={LIMIT};w=3600;qu="megapixel-steps"',
        '"day";q=100;w=86400;qu="megapixel-steps"',
    ]
    match = re.fullmatch(r'"hour";r=(\d+);t=(\d+)', standings[0])
    assert match
    assert int(match[1]) == left
    assert 0 < int(match[2]) <= 3660


def test_a_used_up_limit_is_told_in_the_words_of_every_dialect(
    limited: Server, spent: dict[str, str], ask: Ask, dialect: str
) -> None:
    answer = ask(limited, spent, steps=LONG)
    assert answer.status == 429
    assert answer.kind == KINDS[429].get(dialect)
    assert f"your limit of {LIMIT}/hour leaves 0.7 megapixel-steps" in answer.message
    assert answer.retry_after
    assert 0 < answer.retry_after <= 3660
    if dialect in ("rest", "openai"):
        check_headers(answer, 0)
    if dialect == "grpc v1":
        assert answer.subject == f"address:{spent['X-Forwarded-For']}"


def test_what_still_fits_is_drawn(limited: Server, spent: dict[str, str], ask: Ask) -> None:
    assert ask(limited, spent, steps=1).status == 200


def test_more_than_the_limit_ever_allows_is_denied_for_good(
    limited: Server, me: dict[str, str], ask: Ask, dialect: str
) -> None:
    answer = ask(limited, me, steps=150, n=4)
    assert answer.status == 403
    assert answer.kind == KINDS[403].get(dialect)
    assert answer.retry_after is None
    assert f"costs 9.8 megapixel-steps and your limit is {LIMIT}/hour" in answer.message


def test_success_tells_where_one_stands_and_refused_requests_cost_nothing(
    limited: Server, me: dict[str, str]
) -> None:
    assert ask_rest(limited, me, steps=0).status == 400
    assert ask_rest(limited, me, steps=150, n=4).status == 403
    hurried = {**me, "X-Request-Timeout": "0.001"}
    assert ask_rest(limited, hurried, steps=LONG).status in (503, 504)
    answer = ask_rest(limited, me, steps=1)
    assert answer.status == 200
    check_headers(answer, (LIMIT * MEGA - STEP) // MEGA)


@pytest.mark.parametrize(
    "chain",
    [
        "203.0.113.5, {me}",
        "10.1.2.3, 203.0.113.5,{me}",
        "made up, {me}",
        "{me}, 127.0.0.1",
    ],
)
def test_nobody_gets_another_limit_by_making_up_where_they_come_from(
    limited: Server, spent: dict[str, str], ask: Ask, chain: str
) -> None:
    headers = from_address(chain.format(me=spent["X-Forwarded-For"]))
    assert ask(limited, headers, steps=LONG).status == 429


def test_no_more_requests_run_at_once_than_may_and_their_places_come_free(
    limited: Server, me: dict[str, str]
) -> None:
    request = v1.GenerateRequest(prompt="a cat", steps=LONG, progress_every=1)
    with ExitStack() as stack:
        calls = []
        for _ in range(CAP):
            client = stack.enter_context(limited.client())
            call = wire.stub(client._channel).Generate(
                request, timeout=SECONDS, metadata=metadata(me)
            )
            stack.callback(call.cancel)
            assert next(call).HasField("queued")
            calls.append(call)
        for ask in DIALECTS.values():
            answer = ask(limited, me, steps=1)
            assert answer.status == 429
            assert f"{CAP} of your requests" in answer.message
            assert answer.retry_after
        calls[0].cancel()
        eventually(lambda: ask_v1(limited, me, steps=1).status == 200, "a place is free")


def test_a_place_of_a_killed_gateway_comes_free(
    limited: Server, shared_redis: RedisServer, me: dict[str, str]
) -> None:
    """Until then it counts: Redis cannot know that it was killed."""
    request = v1.GenerateRequest(prompt="a cat", steps=LONG, progress_every=1)
    with ExitStack() as stack:
        for _ in range(CAP):
            client = stack.enter_context(limited.client())
            call = wire.stub(client._channel).Generate(
                request, timeout=SECONDS, metadata=metadata(me)
            )
            assert next(call).HasField("queued")
        for gateway in limited.gateways():
            gateway.kill()
    eventually(lambda: len(limited.gateways()) == 2 and limited.is_ready(), "both are back")
    eventually(lambda: ask_rest(limited, me, steps=1).status == 200, "the places are free")


def test_who_is_open_to_everybody_is_warned_once(limited: Server) -> None:
    assert limited.log.count("WARNING: listening on 0.0.0.0 without API keys") == 1


def test_without_redis_requests_are_served_and_with_it_again_shared(
    limited: Server, shared_redis: RedisServer, me: dict[str, str]
) -> None:
    shared_redis.kill()
    for ask in DIALECTS.values():
        assert ask(limited, me, steps=1).status == 200
    shared_redis.restart()

    def told() -> bool:
        assert ask_rest(limited, me, steps=1).status == 200
        with shared_redis.connection as redis:
            return spent_in_redis(redis, me) > 0

    eventually(told, "Redis knows of what is spent")
