"""The pictures of one visitor, newest first, as many as a session may hold."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from PIL import Image

from frontend.orders import Order
from text2image.core.messages import Picture
from text2image.gateway.metadata import CHUNK

MAX_PIECES = 24
MAX_BYTES = 64 * 2**20

_numbers = count()


@dataclass(frozen=True, slots=True)
class Piece:
    """A finished picture and the order that draws it again, alone."""

    id: int
    order: Order
    picture: Picture

    @property
    def parameters(self) -> str:
        """All that draws it again, as the server wrote it into the picture; empty if it did not."""
        with Image.open(io.BytesIO(self.picture.png)) as image:
            text: str = image.info.get(CHUNK, "")
            return text

    @property
    def file_name(self) -> str:
        return f"text2image_{self.picture.seed}.png"


class History:
    """Forgets the oldest beyond `max_pieces` pictures or `max_bytes` of files; the newest always stays.

    The pictures that they were drawn from count among the files.
    """

    def __init__(self, max_pieces: int = MAX_PIECES, max_bytes: int = MAX_BYTES) -> None:
        self._max_pieces = max_pieces
        self._max_bytes = max_bytes
        self._pieces: list[Piece] = []

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def newest(self) -> Piece | None:
        return self._pieces[0] if self._pieces else None

    def add(self, order: Order, pictures: Sequence[Picture]) -> list[Piece]:
        """Keeps a drawing's pictures, and returns them as they are kept."""
        pieces = [Piece(next(_numbers), order.again(picture.seed), picture) for picture in pictures]
        self._pieces[:0] = pieces
        while len(self._pieces) > 1 and self._is_too_much():
            self._pieces.pop()
        return pieces

    def clear(self) -> None:
        self._pieces.clear()

    def _is_too_much(self) -> bool:
        size = sum(len(piece.picture.png) for piece in self._pieces)
        # Many may have begun from one.
        files = set[bytes]().union(*(piece.order.files for piece in self._pieces))
        size += sum(map(len, files))
        return len(self._pieces) > self._max_pieces or size > self._max_bytes
