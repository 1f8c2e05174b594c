"""LangChain's tool for OpenAI's pictures, which passes URLs on. Prints what it got as JSON."""

from __future__ import annotations

import json
import os

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

tool = DallEAPIWrapper(
    model="dall-e-2", base_url=os.environ["BASE_URL"], api_key="none", size="64x64", n=2
)
print(json.dumps({"urls": tool.run("a fox").split("\n")}))
