"""The compose files are valid and safe, and the processes that they describe work together."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import compose_spec
import httpx
import pytest
import redis
import yaml

from tests.deploy.stack import (
    CONTAINER,
    DEPLOY,
    OUR_IMAGE,
    Stack,
    compose,
    image_environment,
)
from tests.e2e.harness import DEFAULTS, START_SECONDS, eventually, is_ready
from text2image.client import Client
from text2image.core.settings import Settings

FILES = ("compose.yaml", "compose.gpu.yaml")
# What BentoML takes to end once nothing is in flight, and more.
ENDING_SECONDS = 30
STARTED = ("limits", "pictures", "server", "page", "prometheus")
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(compose()["services"])


@pytest.mark.parametrize("name", FILES)
def test_the_file_keeps_the_compose_specification(name: str) -> None:
    compose_spec.PyCompose.from_json(json.dumps(compose(name))).to_spec()


def test_the_gpus_are_added_to_services_that_there_are(services: dict[str, Any]) -> None:
    added = compose("compose.gpu.yaml")["services"]
    assert set(added) == {"server"} < set(services)
    reservations = added["server"]["deploy"]["resources"]["reservations"]
    assert reservations["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]


def test_every_service_is_confined_restarted_and_watched(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].split(":")[0]) > 0, name
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_every_name_in_the_file_is_of_something_in_it(services: dict[str, Any]) -> None:
    file = compose()
    for service in services.values():
        for needed, condition in service.get("depends_on", {}).items():
            assert condition["condition"] == "service_started" or "healthcheck" in services[needed]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (
                (DEPLOY / source).exists() if source.startswith(".") else source in file["volumes"]
            )
        for mounted in service.get("configs", []):
            assert mounted["source"] in file["configs"]


def test_every_variable_of_ours_is_a_setting_and_its_value_fits(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for service in services.values():
        if service["image"].startswith(OUR_IMAGE):
            for variable, value in service["environment"].items():
                assert variable.removeprefix("T2I_").lower() in Settings.model_fields, variable
                monkeypatch.setenv(variable, value)
    assert Settings().redis_url


def test_what_the_image_writes_to_can_be_written(services: dict[str, Any]) -> None:
    for service in services.values():
        if service["image"].startswith(OUR_IMAGE):
            assert {"/tmp", "/cache", "/pictures"} <= set(Stack._folders_of(service))
            assert f"USER {service['user']}\n" in (CONTAINER / "Dockerfile").read_text()


def test_the_server_is_given_more_time_to_end_than_its_drain_takes(
    services: dict[str, Any],
) -> None:
    grace = services["server"]["stop_grace_period"]
    drain = float(services["server"]["environment"]["T2I_DRAIN_TIMEOUT"])
    assert float(grace.removesuffix("s")) >= drain + ENDING_SECONDS


def test_grafana_finds_prometheus_and_the_dashboards_where_they_are_mounted(
    services: dict[str, Any],
) -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (sources,) = (yaml.safe_load(path.read_text()) for path in provisioning.glob("datasources/*"))
    assert {source["url"] for source in sources["datasources"]} == {"http://prometheus:9090"}
    (boards,) = (yaml.safe_load(path.read_text()) for path in provisioning.glob("dashboards/*"))
    mounted = {volume.split(":")[1] for volume in services["grafana"]["volumes"]}
    assert {provider["options"]["path"] for provider in boards["providers"]} <= mounted
    assert list((DEPLOY / "grafana" / "dashboards").glob("*.json"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All but Grafana, which neither pip nor Debian has; limits are switched on, so that both Redis have work."""
    running = Stack(tmp_path_factory.mktemp("stack"), T2I_RATE_LIMIT="600/minute", **DEFAULTS)
    try:
        for name in STARTED:
            running.start(name)
        eventually(lambda: _is_ready(running), "the server is ready", START_SECONDS)
        yield running
    finally:
        for name in STARTED:
            with suppress(OSError):
                print(f"{name}:\n{running.log(name)}")
        running.stop_all()


def _is_ready(stack: Stack) -> bool:
    assert stack.is_running("server"), stack.log("server")
    return is_ready(f"http://{stack.address('server', 3000)}")


def test_the_health_checks_of_the_running_services_succeed(stack: Stack) -> None:
    for name in ("limits", "pictures", "server"):
        assert stack.is_healthy(name), stack.log(name)
    eventually(lambda: stack.is_healthy("page"), "the page is well")


def test_a_picture_is_drawn_saved_charged_and_remembered(stack: Stack) -> None:
    url = f"http://{stack.address('server', 3000)}/generate"
    order = {"text": "a red apple", "steps": 4, "seed": 11}
    first, again = (httpx.post(url, json=order, timeout=120).json() for _ in range(2))
    assert base64.b64decode(first["image_base64"]).startswith(PNG)
    assert again["image_base64"] == first["image_base64"]
    assert (first["cached"], again["cached"]) == (False, True)
    assert Path(first["image_path"]).is_relative_to(stack.environment("server")["T2I_OUTPUT_DIR"])
    for name in ("limits", "pictures"):
        with redis.Redis.from_url(f"redis://{stack.address(name, 6379)}") as books:
            assert books.dbsize(), f"nothing was written to {name}"


def test_grpc_answers_at_the_address_that_the_page_was_given(stack: Stack) -> None:
    address = stack.environment("page")["T2I_SERVER"]
    assert address == stack.address("server", 50051)
    with Client(address) as client:
        (picture,) = client.generate("a cat", steps=2)
    assert picture.png.startswith(PNG)


def test_prometheus_scrapes_the_server_and_knows_its_rules(stack: Stack) -> None:
    api = f"http://{stack.address('prometheus', 9090)}/api/v1"

    def scraped() -> Any:
        answer = httpx.get(f"{api}/query", params={"query": "text2image_runners_ready"})
        return answer.json()["data"]["result"]

    (series,) = eventually(scraped, stack.log("prometheus"))
    assert series["metric"]["instance"] == stack.address("server", 3000)
    assert httpx.get(f"{api}/rules").json()["data"]["groups"]


def test_the_server_ends_with_status_0(stack: Stack) -> None:
    assert stack.stop("server") == 0


def test_the_image_listens_where_the_file_looks_for_it() -> None:
    environment = image_environment()
    ports = {environment[name] for name in ("PORT", "GRPC_PORT", "T2I_PAGE_PORT")}
    services = compose()["services"]
    published = {
        port.rsplit(":", 1)[1] for name in ("server", "page") for port in services[name]["ports"]
    }
    assert published == ports
    assert environment["HOST"] == "0.0.0.0"
