"""Bytes that are no request at all, or one that two servers could read in two ways."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from random import Random

from tests.e2e.hostile.bodies import mutant

# How long to listen for an answer that may never come.
PATIENCE = 0.25
REFUSED_BODY = b'{"text": ""}'
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HEAD = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(160)

PATHS = [
    "/generate",
    "/generate/",
    "/generate/%2e%2e/%0aGET",
    "/generate?text=a%20cat",
    "/v1/images/generations",
    "/v1/models",
    "/v1/%ff%fe",
    "/",
    "//",
    "*",
    "http://elsewhere.example/generate",
    "/static_content/../../../../etc/passwd",
    "/static_content/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/static_content/..%5c..%5cetc",
    "/static_content/%00",
    "/docs.json",
    "/schema.json",
    "/openapi.json",
    "/livez",
    "/healthz",
    "/nowhere" + "/x" * 400,
]
METHODS = ["GET", "POST", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "DELETE", "BREW"]
FIRST_HEADERS = [[b"Host: localhost", b"Content-Type: application/json"]] * 8 + [
    [b"Host: localhost"],
    [b"Host: a"],
    [],
]
HEADERS = [
    b"Content-Length: 12",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: +12",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\x0bchunked",
    b"Expect: 100-continue",
    b"Expect: 200-ok",
    b"Connection: close, Content-Length",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    b"dGhlIHNhbXBsZSBub25jZQ==",
    b"Content-Type: \xff\xfe",
    b"Content-Type: multipart/form-data",
    b"Content-Encoding: gzip",
    b"Authorization: Bearer \xff\xfe",
    b"Authorization: " + b"A" * 9000,
    b"X-API-Key: \xff",
    b"X-Request-Timeout: nan",
    b"X-Request-Timeout: \xff",
    b"X-Request-Timeout: 1e309",
    b"Origin: null\r\nAccess-Control-Request-Method: POST",
    b"Range: bytes=" + b"0-1," * 500,
    b"Range: bytes=abc",
    b"If-Modified-Since: \xff",
    b"traceparent: \xff\xfe",
    b"baggage: \xff=\xff",
    b"X-Forwarded-For: \xff",
    b"Host: elsewhere.example",
    b"Cookie: a=" + b"b" * 4000,
    b"X: a\r\n b",
    b"X: a\x00b",
    b"X" * 70_000 + b": y",
    b"\r\n".join(b"X%d: y" % number for number in range(500)),
    b": nameless",
    b"no colon",
]
BODIES = [
    b"",
    REFUSED_BODY,
    b"0\r\n\r\n",
    b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"c\r\n" + REFUSED_BODY + b"\r\n0\r\n\r\n",
    b"c\r\n" + REFUSED_BODY,
    b"c;x=" + b"y" * 300 + b"\r\n" + REFUSED_BODY + b"\r\n0\r\nTrailer: \xff\r\n\r\n",
    b"zz\r\n\r\n",
    b"-1\r\n\r\n",
    b"ffffffffffffffff\r\nabc",
    b"0x5\r\nabcde\r\n0\r\n\r\n",
]


def http_requests(count: int, random: Random) -> Iterator[bytes]:
    """Requests of odd parts, some of them damaged, and noise."""
    for _ in range(count):
        if not random.randrange(10):
            yield random.choice([random.randbytes(random.randint(1, 200)), PREFACE, TLS_HELLO])
            continue
        version = random.choice(["1.1"] * 8 + ["1.0", "9.9"])
        line = f"{random.choice(METHODS)} {random.choice(PATHS)} HTTP/{version}".encode()
        headers = [*random.choice(FIRST_HEADERS), *random.sample(HEADERS, random.randint(0, 3))]
        request = b"\r\n".join([line, *headers, b"", random.choice(BODIES)])
        yield mutant(request, random) if not random.randrange(3) else request


def ambiguous_requests() -> Iterator[bytes]:
    """A request whose end is a matter of opinion, with another one inside that must not be answered."""
    inner = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    length = b"Content-Length: %d\r\n" % (len(inner) + 5)
    for coding in (b"chunked", b"Chunked", b" chunked", b"chunked\t", b"identity, chunked"):
        encoding = b"Transfer-Encoding:" + coding + b"\r\n"
        yield HEAD + length + encoding + b"\r\n0\r\n\r\n" + inner
        yield HEAD + encoding + length + b"\r\n0\r\n\r\n" + inner
        yield HEAD + encoding + encoding + b"\r\n0\r\n\r\n" + inner
    yield HEAD + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + inner
    yield HEAD + b"Content-Length: 0, 40\r\n\r\n" + inner
    yield HEAD + b"Content-Length : 40\r\n\r\n" + inner


def http2_bytes(count: int, random: Random) -> Iterator[bytes]:
    """Frames in wrong places, of wrong lengths, too many, and noise; as they are or after a good beginning."""
    for _ in range(count):
        frames = b"".join(_frame(random) for _ in range(random.randint(1, 6)))
        noise = random.randbytes(random.randint(1, 300))
        yield random.choice(
            [
                PREFACE + SETTINGS + frames,
                PREFACE + frames,
                PREFACE + noise,
                mutant(PREFACE + SETTINGS + frames, random),
                frames,
                noise,
                TLS_HELLO,
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                PREFACE + SETTINGS * 200,
                PREFACE + SETTINGS + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" * 200,
            ]
        )


def _frame(random: Random) -> bytes:
    payload = random.randbytes(random.choice([0, 1, 4, 5, 8, 40]))
    length = random.choice([len(payload)] * 6 + [0, 2**24 - 1])
    stream = random.choice([0, 1, 2, 3, 2**31 - 1])
    kind, flags = random.randint(0, 12), random.choice([0, 1, 4, 5, 8, 0x24, 0xFF])
    return length.to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def exchange(port: int, data: bytes) -> bytes:
    """Sends the bytes and returns what comes back in a moment, or until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        answer = b""
        try:
            connection.sendall(data)
            connection.settimeout(PATIENCE)
            while part := connection.recv(1 << 16):
                answer += part
        except (TimeoutError, ConnectionError, BrokenPipeError):
            pass
        return answer


def half_open(port: int, beginning: bytes) -> socket.socket:
    """A connection that has begun to send, and does not go on."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(beginning)
    return connection


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3}) ", answer, re.MULTILINE)]


def worst_status(answer: bytes) -> int:
    """The highest status in what came back, or 0 for no answer at all."""
    return max(statuses(answer), default=0)
