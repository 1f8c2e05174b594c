"""`make samples`: draws the README's sheet of pictures with a running server."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from text2image.client import Client
from text2image.core.settings import get_settings

SHEET = Path(__file__).parents[1] / "docs" / "samples.png"
COLUMNS = 6
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


def main() -> None:
    settings = get_settings()
    with Client(f"{settings.host}:{settings.grpc_port}") as client, ThreadPoolExecutor(16) as pool:
        pictures = list(pool.map(lambda prompt: client.generate(prompt, seed=1)[0], PROMPTS))
    side = pictures[0].width
    sheet = Image.new("RGB", (COLUMNS * side, -(-len(pictures) // COLUMNS) * side))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        sheet.paste(Image.open(io.BytesIO(picture.png)), (column * side, row * side))
    sheet.save(SHEET)


if __name__ == "__main__":
    main()
