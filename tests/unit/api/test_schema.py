"""The description of the HTTP API is valid, whole, and true of what it shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from text2image.api.app import http_app
from text2image.api.openai_responses import error_body
from text2image.core.errors import Internal
from text2image.core.settings import get_settings

APP = http_app()
DESCRIPTION = APP.openapi()
PROBES = {"/livez", "/healthz", "/readyz"}
OPERATIONS = [
    pytest.param(operation, id=f"{method} {path}")
    for path, methods in DESCRIPTION["paths"].items()
    for method, operation in methods.items()
]


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is sent either way: which it is, and what is said of it."""
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        yield f"request {kind}", media
    for status, response in operation["responses"].items():
        assert response["description"]
        for kind, media in response["content"].items():
            yield f"{status} {kind}", media


def test_it_is_valid() -> None:
    validate(DESCRIPTION)


def test_what_it_refers_to_is_in_it() -> None:
    def referred(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from (str(each) for key, each in value.items() if key == "$ref")
        children = value.values() if isinstance(value, dict) else value
        for each in children if isinstance(value, dict | list) else ():
            yield from referred(each)

    for name in set(referred(DESCRIPTION)):
        found: Any = DESCRIPTION
        for part in name.removeprefix("#/").split("/"):
            found = found[part]


def test_every_route_is_in_it() -> None:
    routes = [each for each in iter_route_contexts(APP.routes) if each.path]
    own = {route.path_format for route in routes if route.include_in_schema}
    hidden = {route.path for route in routes if not route.include_in_schema}
    assert set(DESCRIPTION["paths"]) - own == PROBES, "BentoML's"
    assert own <= set(DESCRIPTION["paths"])
    # The description itself and its page, gRPC-Web, and what answers for paths that are not there.
    assert hidden == {
        "/",
        "/docs",
        "/docs.js",
        "/docs.json",
        "/openapi.json",
        "/generate/{rest:path}",
        "/text2image.v1.ImageGeneration/{method}",
        "/text2image.v1.Jobs/{method}",
        "/text2image.v1.Jobs/{rest:path}",
        "/text2image.v1.ImageGeneration/{rest:path}",
        "/v1/{rest:path}",
        "/hf-inference/{rest:path}",
        "/sdapi/{rest:path}",
        # Clients are given these URLs, and make none.
        "/v1/images/files/{name:path}",
    }


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_is_sent_has_a_schema_that_its_example_fits(operation: dict[str, Any]) -> None:
    for what, media in contents(operation):
        schema = {"components": DESCRIPTION["components"], **media["schema"]}
        assert media["schema"], what
        Draft202012Validator(schema).validate(media["example"])
    described = [*operation.get("parameters", ())]
    for response in operation["responses"].values():
        described += response.get("headers", {}).values()
    for each in described:
        Draft202012Validator(each["schema"]).validate(each["example"])


def test_it_is_the_same_whenever_and_wherever_it_is_made() -> None:
    """Each worker makes its own."""
    made = "from text2image.api.app import http_app; print(json.dumps(http_app().openapi()))"
    again = subprocess.check_output([sys.executable, "-c", f"import json; {made}"], text=True)
    assert json.loads(again) == DESCRIPTION


def test_events_hold_what_is_told_of_them() -> None:
    responses = DESCRIPTION["paths"]["/v1/images/generations"]["post"]["responses"]
    event = responses["200"]["content"]["text/event-stream"]
    data = event["schema"]["properties"]["data"]
    checked = Draft202012Validator(
        {"components": DESCRIPTION["components"], **data["contentSchema"]}
    )
    checked.validate(json.loads(event["example"]["data"]))
    checked.validate({"type": "error", **error_body(Internal("3f2a9c1b7d60"))})
    assert not checked.is_valid({"type": "error"})
    assert not checked.is_valid({"type": "image_generation.completed"})


@pytest.mark.parametrize(
    "path",
    ["/", "/generate", "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"],
)
def test_every_way_to_fail_is_told(path: str) -> None:
    responses = DESCRIPTION["paths"][path]["post"]["responses"]
    expected = {400, 401, 403, 404, 408, 413, 415, 429, 499, 500, 503, 504}
    assert set(map(int, responses)) == {200, *expected}
    for status in expected:
        example = responses[str(status)]["content"]["application/json"]["example"]
        assert example.get("status_code", status) == status
    for status, header in ((429, "Retry-After"), (503, "Retry-After"), (401, "WWW-Authenticate")):
        assert header in responses[str(status)]["headers"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_answer_to_a_foreign_host_is_told(operation: dict[str, Any]) -> None:
    assert "403" in operation["responses"]


def test_probes_need_no_key() -> None:
    for path, methods in DESCRIPTION["paths"].items():
        for operation in methods.values():
            asks = {} not in operation.get("security", [{}]) or "401" in operation["responses"]
            assert asks == (path not in PROBES)


def test_the_longest_timeout_is_told() -> None:
    (timeout,) = DESCRIPTION["paths"]["/generate"]["post"]["parameters"]
    assert timeout["schema"]["maximum"] == get_settings().longest_timeout


def test_operations_have_names_for_generated_clients() -> None:
    names = [
        operation["operationId"]
        for methods in DESCRIPTION["paths"].values()
        for operation in methods.values()
    ]
    assert sorted(names) == sorted(set(names))
    assert {"generate", "create_image", "list_models", "get_model", "metrics"} <= set(names)
