"""A number without a fraction is an integer, however its client's language writes it."""

from __future__ import annotations

import pydantic
import pytest

from text2image.api.openai_requests import ImagesRequest
from text2image.api.rest import GenerateRequest

REST = ("width", "height", "steps", "seed", "n")
OPENAI = ("n", "partial_images", "steps", "num_inference_steps", "seed", "output_compression")
FIELDS = [(GenerateRequest, "text", name) for name in REST] + [
    (ImagesRequest, "prompt", name) for name in OPENAI
]


@pytest.mark.parametrize(("kind", "prompt", "field"), FIELDS)
@pytest.mark.parametrize("written", ["2", "2.0", "2e0"])
def test_a_whole_number_is_read(
    kind: type[pydantic.BaseModel], prompt: str, field: str, written: str
) -> None:
    read = kind.model_validate_json(f'{{"{prompt}": "a cat", "{field}": {written}}}')
    assert repr(getattr(read, field)) == "2"


@pytest.mark.parametrize(("kind", "prompt", "field"), FIELDS)
@pytest.mark.parametrize("written", ["2.5", '"2"', "true", "1e400", "NaN", "[2]"])
def test_anything_else_is_not(
    kind: type[pydantic.BaseModel], prompt: str, field: str, written: str
) -> None:
    with pytest.raises(pydantic.ValidationError):
        kind.model_validate_json(f'{{"{prompt}": "a cat", "{field}": {written}}}')


@pytest.mark.parametrize("written", ["-1", "4", "4.0", "1e300"])
def test_the_limits_of_a_number_hold_however_it_is_written(written: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="partial_images"):
        ImagesRequest.model_validate_json(f'{{"prompt": "a cat", "partial_images": {written}}}')
