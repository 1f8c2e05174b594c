"""LitServe with batching: `python -m loadtests.baselines.lit PORT`."""

from __future__ import annotations

import sys
from typing import Any

import litserve

from loadtests.baselines import MAX_BATCH, Request

# How long a batch is waited for. With 0 LitServe asks its queue without a pause, which costs a whole core while idle.
BATCH_TIMEOUT = 0.01


class Drawing(litserve.LitAPI):
    """A batch of requests is drawn in one go, and answered at its end."""

    def setup(self, device: Any) -> None:
        # Here, since the process that starts the worker imports this file too and needs no torch.
        from loadtests.baselines.pipeline import Pipeline

        self._pipeline = Pipeline()

    def batch(self, inputs: list[Request]) -> list[Request]:
        return inputs

    def predict(self, inputs: list[Request]) -> list[str]:
        return self._pipeline.draw(inputs)

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        return {"image_base64": output}


if __name__ == "__main__":
    api = Drawing(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT, api_path="/generate")
    server = litserve.LitServer(api, accelerator="cpu", timeout=False, healthcheck_path="/readyz")
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
