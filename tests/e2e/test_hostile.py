"""Whatever is sent, the server answers or hangs up, stays as it was, and serves the next one.

Each attack is the same in every run. HOSTILE_SEED=7 makes other ones, and HOSTILE_FACTOR=20 as many times more.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from PIL import Image

from tests import web
from tests.e2e.conftest import NET
from tests.e2e.harness import Server, eventually
from tests.e2e.hostile import bodies, files, prompts, wires
from tests.e2e.test_bad_input import GENERATE_IMAGE, call_seed
from text2image.core.errors import InvalidRequest
from text2image.core.formats import FileFormat
from text2image.gateway import metadata
from text2image.net import text2image_pb2
from text2image.v1 import image_generation_pb2 as v1

SEED = int(os.environ.get("HOSTILE_SEED", "0"))
FACTOR = int(os.environ.get("HOSTILE_FACTOR", "1"))
AT_ONCE = 16
# Bytes that an attack may leave in a process that has been attacked before: heaps of its threads, whatever it sends.
GROWTH = 24 << 20
# Our own refusals by design; any other answer above is a failure of ours.
BY_DESIGN = {503, 504}
BAD_CODES = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
V1 = "/text2image.v1.ImageGeneration"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

Outcomes = Counter[Any]
Attack = Callable[[Server, int, Random], Outcomes]


def attack_json(server: Server, count: int, random: Random) -> Outcomes:
    """Bodies that break the schema, and their mutants, in both dialects."""
    schema = httpx.get(f"{server.url}/openapi.json").json()
    cases = [
        case
        for path in ("/generate", "/v1/images/generations")
        for case in bodies.json_bodies(schema, path, count // 2, random)
    ]
    with httpx.Client(base_url=server.url, timeout=120) as client:

        def send(case: tuple[str, bytes]) -> int:
            path, body = case
            headers = {"Content-Type": "application/json"}
            return client.post(path, content=body, headers=headers).status_code

        return _all(send, cases)


def attack_messages(server: Server, count: int, random: Random) -> Outcomes:
    """Messages of every kind that is served, and their mutants."""
    kinds = {
        GENERATE_IMAGE: (text2image_pb2.ImageRequest, 5),
        f"{V1}/Generate": (v1.GenerateRequest, 5),
        f"{V1}/GetModel": (v1.GetModelRequest, 1),
        f"{V1}/ListModels": (v1.ListModelsRequest, 1),
        f"{V1}/Cancel": (v1.CancelRequest, 1),
        "/grpc.health.v1.Health/Check": (health_pb2.HealthCheckRequest, 1),
        "/grpc.health.v1.Health/List": (health_pb2.HealthListRequest, 1),
    }
    weights = sum(weight for _, weight in kinds.values())
    cases = [
        (method, data)
        for method, (kind, weight) in kinds.items()
        for data in bodies.messages(kind, count * weight // weights + 1, random)
    ]
    random.shuffle(cases)
    with grpc.insecure_channel(server.address) as channel:
        return _all(lambda case: _call(channel, *case), cases[:count])


def attack_web(server: Server, count: int, random: Random) -> Outcomes:
    """Messages as pages send them, whole, cut off, doubled and with odd frames, as bytes and as base64."""
    kinds = {"Generate": v1.GenerateRequest, "GetModel": v1.GetModelRequest}
    codes = {code.value[0]: code for code in grpc.StatusCode}

    def body(data: bytes) -> bytes:
        whole = web.framed(data)
        return random.choice(
            [
                whole,
                whole[: random.randrange(len(whole))],
                whole * 2,
                web.framed(data, flag=random.randrange(256)),
                data,
            ]
        )

    cases = [
        (method, body(data), bool(random.randrange(2)))
        for method, kind in kinds.items()
        for data in bodies.messages(kind, count // 2, random)
    ]

    def send(case: tuple[str, bytes, bool]) -> grpc.StatusCode:
        method, content, text = case
        return codes[web.call(server.url, method, content, text=text)[1].status]

    return _all(send, cases)


def attack_methods(server: Server, count: int, random: Random) -> Outcomes:
    """Methods that are not there, streams where there is one message, and metadata of all kinds."""
    methods = [
        GENERATE_IMAGE,
        f"{V1}/Generate",
        f"{V1}/GetModel",
        f"{V1}/ListModels",
        f"{V1}/../GetModel",
        "/",
        "//",
        f"/{'x' * 2000}/y",
        "/grpc.health.v1.Health/Check",
        REFLECTION,
    ]
    keys = ["authorization", "x-api-key", "text2image-owner", "text2image-weight", "traceparent"]

    def case() -> tuple[str, bytes, Any]:
        data = random.choice([b"", b"\x0a\x00", random.randbytes(random.randint(1, 40))])
        if random.randrange(2):
            data = reflection_pb2.ServerReflectionRequest(
                file_by_filename="../" * random.randint(0, 9),
                file_containing_symbol="x." * random.randint(0, 99),
            ).SerializeToString()
        values = ["", "Bearer ", "Bearer " + "k" * random.randint(1, 20_000), "-1", "9" * 400, "~"]
        found: list[tuple[str, str | bytes]] = [
            (random.choice(keys), random.choice(values)) for _ in range(random.randint(0, 3))
        ]
        if random.randrange(2):
            found.append(("text2image-owner-bin", random.randbytes(random.randint(0, 90))))
        return random.choice(methods), data, found

    with grpc.insecure_channel(server.address) as channel:
        return _all(lambda case: _call(channel, *case), [case() for _ in range(count)])


def attack_http(server: Server, count: int, random: Random) -> Outcomes:
    """Broken, odd and doubtful requests, and noise, on the port of HTTP."""
    return _all(
        lambda data: wires.worst_status(wires.exchange(server.http_port, data)),
        wires.http_requests(count, random),
    )


def attack_http2(server: Server, count: int, random: Random) -> Outcomes:
    """Broken frames, and noise, on the port of gRPC."""

    def send(data: bytes) -> str:
        wires.exchange(server.grpc_port, data)
        return "sent"

    return _all(send, wires.http2_bytes(count, random))


def attack_prompts(server: Server, count: int, random: Random) -> Outcomes:
    """Prompts that mean something else elsewhere, over every transport."""
    with httpx.Client(base_url=server.url, timeout=120) as client:

        def draw(number: int) -> Any:
            prompt = prompts.PROMPTS[number // 4 % len(prompts.PROMPTS)]
            code, png = _DRAW[number % 4](server, client, prompt)
            if png is not None:
                _check_picture(png, prompt)
            return code

        return _all(draw, range(count))


def attack_files(server: Server, count: int, random: Random) -> Outcomes:
    """Files in the place of pictures, masks and control pictures, whatever they say that they are."""
    by_grpc = count // 4
    cases = [(f"{V1}/Generate", data) for data in files.messages(NET, by_grpc, random)]
    with (
        httpx.Client(base_url=server.url, timeout=120) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        outcomes = _all(lambda case: _call(channel, *case), cases)
        return outcomes + _all(
            lambda case: client.post(case[0], **case[1]).status_code,
            files.requests(NET, count - by_grpc, random),
        )


def _grown(server: Server, before: dict[int, int]) -> dict[int, int]:
    """By how many bytes each of the server's processes has grown."""
    after = _memory(server)
    assert set(after) == set(before), "a process was replaced"
    return {pid: size - before[pid] for pid, size in after.items()}


ATTACKS: dict[str, tuple[Attack, int]] = {
    "json": (attack_json, 2600),
    "messages": (attack_messages, 2600),
    "web": (attack_web, 1000),
    "methods": (attack_methods, 2000),
    "http": (attack_http, 2600),
    "http2": (attack_http2, 2600),
    "files": (attack_files, 160),
    "prompts": (attack_prompts, 4 * len(prompts.PROMPTS)),
}


@pytest.mark.timeout(300 * FACTOR)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_nothing(server: Server, name: str) -> None:
    attack, count = ATTACKS[name]
    random = Random(f"{SEED} {name}")
    with unharmed(server):
        attack(server, max(8, count // 10), random)
        before = _memory(server)
        outcomes = attack(server, FACTOR * count, random)
        grown = _grown(server, before)
        if max(grown.values()) >= GROWTH * FACTOR:
            # Threads that were started for a crowd keep their memory; what is lost for each case grows again.
            before = _memory(server)
            outcomes += attack(server, FACTOR * count, random)
            grown = _grown(server, before)
    print(name, dict(outcomes), {pid: f"{size / 2**20:.1f} MiB" for pid, size in grown.items()})
    assert outcomes.total() % (FACTOR * count) == 0
    assert max(grown.values()) < GROWTH * FACTOR, grown
    for outcome in outcomes:
        assert outcome not in BAD_CODES
        assert not isinstance(outcome, int) or outcome < 500 or outcome in BY_DESIGN


def test_a_request_with_two_ends_is_answered_once(server: Server) -> None:
    with unharmed(server):
        for data in wires.ambiguous_requests():
            answer = wires.exchange(server.http_port, data)
            assert len(wires.statuses(answer)) == 1, data
            assert wires.statuses(answer)[0] == 400, data


def test_half_open_connections_hold_up_nobody(server: Server) -> None:
    beginnings = {
        server.http_port: [
            b"",
            b"POST /gen",
            b"POST /generate HTTP/1.1\r\nHost: localhost\r\nX: ",
            wires.HEAD + b"Content-Length: 100\r\n\r\n{",
        ],
        server.grpc_port: [
            b"",
            b"PRI * HT",
            wires.PREFACE,
            wires.PREFACE + wires.SETTINGS + b"\x00\x00\xff\x00\x00",
        ],
    }
    with unharmed(server), ExitStack() as connections:
        for port, begun in beginnings.items():
            for number in range(200):
                connections.enter_context(wires.half_open(port, begun[number % len(begun)]))
        _assert_serves(server)


@pytest.mark.parametrize("prompt", prompts.REFUSED, ids=lambda prompt: f"{len(prompt)} characters")
def test_what_is_too_much_or_no_text_is_refused(server: Server, prompt: str) -> None:
    for path, field in (("/generate", "text"), ("/v1/images/generations", "prompt")):
        body = json.dumps({field: prompt})
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60)
        assert answer.status_code in {400, 413}
    data = prompt.encode(errors="surrogatepass")
    message = b"\x12" + bodies.varint(len(data)) + data
    assert call_seed(server, message).status_code in {400, 413}


def test_a_path_cannot_forge_a_line_of_the_log(server: Server) -> None:
    httpx.get(f"{server.url}/nowhere/%0aFORGED")
    eventually(lambda: "FORGED" in server.log, "the request is logged")
    assert not re.search(r"^FORGED", server.log, re.MULTILINE)


@contextmanager
def unharmed(server: Server) -> Iterator[None]:
    """Whatever is done inside leaves no trace but pictures in their folder, and a server that serves."""
    eventually(server.is_ready, "the server is ready")
    logged, files = len(server.log), _files_elsewhere(server)
    errors = _internal_errors(server)
    yield
    _assert_serves(server)
    said = server.log[logged:]
    assert "Traceback" not in said
    # Answers that nobody waited for are counted too.
    assert not re.search(r"\(status=5(?!03|04)", said)
    assert _internal_errors(server) == errors
    assert _files_elsewhere(server) == files
    assert not any(prompts.MARK in path.name for path in Path("/tmp").iterdir())
    for path in server.pictures.rglob("*"):
        assert path.parent == server.pictures
        assert len(path.name.encode()) <= 255
        stem, suffix = path.stem, path.suffix
        assert suffix in {form.suffix for form in FileFormat}
        assert re.search(r"_\d{8}_\d{6}(_[0-9a-f]+)?$", stem), path
        assert {unicodedata.category(char)[0] for char in stem if char != "_"} <= set("LMN"), path


def _assert_serves(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/generate", json={"text": "a cat", **bodies.CHEAP}, timeout=120
    )
    assert answer.status_code == 200, answer.text
    with server.client() as client:
        assert client.generate("a cat", timeout=120, **bodies.CHEAP)


def _files_elsewhere(server: Server) -> set[Path]:
    """All files of the server's folder but those in the folders where it keeps its own."""
    own = {server.pictures, *(server.folder / name for name in ("bentoml", "cache", "run/metrics"))}
    return {path for path in server.folder.rglob("*") if not own & {path, *path.parents}}


def _internal_errors(server: Server) -> list[str]:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return [line for line in lines if 'code="INTERNAL"' in line]


def _memory(server: Server) -> dict[int, int]:
    """Resident bytes of each of the server's processes."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    return {process.pid: process.memory_info().rss for process in family}


def _all(send: Callable[[Any], Any], cases: Iterable[Any]) -> Outcomes:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return Counter(pool.map(send, cases))


def _call(
    channel: grpc.Channel, method: str, data: bytes, found: list[Any] | None = None
) -> grpc.StatusCode | int:
    """The code of a call, or the status that its answer holds."""
    call = channel.unary_stream(method, request_serializer=bytes, response_deserializer=bytes)
    try:
        answers = list(call(data, timeout=120, metadata=found))
    except grpc.RpcError as error:
        return error.code()
    if method == GENERATE_IMAGE:
        return text2image_pb2.ImageResponse.FromString(answers[0]).status_code
    return grpc.StatusCode.OK


def _draw_rest(server: Server, client: httpx.Client, prompt: str) -> tuple[Any, bytes | None]:
    answer = client.post("/generate", json={"text": prompt, **bodies.CHEAP})
    return answer.status_code, _png(answer.json().get("image_base64"))


def _draw_openai(server: Server, client: httpx.Client, prompt: str) -> tuple[Any, bytes | None]:
    body = {"prompt": prompt, "size": "64x64", "steps": 1}
    answer = client.post("/v1/images/generations", json=body)
    return answer.status_code, _png(answer.json().get("data", [{}])[0].get("b64_json"))


def _draw_seed(server: Server, client: httpx.Client, prompt: str) -> tuple[Any, bytes | None]:
    request = text2image_pb2.ImageRequest(text=prompt, **bodies.CHEAP)
    answer = call_seed(server, request.SerializeToString())
    return answer.status_code, _png(answer.image_base64)


def _draw_v1(server: Server, client: httpx.Client, prompt: str) -> tuple[Any, bytes | None]:
    with server.client() as v1_client:
        try:
            return 200, v1_client.generate(prompt, **bodies.CHEAP)[0].png
        except InvalidRequest:
            return 400, None


_DRAW = (_draw_rest, _draw_openai, _draw_seed, _draw_v1)


def _png(text: str | None) -> bytes | None:
    return base64.b64decode(text) if text else None


def _check_picture(png: bytes, prompt: str) -> None:
    """Its text tells the prompt and nothing else, in characters that any reader may show."""
    image = Image.open(io.BytesIO(png))
    image.load()
    assert set(image.text) == {metadata.CHUNK, metadata.XMP_CHUNK}
    text = image.text[metadata.CHUNK]
    assert metadata.parse(text).prompt == prompt
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
