"""With a keys file a server is there for the owners of keys alone, on every transport and in the words of each."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.e2e.dialects import DIALECTS, KINDS, Answer, Ask, in_v1
from tests.e2e.harness import ROOT, Server, serving
from tests.web import call
from text2image.client import Client
from text2image.core.keys import ApiKey, KeysFile, Scope, hash_of
from text2image.v1 import image_generation_pb2 as v1

DRAWER, ADMIN, LIMITED, UNKNOWN = ("t2i_" + word * 6 for word in ("drawer", "admin", "few", "no"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> KeysFile:
    file = KeysFile(tmp_path_factory.mktemp("keys") / "keys.json")
    file.add(make_key("drawer", DRAWER))
    file.add(make_key("admin", ADMIN, scopes=(Scope.ADMIN,)))
    file.add(make_key("limited", LIMITED, rate_limit="1/day"))
    return file


def make_key(name: str, key: str, **more: object) -> ApiKey:
    return ApiKey(name=name, sha256=hash_of(key), created=datetime.now(UTC), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def guarded(
    file: KeysFile, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose log and answers are searched for keys when all tests are over."""
    settings = {"T2I_KEYS_FILE": str(file.path), "T2I_LOG_PROMPTS": "1"}
    with serving(
        Server(tmp_path_factory.mktemp("guarded"), engine_of=server, **settings)
    ) as guarded:
        yield guarded
        metrics = httpx.get(f"{guarded.url}/metrics", headers=bearer(ADMIN)).text
        for key in (DRAWER, ADMIN, LIMITED, UNKNOWN):
            assert key not in guarded.log
            assert key not in metrics
        assert 'text2image_auth_failures_total{why="missing"}' in metrics
        assert 'text2image_refusals_total{reason="PERMISSION_DENIED"}' in metrics


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ask(dialect: str) -> Ask:
    return DIALECTS[dialect]


def check_refusal(answer: Answer, status: int, dialect: str) -> None:
    assert answer.status == status
    assert answer.message
    assert answer.kind == KINDS[status].get(dialect)
    for key in (DRAWER, ADMIN, UNKNOWN):
        assert key not in answer.message
    if dialect in ("rest", "openai"):
        assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {DRAWER}"},
        bearer(UNKNOWN),
        {"X-API-Key": UNKNOWN},
        bearer(hash_of(DRAWER)),
    ],
    ids=["none", "empty", "basic", "unknown", "unknown by x-api-key", "the hash"],
)
def test_without_a_key_that_is_known_nobody_is_served(
    guarded: Server, ask: Ask, dialect: str, headers: dict[str, str] | None
) -> None:
    check_refusal(ask(guarded, headers, steps=1), 401, dialect)


def password(key: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'me:{key}'.encode()).decode()}"}


@pytest.mark.parametrize("headers", [bearer(DRAWER), {"X-API-Key": DRAWER}, password(DRAWER)])
def test_a_key_opens_every_dialect(guarded: Server, ask: Ask, headers: dict[str, str]) -> None:
    assert ask(guarded, headers, steps=1).status == 200


def test_a_key_for_other_things_is_told_so(guarded: Server, ask: Ask, dialect: str) -> None:
    answer = ask(guarded, bearer(ADMIN), steps=1)
    check_refusal(answer, 403, dialect)
    assert "generate" in answer.message


def test_what_is_known_of_the_model_is_for_owners_of_keys_too(guarded: Server) -> None:
    expected = {None: 401, UNKNOWN: 401, ADMIN: 403, DRAWER: 200}
    for key, status in expected.items():
        headers = bearer(key) if key else None
        assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == status
        model = in_v1(guarded, headers, lambda stub: stub.GetModel, v1.GetModelRequest())
        watched = in_v1(guarded, headers, lambda stub: stub.WatchStatus, v1.WatchStatusRequest())
        assert (model.status, watched.status) == (status, status)


def test_metrics_are_for_admins_alone(guarded: Server) -> None:
    expected = {None: 401, UNKNOWN: 401, DRAWER: 403, ADMIN: 200}
    for key, status in expected.items():
        answer = httpx.get(f"{guarded.url}/metrics", headers=bearer(key) if key else None)
        assert answer.status_code == status


def test_whoever_looks_after_the_server_needs_no_key(guarded: Server) -> None:
    for path in ("/livez", "/readyz"):
        assert httpx.get(f"{guarded.url}{path}").status_code == 200
    with grpc.insecure_channel(guarded.address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert "text2image.v1.ImageGeneration" in services


def test_the_key_is_asked_for_before_anything_else(guarded: Server, ask: Ask, dialect: str) -> None:
    check_refusal(ask(guarded, None, steps=-1), 401, dialect)


def test_a_page_is_asked_for_a_key_before_it_is_told_anything(guarded: Server) -> None:
    for shown, status in ((None, 16), (UNKNOWN, 16), (ADMIN, 7), (DRAWER, 3)):
        _, answer = call(guarded.url, "Generate", b"", **(bearer(shown) if shown else {}))
        assert answer.status == status
        assert "endpoint-load-metrics-bin" not in answer.trailers


@pytest.mark.parametrize("path", ["/", "/generate", "/v1/images/generations"])
@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}])
def test_no_body_is_read_for_a_stranger(guarded: Server, path: str, expect: dict[str, str]) -> None:
    body = b"[" * (6 << 20)
    answer = httpx.post(f"{guarded.url}{path}", content=body, headers=expect, timeout=60)
    assert answer.status_code == 401


def test_a_key_that_is_made_while_the_server_runs_works_until_it_is_revoked(
    guarded: Server, file: KeysFile, ask: Ask
) -> None:
    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "text2image.keys", *words],
            cwd=ROOT,
            env={"T2I_KEYS_FILE": str(file.path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    key = command("create", "guest").removesuffix("\n")
    assert ask(guarded, bearer(key), steps=1).status == 200
    assert command("revoke", "guest") == ""
    assert ask(guarded, bearer(key), steps=1).status == 401
    assert key not in guarded.log


def test_a_keys_own_limit_counts(guarded: Server, ask: Ask, dialect: str) -> None:
    answer = ask(guarded, bearer(LIMITED), steps=100)
    check_refusal(answer, 403, dialect)
    assert "1.6 megapixel-steps" in answer.message
    assert "1/day" in answer.message


def test_the_client_shows_its_key(guarded: Server) -> None:
    with Client(guarded.address, api_key=DRAWER) as client:
        assert client.generate("a cat", steps=1)[0].png


@pytest.mark.usefixtures("hub_client")
def test_hugging_faces_client_shows_its_key(guarded: Server) -> None:
    one_step = {"width": 64, "height": 64, "num_inference_steps": 1}
    client = InferenceClient(base_url=guarded.url, api_key=DRAWER)
    assert client.text_to_image("a cat", **one_step).size == (64, 64)
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(base_url=guarded.url, api_key=UNKNOWN).text_to_image("a cat", **one_step)


def test_whoever_has_a_pictures_url_needs_no_key(guarded: Server) -> None:
    body = {"prompt": "vermilion", "steps": 1, "response_format": "url"}
    url = f"{guarded.url}/v1/images/generations"
    asked = httpx.post(url, json=body, headers=bearer(DRAWER)).json()["data"][0]["url"]
    read = httpx.get(asked)
    assert read.headers["content-type"] == "image/png"
    assert read.content == next(guarded.pictures.glob("vermilion*")).read_bytes()
    assert httpx.get(f"{asked[:-1]}{'A' if asked[-1] != 'A' else 'B'}").status_code == 403
    assert "vermilion" not in asked


def test_a_server_without_its_keys_file_does_not_start(tmp_path: Path) -> None:
    missing = Server(tmp_path, T2I_KEYS_FILE=str(tmp_path / "keys.json"))
    missing.start()
    assert missing.wait() != 0
    (line,) = missing.log.strip().splitlines()
    assert "keys.json: No such file" in line
    assert "text2image.keys create" in line


def test_nobody_is_believed_about_an_address_unless_told_to(guarded: Server) -> None:
    httpx.get(f"{guarded.url}/v1/models", headers={"X-Forwarded-For": "203.0.113.99"})
    assert "/v1/models" in guarded.log
    assert "203.0.113.99" not in guarded.log
