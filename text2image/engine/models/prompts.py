"""From words to embeddings, and which words are truncated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812

from text2image.core.messages import Request
from text2image.engine import devices
from text2image.engine.models.contract import Unread
from text2image.engine.prompts.chunks import Language, Reading
from text2image.engine.prompts.clip import ClipEncoder
from text2image.engine.prompts.inversions import Inversion
from text2image.engine.prompts.lengths import joined
from text2image.engine.sample import Sample

# Chunks of prompts kept for those that come again; one of SD 1.5 takes 115 KiB in half precision, one of SDXL 311.
_MAX_CACHED = 256
# One of SD3 takes 2.6 MiB, one of Flux 4.
_MAX_CACHED_T5 = 32
# What SD3's third encoder reads, and as many zeros stand in for without it: diffusers' `max_sequence_length`.
T5_TOKENS = 256
# What Flux's second one reads.
FLUX_TOKENS = 512
# SDXL takes the layer before the last.
_XL_LAYER = 2

K = TypeVar("K", bound=Hashable)
E = TypeVar("E")


class Cache(Generic[K, E]):
    """What prompts were encoded to, those used last; new ones together."""

    def __init__(
        self,
        forward: Callable[[list[K]], Iterable[E]],
        most: int = _MAX_CACHED,
        size_of: Callable[[E], int] = lambda encoded: 1,
    ) -> None:
        """
        Args:
            most: what all that is kept adds up to.
            size_of: what one of it counts.
        """
        self._forward = forward
        self._most = most
        self._size_of = size_of
        self._size = 0
        self._kept: OrderedDict[K, E] = OrderedDict()

    def encode(self, prompts: Sequence[K]) -> list[E]:
        found = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in found))
        if new:
            found.update(zip(new, self._forward(new), strict=True))
            self._size += sum(self._size_of(found[prompt]) for prompt in new)
        for prompt, encoded in found.items():
            self._kept[prompt] = encoded
            self._kept.move_to_end(prompt)
        while self._size > self._most:
            self._size -= self._size_of(self._kept.popitem(last=False)[1])
        return [found[prompt] for prompt in prompts]

    def clear(self) -> None:
        """Forgets them all."""
        self._kept.clear()
        self._size = 0


class Wording(NamedTuple):
    """A prompt, and the layer that it is taken from as `Request.clip_skip` has it."""

    text: str
    clip_skip: int = 0


class Text(NamedTuple):
    """A prompt as one encoder reads it: `embeddings` (1, tokens, width) of its chunks.

    `unread` is the end of it that is not read.
    """

    embeddings: torch.Tensor
    unread: str = ""
    chunks: int = 1


class Encoded(NamedTuple):
    """A prompt as several encoders read it: `embeddings` (1, tokens, width), and `pooled` (1, D).

    `chunks` and `unread`, the end of it that is not read, are those of CLIP's encoders.
    """

    embeddings: torch.Tensor
    pooled: torch.Tensor
    unread: str = ""
    chunks: int = 1


def stacked(*rows: Encoded) -> Encoded:
    """Several prompts as the rows of one."""
    return Encoded(
        joined([row.embeddings for row in rows]), torch.cat([row.pooled for row in rows])
    )


def _zeros_like(there: Encoded) -> Encoded:
    """Stands for no text, as diffusers has it without a negative prompt, if the model is made so."""
    return Encoded(torch.zeros_like(there.embeddings), torch.zeros_like(there.pooled))


class PromptEncoder:
    """A CLIP tokenizer and text encoder, as diffusers' Stable Diffusion pipelines use them."""

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        device: torch.device,
        language: Language | None = None,
        inversions: Sequence[Inversion] = (),
    ) -> None:
        language = language or Language()
        vectors = {each.name: each.vectors[0] for each in inversions}
        self._clip = ClipEncoder(tokenizer, text_encoder, device, language, vectors)
        self._cache = Cache(self._forward, size_of=lambda text: text.chunks)

    def encode(self, prompts: Sequence[Wording]) -> list[Text]:
        """One result for each prompt; new ones in few forward passes."""
        return self._cache.encode(prompts)

    def work(self, request: Request) -> float:
        """About what encoding a request's prompts takes, against prompts of one chunk."""
        return _work([self._clip], request)

    def _forward(self, prompts: list[Wording]) -> list[Text]:
        # The last layer is what the encoder puts out.
        layers = [prompt.clip_skip if prompt.clip_skip > 1 else 0 for prompt in prompts]
        (encoded,) = _by_encoder([self._clip], prompts, layers, normed=True)
        return [Text(each.embeddings, each.unread, each.chunks) for each in encoded]


class DualPromptEncoder:
    """The two CLIP tokenizers and text encoders of SDXL, or the second alone.

    As in diffusers' `StableDiffusionXLPipeline.encode_prompt`: the layer before the last of each, side by side, and the
    projection of the one that has it, of the first chunk.
    """

    def __init__(
        self,
        pipeline: Any,
        device: torch.device,
        language: Language | None = None,
        inversions: Sequence[Inversion] = (),
    ) -> None:
        language = language or Language()
        first = [(pipeline.tokenizer, pipeline.text_encoder)] if pipeline.text_encoder else []
        both = [*first, (pipeline.tokenizer_2, pipeline.text_encoder_2)]
        self._clips = [
            ClipEncoder(
                tokenizer,
                encoder,
                device,
                language,
                {each.name: each.vectors[place] for each in inversions},
            )
            for place, (tokenizer, encoder) in enumerate(both)
        ]
        self._zeros_for_none = bool(pipeline.config.force_zeros_for_empty_prompt)
        self._cache = Cache(self._forward, size_of=lambda text: text.chunks)

    def encode(self, prompts: Sequence[Wording]) -> list[Encoded]:
        """One result for each prompt; new ones in few forward passes of each encoder."""
        return self._cache.encode(prompts)

    def encode_samples(self, samples: Sequence[Sample]) -> list[tuple[Encoded, Unread]]:
        """What the network reads of each sample's two prompts, in one row or two, and what is not read of them."""
        requests = [sample.generation.request for sample in samples]
        prompts = [Wording(each.prompt, each.clip_skip) for each in requests]
        negatives = [Wording(each.negative_prompt, each.clip_skip) for each in requests]
        texts = prompts + [each for each in negatives if self._reads(each)]
        encoded = dict(zip(texts, self.encode(texts), strict=True))
        read = []
        for sample, prompt, negative in zip(samples, prompts, negatives, strict=True):
            rows, not_read = encoded[prompt], ""
            if sample.rows == 2:
                without = encoded[negative] if self._reads(negative) else _zeros_like(rows)
                rows, not_read = stacked(without, rows), without.unread
            read.append((rows, Unread(encoded[prompt].unread, not_read)))
        return read

    def _reads(self, negative: Wording) -> bool:
        """Whether a negative prompt is encoded; else zeros stand for it."""
        return bool(negative.text) or not self._zeros_for_none

    def work(self, request: Request) -> float:
        """About what encoding a request's prompts takes, against prompts of one chunk."""
        return _work(self._clips, request)

    def _forward(self, prompts: list[Wording]) -> Iterable[Encoded]:
        layers = [prompt.clip_skip or _XL_LAYER for prompt in prompts]
        for parts in zip(*_by_encoder(self._clips, prompts, layers, normed=False), strict=True):
            yield Encoded(
                torch.cat([part.embeddings for part in parts], -1),
                # Only an encoder with a projection puts out two dimensions first.
                next(part.first for part in parts if part.first.ndim == 2),
                max((part.unread for part in parts), key=len),
                parts[0].chunks,
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


class _Part(NamedTuple):
    """What one encoder makes of a prompt, of the first chunk what it puts out first (1, ...) too."""

    embeddings: torch.Tensor
    first: torch.Tensor
    unread: str
    chunks: int


def _by_encoder(
    clips: Sequence[ClipEncoder], prompts: Sequence[Wording], layers: Sequence[int], *, normed: bool
) -> list[list[_Part]]:
    """For each encoder what it makes of each prompt at its layer; see `ClipEncoder.forward`."""
    return [[*_parts(clip, prompts, layers, normed)] for clip in clips]


def _parts(
    clip: ClipEncoder, prompts: Sequence[Wording], layers: Sequence[int], normed: bool
) -> Iterator[_Part]:
    readings = [clip.reader.read(prompt.text) for prompt in prompts]
    parts: dict[int, _Part] = {}
    for layer in dict.fromkeys(layers):
        places = [place for place, each in enumerate(layers) if each == layer]
        parts |= zip(
            places, _passed(clip, [readings[place] for place in places], layer, normed), strict=True
        )
    return (parts[place] for place in range(len(prompts)))


def _passed(
    clip: ClipEncoder, readings: Sequence[Reading], layer: int, normed: bool
) -> Iterator[_Part]:
    chunks = [chunk for reading in readings for chunk in reading.chunks]
    embeddings, firsts = clip.forward(chunks, layer, normed=normed)
    start = 0
    for reading in readings:
        count = len(reading.chunks)
        own = embeddings[start : start + count]
        # Copies, since a view into the batch would keep all of it alive in the cache.
        yield _Part(
            own.reshape(1, -1, own.shape[-1]).clone(),
            firsts[start : start + 1].clone(),
            reading.unread,
            count,
        )
        start += count


def _work(clips: Sequence[ClipEncoder], request: Request) -> float:
    reader = clips[0].reader
    return (reader.guess(request.prompt) + reader.guess(request.negative_prompt)) / 2


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
