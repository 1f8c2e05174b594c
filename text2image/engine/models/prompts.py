"""From words to embeddings, and which words are truncated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from text2image.engine import devices

# Embeddings kept for prompts that come again; one of SD 1.5 takes 115 KiB in half precision.
_MAX_CACHED = 256


class PromptEncoder:
    """A CLIP tokenizer and text encoder, as diffusers' Stable Diffusion pipelines use them."""

    def __init__(self, tokenizer: Any, text_encoder: Any, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._device = device
        self._use_mask = bool(getattr(text_encoder.config, "use_attention_mask", False))
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()

    @property
    def max_tokens(self) -> int:
        """Tokens that the encoder reads, the start and end marks included."""
        return int(self._tokenizer.model_max_length)

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Embeddings of shape (1, tokens, width), one for each prompt; new ones in one forward pass."""
        found = {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in found))
        if new:
            # Copies, since a view into the batch would keep all of it alive in the cache.
            embeddings = (embedding[None].clone() for embedding in self._forward(new))
            found.update(zip(new, embeddings, strict=True))
        for prompt, embedding in found.items():
            self._cache[prompt] = embedding
            self._cache.move_to_end(prompt)
        while len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return [found[prompt] for prompt in prompts]

    def truncated(self, prompt: str) -> str:
        """The end of a prompt that the encoder does not read, from the first word not read whole; else empty."""
        tokens = self._tokenizer(prompt, truncation=False, return_offsets_mapping=True)
        offsets = tokens["offset_mapping"]
        if len(offsets) <= self.max_tokens:
            return ""
        # The end mark keeps the last place, so the words before it stop one token earlier.
        start = offsets[self.max_tokens - 1][0]
        while start > 0 and not prompt[start - 1].isspace():
            start -= 1
        return prompt[start:].strip()

    def _forward(self, prompts: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            prompts,
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            return_tensors="pt",
        )
        mask = devices.moved(tokens.attention_mask, self._device) if self._use_mask else None
        embeddings: torch.Tensor = self._text_encoder(
            devices.moved(tokens.input_ids, self._device), attention_mask=mask
        )[0]
        return embeddings
