"""Locust users of `POST /generate`: `make load` runs them at 1, 5, 10 and 20 at once."""

from __future__ import annotations

import random

from locust import FastHttpUser, constant, task


class Visitor(FastHttpUser):
    """Asks for one picture after the other, in a mix of step counts."""

    wait_time = constant(0)

    @task(1)
    def short(self) -> None:
        self._generate(10)

    @task(2)
    def usual(self) -> None:
        self._generate(20)

    @task(1)
    def long(self) -> None:
        self._generate(40)

    def _generate(self, steps: int) -> None:
        body = {
            "text": "a cat on a blue background",
            "steps": steps,
            "seed": random.getrandbits(32),
        }
        self.client.post("/generate", json=body, name=f"/generate, {steps} steps")
