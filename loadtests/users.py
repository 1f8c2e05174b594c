"""Locust users of each contract: `POST /generate`, gRPC v1, and the first gRPC contract.

Each asks for one picture after the other. One that is refused waits for as long as the server says, as clients should.
T2I_API_KEY and T2I_TLS_CA count here as they do for the Python client.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc.experimental import gevent
from locust import FastHttpUser, User, task

from loadtests.mixes import Mix, Work
from loadtests.target import authorities, http_url, key_headers
from text2image.client import Client
from text2image.core.errors import Text2ImageError
from text2image.net import text2image_pb2

# Locust runs its users in greenlets, which grpc would block otherwise.
gevent.init_gevent()

# Longer than any server keeps a request.
PATIENCE = 900.0
FIRST_CONTRACT = "/Text2ImageService/GenerateImage"


class Visitor(User):
    """What the users of all contracts share."""

    abstract = True

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._generator = random.Random()
        self._mix: Mix = environment.mix
        self._pause = 0.0

    def wait_time(self) -> float:
        """Nothing after a picture, and what the server said after a refusal."""
        pause, self._pause = self._pause, 0.0
        return pause

    def work(self) -> Work:
        return self._mix.work(self._generator)

    def refused(self, retry_after: float | None) -> None:
        """Waits before the next request."""
        self._pause = max(self._pause, retry_after or 0.0)

    @contextmanager
    def reported(self, kind: str, name: str) -> Iterator[Record]:
        """Tells Locust of one call: its time, and what went wrong with it."""
        record = Record()
        failure: Exception | None = None
        began, started = time.time(), time.perf_counter()
        try:
            yield record
        except Exception as error:
            failure = error
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=1000 * (time.perf_counter() - started),
            response_length=record.length,
            exception=failure,
            context={},
            start_time=began,
        )


@dataclass(slots=True)
class Record:
    """The bytes of an answer, for Locust's statistics."""

    length: int = 0


class HttpVisitor(Visitor, FastHttpUser):
    """Draws over `POST /generate`."""

    host = http_url()
    connection_timeout = network_timeout = PATIENCE
    # Locust checks no certificate unless it is told to.
    insecure = authorities() is None
    ssl_context_factory = None if insecure else staticmethod(authorities)

    def on_start(self) -> None:
        self._headers = key_headers()

    @task
    def generate(self) -> None:
        work = self.work()
        answer = self.client.post(
            "/generate",
            json={"text": work.prompt, **work.options},
            name=work.named("/generate"),
            headers=self._headers,
        )
        headers = answer.headers or {}
        self.refused(float(headers.get("Retry-After") or 0))


class GrpcVisitor(Visitor):
    """Draws over `text2image.v1`."""

    def on_start(self) -> None:
        self._client = Client(self.environment.grpc_address)

    def on_stop(self) -> None:
        self._client.close()

    @task
    def generate(self) -> None:
        work = self.work()
        with self.reported("gRPC", work.named("Generate")) as record:
            try:
                pictures = self._client.generate(work.prompt, timeout=PATIENCE, **work.options)
            except Text2ImageError as error:
                self.refused(error.retry_after)
                raise
            record.length = sum(len(picture.png) for picture in pictures)


class FirstContractVisitor(Visitor):
    """Draws over `Text2ImageService.GenerateImage`, on a connection without TLS."""

    def on_start(self) -> None:
        self._channel = grpc.insecure_channel(self.environment.grpc_address)
        self._call = self._channel.unary_unary(
            FIRST_CONTRACT,
            request_serializer=text2image_pb2.ImageRequest.SerializeToString,
            response_deserializer=text2image_pb2.ImageResponse.FromString,
        )
        self._metadata = tuple((name.lower(), value) for name, value in key_headers().items())

    def on_stop(self) -> None:
        self._channel.close()

    @task
    def generate(self) -> None:
        work = self.work()
        request = text2image_pb2.ImageRequest(text=work.prompt, **work.options)
        with self.reported("gRPC", work.named("GenerateImage")) as record:
            answer = self._call(request, timeout=PATIENCE, metadata=self._metadata)
            if answer.status_code != 200:
                self.refused(answer.retry_after)
                raise RuntimeError(f"{answer.status_code}: {answer.message}")
            record.length = len(answer.image_base64)
