"""From words to embeddings, and which words are truncated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812

from text2image.engine import devices

# Embeddings kept for prompts that come again; one of SD 1.5 takes 115 KiB in half precision, one of SDXL 311.
_MAX_CACHED = 256
# One of SD3 takes 2.6 MiB, one of Flux 4.
_MAX_CACHED_T5 = 32
# What SD3's third encoder reads, and as many zeros stand in for without it: diffusers' `max_sequence_length`.
T5_TOKENS = 256
# What Flux's second one reads.
FLUX_TOKENS = 512

E = TypeVar("E")


class Cache(Generic[E]):
    """What prompts were encoded to, those used last; new ones in one forward pass."""

    def __init__(
        self, forward: Callable[[list[str]], Iterable[E]], most: int = _MAX_CACHED
    ) -> None:
        self._forward = forward
        self._most = most
        self._kept: OrderedDict[str, E] = OrderedDict()

    def encode(self, prompts: Sequence[str]) -> list[E]:
        found = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in found))
        if new:
            found.update(zip(new, self._forward(new), strict=True))
        for prompt, encoded in found.items():
            self._kept[prompt] = encoded
            self._kept.move_to_end(prompt)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return [found[prompt] for prompt in prompts]

    def clear(self) -> None:
        """Forgets them all."""
        self._kept.clear()


class PromptEncoder:
    """A CLIP tokenizer and text encoder, as diffusers' Stable Diffusion pipelines use them."""

    def __init__(self, tokenizer: Any, text_encoder: Any, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._device = device
        self._use_mask = bool(getattr(text_encoder.config, "use_attention_mask", False))
        self._cache = Cache(self._forward)

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Embeddings of shape (1, tokens, width), one for each prompt; new ones in one forward pass."""
        return self._cache.encode(prompts)

    def truncated(self, prompt: str) -> str:
        """The end of a prompt that the encoder does not read, from the first word not read whole; else empty."""
        return _truncated(self._tokenizer, prompt)

    def _forward(self, prompts: list[str]) -> Iterable[torch.Tensor]:
        tokens = _tokens(self._tokenizer, prompts)
        mask = devices.moved(tokens.attention_mask, self._device) if self._use_mask else None
        embeddings = self._text_encoder(
            devices.moved(tokens.input_ids, self._device), attention_mask=mask
        )[0]
        # Copies, since a view into the batch would keep all of it alive in the cache.
        return (embedding[None].clone() for embedding in embeddings)


class Encoded(NamedTuple):
    """A prompt as several encoders read it: `embeddings` (1, tokens, width), and `pooled` (1, D) of all of it."""

    embeddings: torch.Tensor
    pooled: torch.Tensor


def stacked(*rows: Encoded) -> Encoded:
    """Several prompts as the rows of one."""
    return Encoded(
        torch.cat([row.embeddings for row in rows]), torch.cat([row.pooled for row in rows])
    )


class DualPromptEncoder:
    """The two CLIP tokenizers and text encoders of SDXL, or the second alone.

    As in diffusers' `StableDiffusionXLPipeline.encode_prompt`: the layer before the last of each, side by side, and the
    projection of the one that has it.
    """

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        first = [(pipeline.tokenizer, pipeline.text_encoder)] if pipeline.text_encoder else []
        self._encoders = [*first, (pipeline.tokenizer_2, pipeline.text_encoder_2)]
        self._device = device
        self._cache = Cache(self._forward)

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """One result for each prompt; new ones in one forward pass of each encoder."""
        return self._cache.encode(prompts)

    def truncated(self, prompt: str) -> str:
        """The end of a prompt that some encoder does not read, from the first word not read whole; else empty."""
        return max((_truncated(each, prompt) for each, _ in self._encoders), key=len)

    def _forward(self, prompts: list[str]) -> Iterable[Encoded]:
        outputs = [
            encoder(_ids(tokenizer, prompts, self._device), output_hidden_states=True)
            for tokenizer, encoder in self._encoders
        ]
        embeddings = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        # Only an encoder with a projection puts out two dimensions first.
        pooled = next(output[0] for output in outputs if output[0].ndim == 2)
        return (
            Encoded(embedding[None].clone(), row[None].clone())
            for embedding, row in zip(embeddings, pooled, strict=True)
        )


class TriplePromptEncoder:
    """The two CLIP and the T5 encoder of SD3, or the two alone.

    As in diffusers' `StableDiffusion3Pipeline.encode_prompt`: the layer before the last of each CLIP, side by side and
    filled up with zeros to T5's width, and behind them what T5 makes of the prompt.
    """

    def __init__(self, pipeline: Any, width: int, device: torch.device) -> None:
        """
        Args:
            width: of the embeddings that the network takes.
        """
        self._clips = [
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        ]
        self._t5 = (pipeline.tokenizer_3, pipeline.text_encoder_3)
        self._width = width
        self._device = device
        self._most = int(pipeline.tokenizer.model_max_length)
        self._cache = Cache(self._forward, _MAX_CACHED_T5)

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """One result for each prompt; new ones in one forward pass of each encoder."""
        return self._cache.encode(prompts)

    def truncated(self, prompt: str) -> str:
        """The end of a prompt that no encoder reads, from the first word not read whole; else empty."""
        tokenizer, encoder = self._t5
        if encoder is None:
            return _truncated(self._clips[0][0], prompt, self._most)
        return _truncated(tokenizer, prompt, T5_TOKENS)

    def _forward(self, prompts: list[str]) -> Iterable[Encoded]:
        outputs = [
            encoder(_ids(tokenizer, prompts, self._device, self._most), output_hidden_states=True)
            for tokenizer, encoder in self._clips
        ]
        clips = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        clips = F.pad(clips, (0, self._width - clips.shape[-1]))
        tokenizer, encoder = self._t5
        if encoder is None:
            behind = clips.new_zeros(len(prompts), T5_TOKENS, self._width)
        else:
            behind = encoder(_ids(tokenizer, prompts, self._device, T5_TOKENS))[0].to(clips)
        embeddings = torch.cat([clips, behind], 1)
        pooled = torch.cat([output[0] for output in outputs], -1)
        return (
            Encoded(embedding[None].clone(), row[None].clone())
            for embedding, row in zip(embeddings, pooled, strict=True)
        )


class FluxPromptEncoder:
    """The CLIP and the T5 encoder of Flux: a pooled embedding of the one, and all of the other.

    As in diffusers' `FluxPipeline.encode_prompt`.
    """

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._clip = (pipeline.tokenizer, pipeline.text_encoder)
        self._t5 = (pipeline.tokenizer_2, pipeline.text_encoder_2)
        self._device = device
        self._cache = Cache(self._forward, _MAX_CACHED_T5)

    def encode(self, prompts: Sequence[str]) -> list[Encoded]:
        """One result for each prompt; new ones in one forward pass of each encoder."""
        return self._cache.encode(prompts)

    def truncated(self, prompt: str) -> str:
        """The end of a prompt that T5 does not read, from the first word not read whole; else empty."""
        return _truncated(self._t5[0], prompt, FLUX_TOKENS)

    def _forward(self, prompts: list[str]) -> Iterable[Encoded]:
        tokenizer, encoder = self._clip
        pooled = encoder(_ids(tokenizer, prompts, self._device)).pooler_output
        tokenizer, encoder = self._t5
        ids = _ids(tokenizer, prompts, self._device, FLUX_TOKENS)
        # In fp16 parts of T5 stay in fp32.
        embeddings = encoder(ids)[0].to(encoder.dtype)
        return (
            Encoded(embedding[None].clone(), row[None].clone())
            for embedding, row in zip(embeddings, pooled, strict=True)
        )


def _tokens(tokenizer: Any, prompts: list[str], most: int | None = None) -> Any:
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=most or int(tokenizer.model_max_length),
        truncation=True,
        return_tensors="pt",
    )


def _ids(
    tokenizer: Any, prompts: list[str], device: torch.device, most: int | None = None
) -> torch.Tensor:
    return devices.moved(_tokens(tokenizer, prompts, most).input_ids, device)


def unread_ends(truncated: Callable[[str], str], prompts: Sequence[str]) -> list[str]:
    """The unread end of each prompt, looked for once in those that are alike."""
    ends = {prompt: truncated(prompt) for prompt in dict.fromkeys(prompts)}
    return [ends[prompt] for prompt in prompts]


def _truncated(tokenizer: Any, prompt: str, most: int | None = None) -> str:
    most = most or int(tokenizer.model_max_length)
    offsets = tokenizer(prompt, truncation=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= most:
        return ""
    # The end mark keeps the last place, so the words before it stop one token earlier.
    start = offsets[most - 1][0]
    while start > 0 and not prompt[start - 1].isspace():
        start -= 1
    return prompt[start:].strip()
