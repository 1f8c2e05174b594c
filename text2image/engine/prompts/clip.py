"""One of CLIP's text encoders, which reads prompts in chunks whose words may weigh more or less.

The arithmetic of weights is A1111's `EmphasisOriginal` (`modules/sd_emphasis.py`): what the encoder makes of a chunk is
multiplied by the weight of each token, and then scaled so that the mean of all its numbers is what it was before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from text2image.engine import devices
from text2image.engine.prompts.chunks import Chunk, Language, Reader

# Chunks in one forward pass: the two prompts of as many samples as are encoded at once.
_MOST_CHUNKS = 16
# Where the weighed mean comes next to 0, bringing it back would multiply all by a number without a meaning.
_MOST_SCALE = 10.0


class ClipEncoder:
    """A tokenizer and its encoder."""

    def __init__(
        self,
        tokenizer: Any,
        encoder: Any,
        device: torch.device,
        language: Language,
        vectors: Mapping[str, torch.Tensor],
    ) -> None:
        """
        Args:
            vectors: of the language's embeddings, (n, width) each.
        """
        self.reader = Reader(tokenizer, language)
        self._encoder = encoder
        self._device = device
        self._use_mask = bool(getattr(encoder.config, "use_attention_mask", False))
        self._vectors = {
            name: devices.moved(each.to(encoder.dtype), device) for name, each in vectors.items()
        }

    def forward(
        self, chunks: Sequence[Chunk], layer: int = 0, *, normed: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder makes of chunks: (chunks, tokens, width), and what it puts out first.

        Args:
            layer: counted from the last, which is 1; 0 is the encoder's own output.
            normed: whether the final normalization follows a layer.
        """
        parts = [
            self._pass(chunks[start : start + _MOST_CHUNKS], layer, normed)
            for start in range(0, len(chunks), _MOST_CHUNKS)
        ]
        embeddings, firsts = zip(*parts, strict=True)
        return _joined(embeddings), _joined(firsts)

    def _pass(
        self, chunks: Sequence[Chunk], layer: int, normed: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, masks = zip(*map(self.reader.tokens, chunks), strict=True)
        with self._placed(chunks):
            output = self._encoder(
                devices.placed(tokens, self._device, torch.int64),
                attention_mask=devices.placed(masks, self._device, torch.int64)
                if self._use_mask
                else None,
                output_hidden_states=bool(layer),
            )
        embeddings: torch.Tensor = output.hidden_states[-layer] if layer else output[0]
        if layer and normed:
            model = getattr(self._encoder, "text_model", self._encoder)
            embeddings = model.final_layer_norm(embeddings)
        return self._weighed(embeddings, chunks), output[0]

    def _weighed(self, embeddings: torch.Tensor, chunks: Sequence[Chunk]) -> torch.Tensor:
        if not any(chunk.is_weighed for chunk in chunks):
            return embeddings
        return torch.stack(
            [
                self._weigh(each, chunk) if chunk.is_weighed else each
                for each, chunk in zip(embeddings, chunks, strict=True)
            ]
        )

    def _weigh(self, embedding: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """One chunk's (tokens, width)."""
        plain = embedding.float()
        weights = devices.placed(self.reader.weights(chunk), self._device, torch.float32)
        weighed = plain * weights[:, None]
        scale = plain.mean() / weighed.mean()
        scale = torch.where(scale.abs() <= _MOST_SCALE, scale, torch.ones_like(scale))
        return (weighed * scale).to(embedding.dtype)

    @contextmanager
    def _placed(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Puts the vectors of textual inversions in the place of what the encoder has for tokens."""
        places = [
            (row, self.reader.first + place, self._vectors[name])
            for row, chunk in enumerate(chunks)
            for place, name in chunk.embeddings
        ]
        if not places:
            yield
            return

        def put(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            for row, place, vectors in places:
                output[row, place : place + len(vectors)] = vectors
            return output

        handle = self._encoder.get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts])
