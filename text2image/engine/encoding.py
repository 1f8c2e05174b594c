"""How many samples are encoded at once: prompts, and apart from them pictures to begin from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from text2image.engine.models.contract import Model
from text2image.engine.sample import Sample

# Most samples whose prompts are encoded at once, if they are short.
ENCODE_CHUNK = 8


def encoded_at_once(samples: Sequence[Sample], each: float, budget: float, model: Model) -> int:
    """How many of the first samples to encode together, one at least.

    What begins from a picture takes much longer, and stays apart.

    Args:
        each: seconds for the prompts of a sample, if they are short.
        budget: seconds that there are.
    """
    most = min(ENCODE_CHUNK, budget / each) if each else ENCODE_CHUNK
    totals = accumulate(sample.encoding for sample in samples)
    count = max(1, sum(total <= most for total in totals))
    begun = [sample.generation.request.image is not None for sample in samples]
    if begun[0]:
        count = min(count, model.decode_limit(samples[0]))
    return min(count, [*begun, not begun[0]].index(not begun[0]))
