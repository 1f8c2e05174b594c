"""OpenAI's own client draws by the tool of its Responses API, and is told what only a text model could do."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from openai.types.responses.response_output_item import ImageGenerationCall
from PIL import Image

from tests.e2e.harness import Server
from tests.init_images import file_of, picture
from text2image.gateway import metadata

# The options of this server are passed on with OpenAI's.
TOOL: Any = {"type": "image_generation", "size": "64x64", "steps": 2, "seed": 5}
# What clients name is a text model, which is not what draws.
MODEL = "gpt-5.1"


@pytest.fixture
def official(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def drawn(response: Response) -> list[bytes]:
    calls = [each for each in response.output if isinstance(each, ImageGenerationCall)]
    assert [each.status for each in calls] == ["completed"] * len(response.output)
    return [base64.b64decode(each.result or "") for each in calls]


def said(*parts: dict[str, str]) -> Any:
    return [
        {"role": "user", "content": "a boat"},
        {"role": "assistant", "content": "here it is"},
        {"role": "user", "content": [*parts]},
    ]


def test_a_text_or_the_last_words_of_the_user_are_drawn(official: OpenAI) -> None:
    whole = official.responses.create(model=MODEL, input="a red fox", tools=[{**TOOL, "n": 2}])
    assert whole.status == "completed"
    assert whole.usage
    assert whole.usage.output_tokens == 8
    files = drawn(whole)
    assert [metadata.parse(metadata.read(file)).seed for file in files] == [5, 6]
    words = said({"type": "input_text", "text": "a red fox"})
    (same,) = drawn(official.responses.create(model=MODEL, input=words, tools=[TOOL]))
    assert metadata.parse(metadata.read(same)).prompt == "a red fox"
    assert Image.open(io.BytesIO(same)).tobytes() == Image.open(io.BytesIO(files[0])).tobytes()


def test_a_picture_in_the_last_message_is_drawn_on_from(official: OpenAI) -> None:
    url = f"data:image/png;base64,{base64.b64encode(file_of(picture((64, 64)))).decode()}"
    words = said({"type": "input_text", "text": "a fox"}, {"type": "input_image", "image_url": url})
    (edited,) = drawn(official.responses.create(model=MODEL, input=words, tools=[TOOL]))
    plain: Any = {**TOOL, "action": "generate"}
    (generated,) = drawn(official.responses.create(model=MODEL, input=words, tools=[plain]))
    assert Image.open(io.BytesIO(edited)).tobytes() != Image.open(io.BytesIO(generated)).tobytes()


def test_a_stream_has_previews_the_picture_and_the_whole_answer(official: OpenAI) -> None:
    tool: Any = {**TOOL, "steps": 9, "partial_images": 2}
    with official.responses.create(model=MODEL, input="a fox", tools=[tool], stream=True) as stream:
        events: list[Any] = list(stream)
    assert [event.sequence_number for event in events] == [*range(len(events))]
    call = "response.image_generation_call"
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        f"{call}.in_progress",
        f"{call}.generating",
        f"{call}.partial_image",
        f"{call}.partial_image",
        f"{call}.completed",
        "response.output_item.done",
        "response.completed",
    ]
    partial = Image.open(io.BytesIO(base64.b64decode(events[5].partial_image_b64)))
    assert partial.size == (64, 64)
    (file,) = drawn(events[-1].response)
    assert base64.b64decode(events[-2].item.result) == file


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "none"}, "tool_choice"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": [{"role": "assistant", "content": "a fox"}]}, "input"),
        ({"input": [{"type": "image_generation_call", "id": "ig_1"}]}, "input"),
        ({"input": said({"type": "input_file", "file_id": "file-1"})}, "input.content"),
        ({"input": said({"type": "input_image", "image_url": "http://localhost/a.png"})}, None),
        ({"tools": [{**TOOL, "action": "edit"}]}, "input"),
        ({"tools": [{**TOOL, "size": "1792x1024"}]}, "size"),
        ({"tools": [{**TOOL, "model": "gpt-image-9"}]}, "model"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    official: OpenAI, asked: dict[str, Any], param: str | None
) -> None:
    body: Any = {"model": MODEL, "input": "a fox", "tools": [TOOL], **asked}
    with pytest.raises(openai.BadRequestError) as refused:
        official.responses.create(**body)
    assert refused.value.param == (param or "input.image_url")
