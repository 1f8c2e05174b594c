"""BentoML's own clients get adaptive batching as BentoML documents it, on the same engine, if they may."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import bentoml
import httpx
import pytest

from tests.certificates import Files
from tests.e2e.harness import Server, free_port, serving
from tests.e2e.test_pictures import assert_same, image_of
from text2image.core.keys import ApiKey, KeysFile, Scope, hash_of

ADMIN, DRAWER = "t2i_" + "admin" * 6, "t2i_" + "drawer" * 6


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


@pytest.mark.timeout(600)
def test_a_runner_that_works_for_gateways_draws_over_http_for_keys_that_administer(
    tmp_path: Path,
) -> None:
    """And it listens where its gateways come and on its HTTP port, and nowhere else."""
    file, files, port = KeysFile(tmp_path / "keys.json"), Files(tmp_path / "tls"), free_port()
    for name, key, scopes in (
        ("admin", ADMIN, (Scope.ADMIN, Scope.GENERATE)),
        ("drawer", DRAWER, (Scope.GENERATE,)),
    ):
        file.add(ApiKey(name=name, sha256=hash_of(key), created=datetime.now(UTC), scopes=scopes))
    settings = {
        "T2I_KEYS_FILE": str(file.path),
        "T2I_RUNNER_LISTEN": f"127.0.0.1:{port}",
        "T2I_RUNNER_TLS_CERT": str(files.certificate),
        "T2I_RUNNER_TLS_KEY": str(files.key),
        "T2I_RUNNER_TLS_CA": str(files.ca),
    }
    body = {"requests": [{"text": "a fox", "steps": 2}]}
    with serving(Server(tmp_path, "Runner", **settings)) as server:
        assert server.listening() == {("127.0.0.1", server.http_port), ("127.0.0.1", port)}
        url, drawer = f"{server.url}/generate", {"Authorization": f"Bearer {DRAWER}"}
        assert httpx.post(url, json=body).status_code == 401
        assert httpx.post(url, json=body, headers=drawer).status_code == 403
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        with bentoml.SyncHTTPClient(server.url, token=ADMIN) as client:
            (answer,) = client.generate(**body)
        assert answer["status_code"] == 200
