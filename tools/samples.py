"""`make samples`: draws the documents' sheets of pictures with a running server, which has `T2I_LORAS=models/loras`."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from text2image.client import Client
from text2image.core.settings import get_settings

DOCS = Path(__file__).parents[1] / "docs"
SHEET, ADAPTERS = DOCS / "samples.png", DOCS / "adapters.webp"
COLUMNS = 6
# A small machine refuses what it could not draw in time.
AT_ONCE = 4
PROMPTS = (
    "a cat",
    "a penguin on a pink background",
    "a rocket in space",
    "a red apple",
    "a castle",
    "a turtle underwater",
    "a robot",
    "a skull on a black background",
    "a sunflower",
    "a pizza",
    "a house",
    "a butterfly",
)
# Drawn without an adapter and, below that, with the example.
STYLED = ("a cat", "a rocket in space", "a castle", "a sunflower")
ADAPTER = "blueprint"


def main() -> None:
    settings = get_settings()
    with (
        Client(f"{settings.host}:{settings.grpc_port}") as client,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):

        def drawn(prompts: Iterable[str], **fields: Any) -> list[Image.Image]:
            pictures = pool.map(
                lambda prompt: client.generate(prompt, seed=1, **fields)[0], prompts
            )
            return [Image.open(io.BytesIO(picture.png)) for picture in pictures]

        sheet(drawn(PROMPTS), COLUMNS).save(SHEET)
        pictures = drawn(STYLED) + drawn(STYLED, loras=[ADAPTER])
        sheet(pictures, len(STYLED)).save(ADAPTERS, quality=85, method=6)


def sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size, row by row."""
    side = pictures[0].width
    whole = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        whole.paste(picture, (column * side, row * side))
    return whole


if __name__ == "__main__":
    main()
