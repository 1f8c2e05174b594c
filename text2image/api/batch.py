"""The dialect of the runner's batchable BentoML method: a list of requests in, a list of answers out.

An item looks like the body of `POST /generate`, its answer like the response. One bad item does not fail the others.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import pydantic

from text2image.api import rest
from text2image.api.asgi import invalid
from text2image.core.errors import InvalidRequest, Text2ImageError
from text2image.core.messages import Completed, GeneratedImage, ModelInfo, Request, RequestParams
from text2image.core.settings import get_settings
from text2image.gateway import metadata
from text2image.gateway.generate import message_of

Item = dict[str, Any]


class Drawn(Protocol):
    """A request as it was resolved, its pictures, and how it ended."""

    @property
    def request(self) -> Request: ...

    @property
    def images(self) -> Sequence[GeneratedImage]: ...

    @property
    def completed(self) -> Completed: ...


async def draw_batch(
    items: list[Item],
    generate_many: Callable[
        [Sequence[RequestParams]], Awaitable[Sequence[Drawn | Text2ImageError]]
    ],
    model: Callable[[str], ModelInfo],
) -> list[Item]:
    """Draws all valid items side by side; the answers stand in the order of the items. `model` finds one by name."""
    asked: dict[int, rest.GenerateRequest] = {}
    params: dict[int, RequestParams] = {}
    answers: dict[int, Item] = {}
    for index, item in enumerate(items):
        try:
            asked[index] = rest.GenerateRequest.model_validate(item)
            params[index] = asked[index].params()
        except pydantic.ValidationError as error:
            answers[index] = _refusal(invalid(error))
        except InvalidRequest as error:
            answers[index] = _refusal(error)
    results = await generate_many(list(params.values()))
    for index, result in zip(params, results, strict=True):
        if isinstance(result, Text2ImageError):
            answers[index] = _refusal(result)
        else:
            images_only = bool(asked[index].images_only)
            drawn_with = model(result.request.model)
            answers[index] = await asyncio.to_thread(_answer, result, drawn_with, images_only)
    return [answers[index] for index in range(len(items))]


def _answer(drawn: Drawn, model: ModelInfo, images_only: bool) -> Item:
    images = []
    for image in drawn.images:
        file = metadata.png_of(image, drawn.request, model, get_settings().metadata)
        png = base64.b64encode(file).decode()
        images.append({"image_base64": png, "image_path": "", "seed": image.seed})
    message = message_of(len(images), drawn.completed)
    return rest.success(message, images, images_only=images_only)


def _refusal(error: Text2ImageError) -> Item:
    return rest.error_body(error)
