"""The tokenizer of CLIP, which every Stable Diffusion model reads prompts with and no single file brings along.

`clip/bpe_simple_vocab_16e6.txt.gz` is OpenAI's own file of byte pair merges (https://github.com/openai/CLIP, MIT, see
`clip/LICENSE`). From it follows the vocabulary, in the order of `clip/simple_tokenizer.py` there.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

_MERGES = Path(__file__).parent / "clip" / "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
# Token ids in all; 256 bytes within a word and 256 at its end, the merges, and the two marks.
VOCABULARY = 49408
_BYTES = 256
_WORD_END = "</w>"


def write_tokenizer(folder: Path, *, padding: str, length: int = 77) -> None:
    """Writes the folder of a `CLIPTokenizer` of transformers.

    Args:
        padding: the token behind shorter prompts: `END`, or "!" for encoders of OpenCLIP.
        length: tokens that the encoder reads, the two marks included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = _merges()
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "vocab.json").write_text(
        json.dumps(_vocabulary(merges), ensure_ascii=False), encoding="utf-8"
    )
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _merges() -> list[str]:
    lines = gzip.decompress(_MERGES.read_bytes()).decode().split("\n")
    # The first line is a title, and what comes after is more than the models were trained with.
    return lines[1 : 1 + VOCABULARY - 2 * _BYTES - 2]


def _vocabulary(merges: list[str]) -> dict[str, int]:
    """The ids of all tokens: bytes in the order of `bytes_to_unicode`, those that can be printed first."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printed += range(ord("®"), ord("ÿ") + 1)
    letters = [chr(byte) for byte in printed]
    letters += [chr(_BYTES + number) for number in range(_BYTES - len(printed))]
    tokens = [*letters, *(letter + _WORD_END for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges]
    return {token: number for number, token in enumerate([*tokens, START, END])}
