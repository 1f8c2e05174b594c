"""OpenAI's `POST /v1/responses` with the tool `image_generation`: the last words of the user are drawn.

There is no text model here that could answer, remember or choose another tool, and what needs one is refused.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import pydantic
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from text2image.api import openai_answers as answers
from text2image.api import schema
from text2image.api.asgi import (
    EventStream,
    answer,
    caller_of,
    context_of,
    gateway_of,
    invalid,
    read_json,
    timeout_of,
    unless_gone,
)
from text2image.api.openai import TRANSPORT, error_response, options_of
from text2image.api.openai_requests import ImageReference, ImagesRequest, Named
from text2image.api.openai_responses import ErrorEnvelope, error_body
from text2image.api.pictures import PictureResponse
from text2image.core.errors import FieldViolation, InvalidRequest, ModelNotFound
from text2image.core.messages import (
    ClientEvent,
    Completed,
    Loading,
    Picture,
    Progress,
    RequestParams,
)
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Gateway

router = APIRouter(prefix="/v1")
TOOL = "image_generation"
CALL = "image_generation_call"
_EVENT = f"response.{CALL}"
# Of the tool, what is no field of a request for pictures.
_NO_FIELDS = {"type", "action", "input_image_mask", "input_fidelity"}
_OURS = {"prompt", "stream", "response_format", "user"}


class ResponsesRequest(BaseModel):
    """OpenAI's CreateResponse, as far as it draws. What steers a text model is taken and ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input: str | list[dict[str, Any]] = Field(
        description="What to draw: a text, or messages, of which the last one of the user counts. An `input_image` in "
        "it, as a `data:` URL, is drawn on from.",
        json_schema_extra={"example": "a red apple"},
    )
    tools: list[dict[str, Any]] = Field(
        description="One of them is `image_generation`; beside OpenAI's options it takes those of "
        "`/v1/images/generations`.",
    )
    model: str | None = Field(
        None, description="Ignored unless it is served here, since it means a text model."
    )
    tool_choice: str | dict[str, Any] | None = None
    stream: bool | None = None
    previous_response_id: str | None = Field(None, description="Refused; nothing is remembered.")
    conversation: str | dict[str, Any] | None = Field(
        None, description="Refused; nothing is remembered."
    )
    background: bool | None = Field(None, description="True is refused; see `/v1/batches`.")


class ResponseObject(BaseModel):
    """OpenAI's Response, with the pictures as items of its output."""

    id: str
    object: str = "response"
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request comes to: the tool as the client wrote it, its options, and what to draw."""

    tool: Mapping[str, Any]
    body: ImagesRequest
    params: RequestParams


_EXAMPLE = {
    "id": "resp_5d1c0e9f8a7b6c5d4e3f2a1b",
    "object": "response",
    "created_at": 1767225600,
    "status": "completed",
    "model": "embedded",
    "output": [
        {
            "id": "ig_5d1c0e9f8a7b6c5d4e3f2a1b_0",
            "type": CALL,
            "status": "completed",
            "result": schema.PNG_EXAMPLE,
        }
    ],
}


@router.post(
    "/responses",
    summary="Draw by a tool, in the dialect of OpenAI",
    tags=["pictures"],
    response_model=ResponseObject,
    responses={
        **schema.success(
            "The pictures, or events with `stream`.",
            schema.json(_EXAMPLE)
            | schema.events(
                {"type": "object"}, {"type": "response.completed", "response": _EXAMPLE}
            ),
        ),
        **schema.refusals((*schema.DRAWING, schema.NOT_FOUND), ErrorEnvelope, error_body),
    },
    openapi_extra={
        "parameters": [schema.TIMEOUT_PARAMETER],
        "requestBody": schema.body_of(
            ResponsesRequest,
            {"input": "a red apple", "tools": [{"type": TOOL, "size": "128x128"}]},
        ),
    },
)
async def create_response(request: Request) -> Response:
    """Draws the last words of the user and answers with calls of the tool, or with events."""

    async def work() -> Response:
        gateway, caller = gateway_of(request), caller_of(request)
        timeout = timeout_of(request)
        sent = await read_json(request, ResponsesRequest, pictures=True)
        asked = await asyncio.to_thread(_asked, sent, gateway.runners.named)
        context = context_of(
            request,
            caller=caller,
            params=asked.params,
            title=asked.body.prompt,
            timeout=timeout,
            options=options_of(asked.body, gateway.runners.named(asked.params.model)),
            encoding=asked.body.encoding,
        )
        try:
            if asked.body.stream:
                stream = gateway.stream(context)
                # The runner's word is waited for, so that a refusal still gets its own status.
                while isinstance(await anext(stream), Loading):
                    pass
                lines = _events(gateway, context, stream, asked)
                return EventStream(lines, lambda error: answers.failure(error, error_body(error)))
            drawing = await unless_gone(request, gateway.draw(context))
        except InvalidRequest as error:
            raise asked.body.renamed(error).renamed({"prompt": "input"}) from None
        own = secrets.token_hex(12)
        calls = [_call(own, picture, context) for picture in drawing.pictures]
        return PictureResponse(_response(own, context, asked, "completed", calls))

    return await answer(request, TRANSPORT, work, error_response)


def _asked(sent: ResponsesRequest, named: Named) -> _Asked:
    """What a request comes to.

    Raises:
        InvalidRequest: it wants what only a text model could do, or what cannot be drawn.
    """
    tool = _tool(sent)
    prompt, image = _input(sent.input)
    options = {name: value for name, value in tool.items() if name not in _NO_FIELDS}
    if unknown := options.keys() & _OURS:
        raise InvalidRequest(*(_refusal(f"tools.{each}", "is no option of it") for each in unknown))
    options |= {"prompt": prompt, "stream": sent.stream, "response_format": "b64_json"}
    if not options.get("model"):
        options["model"] = _served(sent.model, named)
    try:
        body = ImagesRequest.model_validate(options)
        mask = tool.get("input_image_mask")
        mask_file = ImageReference.model_validate(mask) if mask else None
    except pydantic.ValidationError as error:
        raise invalid(error) from None
    action = tool.get("action") or "auto"
    if action not in ("auto", "generate", "edit"):
        raise InvalidRequest(_refusal("tools.action", "must be 'auto', 'generate' or 'edit'"))
    if image is None and (action == "edit" or mask_file):
        raise InvalidRequest(_refusal("input", "has no input_image to edit"))
    params = body.params(named)
    if image is not None and action != "generate":
        params = replace(
            params,
            image=image,
            mask=mask_file.file("tools.input_image_mask") if mask_file else None,
            mask_by_alpha=True,
        )
    return _Asked(tool, body, params)


def _tool(sent: ResponsesRequest) -> Mapping[str, Any]:
    for name in ("previous_response_id", "conversation"):
        if getattr(sent, name):
            reason = "must be left out; this server remembers no answers, so send all of it again"
            raise InvalidRequest(_refusal(name, reason))
    if sent.background:
        raise InvalidRequest(_refusal("background", "must be false; POST /v1/batches draws later"))
    found = [tool for tool in sent.tools if tool.get("type") == TOOL]
    if len(found) != 1:
        reason = f"must have one of the type {TOOL!r}; this server draws, and no text model answers"
        raise InvalidRequest(_refusal("tools", reason))
    choice = sent.tool_choice
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind not in (None, "auto", "required", TOOL):
        reason = f"must be 'auto', 'required' or {TOOL!r}; this server has no other tool"
        raise InvalidRequest(_refusal("tool_choice", reason))
    return found[0]


def _served(model: str | None, named: Named) -> str | None:
    try:
        return named(model).id if model else None
    except ModelNotFound:
        return None


def _input(given: str | list[dict[str, Any]]) -> tuple[str, bytes | None]:
    """The text and the picture of the last message of the user.

    Raises:
        InvalidRequest: there is none, or one that cannot be drawn.
    """
    if isinstance(given, str):
        return given, None
    if any(item.get("type") == CALL for item in given):
        reason = f"has an {CALL}, which is not remembered here; send its picture as input_image"
        raise InvalidRequest(_refusal("input", reason))
    messages = [item for item in given if item.get("role") == "user"]
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        return content, None
    if not (isinstance(content, list) and all(isinstance(part, dict) for part in content)):
        reason = "must be a text, or have a message of the user with text in its content"
        raise InvalidRequest(_refusal("input", reason))
    texts = [part.get("text") for part in content if part.get("type") == "input_text"]
    urls = [part.get("image_url") for part in content if part.get("type") == "input_image"]
    if len(texts) + len(urls) < len(content) or not all(isinstance(text, str) for text in texts):
        reason = "may have parts of the types 'input_text' and 'input_image' alone"
        raise InvalidRequest(_refusal("input.content", reason))
    if len(urls) > 1 or not all(isinstance(url, str) for url in urls):
        reason = "may have one input_image, whose image_url is a data: URL"
        raise InvalidRequest(_refusal("input.content", reason))
    image = ImageReference(image_url=str(urls[0])).file("input") if urls else None
    return "\n".join(map(str, texts)), image


def _refusal(field: str, reason: str) -> FieldViolation:
    return FieldViolation(field, reason)


def _call(own: str, picture: Picture, context: RequestContext) -> dict[str, Any]:
    """A finished call, in which bytes stand for their base64."""
    return {
        "id": f"ig_{own}_{picture.index}",
        "type": CALL,
        "status": "completed",
        "result": picture.file,
        "revised_prompt": context.request.prompt,
        "seed": picture.seed,
        **answers.told(context),
    }


def _response(
    own: str,
    context: RequestContext,
    asked: _Asked,
    status: str,
    output: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    usage = answers.usage_of(context.request)
    usage["input_tokens_details"] = {"cached_tokens": 0}
    usage["output_tokens_details"] = {"reasoning_tokens": 0}
    return {
        "id": f"resp_{own}",
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": context.request.model,
        "output": [*output],
        "parallel_tool_calls": False,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [{k: v for k, v in asked.tool.items() if k != "input_image_mask"}],
        "top_p": None,
        "usage": usage if status == "completed" else None,
    }


async def _events(
    gateway: Gateway,
    context: RequestContext,
    stream: AsyncGenerator[ClientEvent, None],
    asked: _Asked,
) -> AsyncGenerator[str, None]:
    """Server-sent events: previews of the picture, then the picture, and all of the answer last."""
    own, sent, number = secrets.token_hex(12), 0, 0
    item = {"id": f"ig_{own}_0", "type": CALL, "status": "in_progress", "result": None}
    place = {"item_id": item["id"], "output_index": 0}

    def line(kind: str, **body: Any) -> str:
        nonlocal number
        number += 1
        return answers.line(kind, {"type": kind, "sequence_number": number - 1, **body})

    begun = _response(own, context, asked, "in_progress")
    yield line("response.created", response=begun)
    yield line("response.in_progress", response=begun)
    yield line("response.output_item.added", output_index=0, item=item)
    yield line(f"{_EVENT}.in_progress", **place)
    yield line(f"{_EVENT}.generating", **place)
    done: list[dict[str, Any]] = []
    async with aclosing(stream) as events:
        async for event in events:
            if isinstance(event, Progress) and event.preview:
                if sent < (asked.body.partial_images or 0):
                    file = await asyncio.to_thread(answers.preview, event.preview, context)
                    shown = {"partial_image_b64": _text(file), "partial_image_index": sent}
                    yield line(f"{_EVENT}.partial_image", **place, **shown, **answers.told(context))
                    sent += 1
            elif isinstance(event, Picture):
                call = _call(own, event, context)
                done.append({**call, "result": _text(event.file)})
            elif isinstance(event, Completed):
                yield line(f"{_EVENT}.completed", **place)
                yield line("response.output_item.done", output_index=0, item=done[0])
                told = _response(own, context, asked, "completed", done)
                yield line("response.completed", response=told)


def _text(file: bytes) -> str:
    return base64.b64encode(file).decode()
