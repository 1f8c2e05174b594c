"""BentoML's own clients get adaptive batching as BentoML documents it, on the same engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bentoml
import pytest

from tests.e2e.harness import Server, serving
from tests.e2e.test_pictures import assert_same, image_of


@pytest.mark.timeout(600)
def test_a_runner_alone_serves_batches_to_bentoml_clients(tmp_path: Path) -> None:
    items = [{"text": "a fox", "seed": 3, "steps": steps} for steps in (2, 4, 0)]
    with serving(Server(tmp_path, "Runner")) as server, ThreadPoolExecutor() as pool:
        client = bentoml.SyncHTTPClient(server.url)
        alone = client.generate(requests=items[:1])
        calls = [pool.submit(client.generate, requests=[item]) for item in items]
        answers = [call.result()[0] for call in calls]
        client.close()
    assert [answer["status_code"] for answer in answers] == [200, 200, 400]
    assert answers[2]["violations"][0]["field"] == "steps"
    first, again = alone[0]["image_base64"], answers[0]["image_base64"]
    assert_same(image_of(first), image_of(again))
