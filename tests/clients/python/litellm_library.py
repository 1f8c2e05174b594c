"""LiteLLM as a library, at once and asynchronously. Prints what it got as JSON."""

from __future__ import annotations

import asyncio
import json
import os

import litellm

ASKED = {
    "model": "openai/embedded",
    "prompt": "a fox",
    "api_base": os.environ["BASE_URL"],
    "api_key": "none",
    "size": "64x64",
}

whole = litellm.image_generation(n=2, **ASKED)
# It passes this field on for models alone that it knows to have it.
by_url = {**ASKED, "model": "openai/dall-e-2", "response_format": "url"}
hosted = asyncio.run(litellm.aimage_generation(**by_url))
print(
    json.dumps(
        {
            "pictures": [entry.b64_json for entry in whole.data],
            "tokens": whole.usage.output_tokens,
            "urls": [entry.url for entry in hosted.data],
        }
    )
)
