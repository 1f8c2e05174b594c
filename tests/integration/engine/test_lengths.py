"""Texts of different lengths share a forward pass, and none is repeated far beyond the longest."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st

from text2image.engine.prompts.lengths import grouped, joined

WIDTH = 8


def attended(queries: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(queries, text, text)


def test_a_repeated_text_means_what_it_meant() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(1, 7 * chunks, WIDTH, generator=generator) for chunks in (1, 2, 3)]
    together = joined(texts)
    assert together.shape == (3, 42, WIDTH)
    queries = torch.randn(1, 5, WIDTH, generator=generator)
    for row, text in enumerate(texts):
        torch.testing.assert_close(
            attended(queries, together[row : row + 1]), attended(queries, text)
        )


def test_texts_of_one_length_stay_as_they_are() -> None:
    texts = [torch.ones(1, 7, WIDTH), torch.zeros(2, 7, WIDTH)]
    assert torch.equal(joined(texts), torch.cat(texts))


@given(st.lists(st.integers(1, 16).map(lambda chunks: 77 * chunks), max_size=20))
def test_all_are_drawn_in_groups_that_are_not_much_longer_than_their_longest(
    lengths: list[int],
) -> None:
    samples = list(enumerate(lengths))
    groups = grouped(samples, lambda sample: sample[1])
    assert sorted(sample for group in groups for sample in group) == samples
    for group in groups:
        own = [length for _, length in group]
        assert math.lcm(*own) <= 2 * max(own)
    if len(set(lengths)) == 1:
        assert groups == [samples]
