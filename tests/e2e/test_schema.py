"""The server answers as its description says, whatever fits the description or does not."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from copy import deepcopy
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from openapi_spec_validator import validate
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.e2e.harness import Server, eventually, free_port
from tests.e2e.hostile.bodies import CHEAP
from tests.e2e.test_hostile import BY_DESIGN
from tests.init_images import file_of, picture

EXAMPLES = 40
OF_A_MODEL = "/hf-inference/models/{model_id}"
A1111 = re.compile("/sdapi/|/internal/")
PATHS = {
    "/": "POST",
    OF_A_MODEL: "POST",
    "/generate": "POST",
    "/v1/images/generations": "POST",
    "/v1/images/edits": "POST",
    "/v1/images/variations": "POST",
    "/v1/responses": "POST",
    "/sdapi/v1/txt2img": "POST",
    "/sdapi/v1/img2img": "POST",
    "/sdapi/v1/png-info": "POST",
    "/sdapi/v1/extra-single-image": "POST",
    "/sdapi/v1/extra-batch-images": "POST",
    "/sdapi/v1/interrupt": "POST",
    "/sdapi/v1/skip": "POST",
    "/internal/progress": "POST",
    "/v1/models": "GET",
    "/v1/models/{model_id}": "GET",
    "/metrics": "GET",
    "/livez": "GET",
    "/healthz": "GET",
    "/readyz": "GET",
    **{
        f"/sdapi/v1/{name}": "GET"
        for name in (
            *("progress", "options", "samplers", "schedulers", "sd-models", "sd-vae", "loras"),
            *("embeddings", "upscalers", "latent-upscale-modes", "hypernetworks", "scripts"),
            *("face-restorers", "realesrgan-models", "prompt-styles", "script-info"),
            *("cmd-flags", "memory"),
        )
    },
    **{
        f"/sdapi/v1/refresh-{name}": "POST"
        for name in ("checkpoints", "loras", "vae", "embeddings")
    },
}
# Files that are uploaded, and batches that begin from them: what exists already is named by the test.
BATCHES = [
    ("/v1/files", "POST"),
    ("/v1/files", "GET"),
    ("/v1/files/{file_id}", "GET"),
    ("/v1/files/{file_id}/content", "GET"),
    ("/v1/batches", "POST"),
    ("/v1/batches", "GET"),
    ("/v1/batches/{batch_id}", "GET"),
    ("/v1/batches/{batch_id}/cancel", "POST"),
    ("/v1/files/{file_id}", "DELETE"),
]
# What is asked about jobs, where one of the test's own has ended.
JOBS = [
    ("/v1/jobs", "GET"),
    *(
        (f"/v1/jobs/{{job_id}}{rest}", "GET")
        for rest in (
            *("", "/items", "/items/{index}/pictures/{picture}"),
            *("/results.jsonl", "/results.zip", "/events"),
        )
    ),
    *(
        (f"/v1/jobs/{{job_id}}/{action}", "POST")
        for action in ("pause", "resume", "cancel", "retry", "webhook")
    ),
    ("/v1/jobs/{job_id}", "DELETE"),
]
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
FITTING = {
    GenerationMode.POSITIVE: positive_data_acceptance,
    GenerationMode.NEGATIVE: negative_data_rejection,
}
# What depends on the model.
_MODELS = {"sampler": "euler", "schedule": "karras", "clip_skip": 2}
# That, and what makes the request a cheap one.
_CHEAP = {
    **_MODELS,
    "model": "embedded",
    "size": "64x64",
    "steps": 1,
    "n": 1,
    # What a request must not say twice, or not of a stream.
    "num_inference_steps": None,
    "cfg_scale": None,
    "response_format": None,
}
# Of a single step a second pass might take none, and which adapters and nets there are depends on the server.
_ALONE = dict.fromkeys(
    (
        "image",
        "strength",
        "mask",
        "controls",
        "hires_scale",
        "hires_strength",
        "hires_steps",
        "hires_upscaler",
        "loras",
    )
)
# What a description cannot say is what a picture is.
_FROM_A_PICTURE = {**_CHEAP, "image": file_of(picture((64, 64))), "strength": 1, "stream": False}
_PARAMETERS = {"parameters": {"width": 64, "height": 64, "num_inference_steps": 1}}
_FILE = file_of(picture((64, 64)))
_A1111 = {
    **dict.fromkeys(("steps", "batch_size", "n_iter", "denoising_strength"), 1),
    **dict.fromkeys(("width", "height"), 64),
    **dict.fromkeys(("scheduler", "clip_skip", "override_settings", "alwayson_scripts")),
    "sampler_name": "euler",
}
KNOWN: dict[str, dict[str, Any]] = {
    "/": _PARAMETERS,
    OF_A_MODEL: _PARAMETERS,
    "/sdapi/v1/txt2img": {**_A1111, "enable_hr": False},
    "/sdapi/v1/img2img": {**_A1111, "init_images": [b64encode(_FILE).decode()], "mask": None},
    "/generate": {**CHEAP, **_ALONE, **_MODELS},
    "/v1/images/generations": {**_CHEAP, "loras": None, "controls": None},
    "/v1/images/edits": _FROM_A_PICTURE,
    "/v1/images/variations": _FROM_A_PICTURE,
}
_TOOL = {"type": "image_generation", "size": "64x64", "steps": 1}
# What only a text model could do is refused.
_NO_TEXT_MODEL = ("tool_choice", "previous_response_id", "conversation", "background", "stream")
KNOWN["/v1/responses"] = {"input": "a fox", "tools": [_TOOL], **dict.fromkeys(_NO_TEXT_MODEL)}
# The same of what is no drawing.
_ENCODED = {"image": b64encode(_FILE).decode()}
_EXTRAS = {"upscaler_1": "Lanczos", "upscaling_resize_w": 96, "upscaling_resize_h": 96}
OTHERS = {
    "/sdapi/v1/png-info": _ENCODED,
    "/sdapi/v1/extra-single-image": {**_ENCODED, **_EXTRAS},
    "/sdapi/v1/extra-batch-images": {"imageList": [{"data": _ENCODED["image"]}], **_EXTRAS},
}
FORMS = {"/v1/images/edits", "/v1/images/variations"}


@pytest.fixture(scope="module")
def description(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/openapi.json").json())


def test_the_description_is_valid_and_the_same_at_both_places(
    server: Server, description: dict[str, Any]
) -> None:
    validate(description)
    assert set(description["paths"]) == {*PATHS, *(path for path, _ in (*BATCHES, *JOBS))}
    assert httpx.get(f"{server.url}/docs.json").json() == description


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        *((path, GenerationMode.POSITIVE) for path in PATHS),
        # In what is only read there is nothing to get wrong, in a form all is text, and A1111 is not strict.
        *(
            (path, GenerationMode.NEGATIVE)
            for path in PATHS
            if PATHS[path] == "POST" and path not in FORMS and not A1111.match(path)
        ),
    ],
)
def test_answers_are_as_described(
    server: Server, description: dict[str, Any], path: str, mode: GenerationMode
) -> None:
    # A copy, since it turns the examples of files into something of its own.
    operation = schemathesis.openapi.from_dict(deepcopy(description))[path][PATHS[path]]
    statuses = set()

    @seed(0)
    @settings(
        max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body |= {**KNOWN, **OTHERS}.get(path, {})
            if path in FORMS:
                # There what is not said is left out.
                left_out = {"mask", *(name for name, value in KNOWN[path].items() if value is None)}
                case.body = {k: v for k, v in case.body.items() if k not in left_out}
        answer = case.call(base_url=server.url, timeout=120)
        statuses.add(answer.status_code)
        assert answer.status_code < 500 or answer.status_code in BY_DESIGN, answer.text
        case.validate_response(answer, checks=[*CHECKS, FITTING[mode]])

    ask()
    assert (200 in statuses) == (mode is GenerationMode.POSITIVE)


@pytest.fixture(scope="module")
def there(server: Server) -> dict[str, str]:
    """A file and a batch, by the names of the parameters that name them."""
    body = {"prompt": "a fox", "size": "64x64", "steps": 1}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": body}
    files = {"file": ("prompts.jsonl", json.dumps(line).encode())}
    sent = httpx.post(f"{server.url}/v1/files", files=files, data={"purpose": "batch"})
    asked = {"endpoint": line["url"], "completion_window": "24h"}
    named = {"file_id": sent.json()["id"]}
    batch = httpx.post(
        f"{server.url}/v1/batches", json={**asked, "input_file_id": named["file_id"]}
    )
    return {**named, "batch_id": batch.json()["id"]}


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        *((*operation, GenerationMode.POSITIVE) for operation in BATCHES),
        ("/v1/batches", "POST", GenerationMode.NEGATIVE),
    ],
)
def test_files_and_batches_answer_as_described(
    server: Server,
    description: dict[str, Any],
    there: dict[str, str],
    path: str,
    method: str,
    mode: GenerationMode,
) -> None:
    operation = schemathesis.openapi.from_dict(deepcopy(description))[path][method]
    statuses = set()

    @seed(0)
    @settings(
        max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            case.path_parameters = {name: there[name] for name in case.path_parameters or {}}
            (case.query or {}).pop("after", None)
            if path == "/v1/batches" and method == "POST":
                case.body["input_file_id"] = there["file_id"]
        answer = case.call(base_url=server.url, timeout=120)
        statuses.add(answer.status_code)
        assert answer.status_code < 500 or answer.status_code in BY_DESIGN, answer.text
        case.validate_response(answer, checks=[*CHECKS, FITTING[mode]])

    ask()
    assert (200 in statuses) == (mode is GenerationMode.POSITIVE)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_to_a_new_job_are_as_described(
    server: Server, description: dict[str, Any], mode: GenerationMode
) -> None:
    described = deepcopy(description)
    operation = described["paths"]["/v1/jobs"]["post"]
    # A pattern says less of the key than is taken, and bodies of the other kinds are no JSON.
    operation["parameters"] = []
    operation["requestBody"]["content"] = {
        "application/json": operation["requestBody"]["content"]["application/json"]
    }
    statuses = set()

    @seed(0)
    @settings(
        max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        case=schemathesis.openapi.from_dict(described)["/v1/jobs"]["POST"].as_strategy(
            generation_mode=mode
        )
    )
    def ask(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            known = {**KNOWN["/generate"], "model": None}
            requests = [{**each, **known} for each in case.body["requests"]]
            # Nothing is drawn of what waits.
            own = {"webhook_url": None, "name": "any", "metadata": {"a": "b"}, "paused": True}
            case.body = {**case.body, "requests": requests, **own}
        answer = case.call(base_url=server.url, timeout=120)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=[*CHECKS, FITTING[mode]])

    ask()
    assert (201 in statuses) == (mode is GenerationMode.POSITIVE)


@pytest.fixture(scope="module")
def ended_job(server: Server) -> str:
    """The id of a job that has ended, whose webhook nobody hears."""
    hook = f"http://127.0.0.1:{free_port()}/"
    sent = {"requests": [{"text": "a fox", **CHEAP}], "webhook_url": hook}
    made = httpx.post(f"{server.url}/v1/jobs", json=sent, timeout=60)
    place = f"{server.url}{made.headers['Location']}"
    eventually(lambda: httpx.get(place).json()["state"] == "completed", "the job ended")
    return str(made.json()["id"])


@pytest.mark.parametrize(("path", "method"), JOBS)
def test_answers_about_jobs_are_as_described(
    server: Server, description: dict[str, Any], ended_job: str, path: str, method: str
) -> None:
    known = {"job_id": ended_job, "index": 0, "picture": 0}
    statuses = set()

    @seed(0)
    @settings(max_examples=6, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        case=schemathesis.openapi.from_dict(deepcopy(description))[path][method].as_strategy(
            generation_mode=GenerationMode.POSITIVE
        )
    )
    def ask(case: Any) -> None:
        if method != "DELETE":
            case.path_parameters = {name: known[name] for name in known if f"{{{name}}}" in path}
        if path == "/v1/jobs":
            case.query.pop("after", None)
        answer = case.call(base_url=server.url, timeout=120)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=[*CHECKS, positive_data_acceptance])

    ask()
    assert statuses == ({404} if method == "DELETE" else {200})


@pytest.mark.parametrize("path", KNOWN)
def test_the_example_of_a_request_is_one(
    server: Server, description: dict[str, Any], path: str
) -> None:
    (body,) = description["paths"][path]["post"]["requestBody"]["content"].values()
    asked = {**body["example"], **(KNOWN[path] if KNOWN[path] is _PARAMETERS else {"steps": 2})}
    # An empty file makes a form of it.
    sent = {"data": asked, "files": {"mask": b""}} if path in FORMS else {"json": asked}
    answer = httpx.post(f"{server.url}{path.format(model_id='embedded')}", **sent, timeout=60)
    assert answer.status_code == 200, answer.text


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    with httpx.Client(base_url=server.url, follow_redirects=True) as client:
        page = client.get("/docs")
        assert page.url.path == "/"
        loaded = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        assert len(loaded) == 4
        for place in loaded:
            if place != "data:,":
                assert not re.match(r"\w*:?//", place)
                assert client.get(f"/{place}").status_code == 200
        # Its own policy would keep a browser from running what stands in it.
        assert not re.search(r"<script(?![^>]* src=)|<style| on\w+=", page.text)
        script = client.get("/docs.js")
        (described,) = re.findall(r'url: "([^"]+)"', script.text)
        assert json.loads(client.get(f"/{described}").text)["openapi"].startswith("3.")
