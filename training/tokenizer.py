"""The tokenizer: byte-pair encoding in CLIP's form, learnt from captions and keywords."""

import json
import random
import re
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from training.artwork import fetch
from training.captions import caption, plural
from training.paths import state_dir
from training.scenes import draw_scene, things

LENGTH = 24  # tokens a prompt, with start and end
MERGED = 2200  # tokens before those for single bytes at a word's end and the two special ones
END_OF_WORD = "</w>"
# The splitting rule of CLIP's tokenizer (https://github.com/openai/CLIP, simple_tokenizer.py).
WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def _corpus() -> list[str]:
    rng = random.Random(3)
    lines = [caption(draw_scene(rng), rng).lower() for _ in range(60_000)]
    for thing in things():
        for name in (*thing.names, *thing.keywords):
            lines += [name] * 12 + [plural(name)] * 3
    keywords = json.loads((fetch("keywords") / "dist" / "emoji-en-US.json").read_text())
    every = " ".join(w.replace("_", " ").lower() for found in keywords.values() for w in found)
    return lines + sorted(set(re.findall(r"[a-z]{3,}", every))) * 2


def _merges(corpus: list[str], alphabet: list[str]) -> list[str]:
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD, continuing_subword_prefix=""))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=MERGED,
        initial_alphabet=alphabet,
        end_of_word_suffix=END_OF_WORD,
        min_frequency=3,
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    learnt = json.loads(learner.to_str())["model"]["merges"]
    return [m if isinstance(m, str) else " ".join(m) for m in learnt]


def folder() -> Path:
    """Where the tokenizer lies."""
    return state_dir() / "tokenizer"


def train() -> None:
    """Learn the merges and write the tokenizer, unless it is there."""
    if (folder() / "tokenizer.json").exists():
        return
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(_corpus(), alphabet)
    words = [*alphabet, *(a + END_OF_WORD for a in alphabet)]
    words += [m.replace(" ", "") for m in merges]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(words))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    pairs = [tuple(m.split(" ")) for m in merges]
    CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=LENGTH).save_pretrained(folder())


def encode_ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids, (count, 24), padded as the served pipeline pads them."""
    encoded = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    ids: torch.Tensor = encoded["input_ids"]
    return ids


def trained() -> CLIPTokenizer:
    """The tokenizer."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder())
    return tokenizer
