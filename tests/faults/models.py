"""A copy of the embedded model with a word that is not a number."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from tests.e2e.harness import ROOT

POISON = "zebra"
EMBEDDED = ROOT / "models" / "embedded"


def poisoned_model(folder: Path) -> Path:
    """Copies the embedded model to `folder`, with the embedding of POISON full of NaN, and returns the folder."""
    shutil.copytree(EMBEDDED, folder)
    weights = folder / "text_encoder" / "model.safetensors"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    _, token, _ = tokenizer.encode(POISON).ids
    tensors = load_file(weights)
    (name,) = (name for name in tensors if name.endswith("token_embedding.weight"))
    tensors[name][token] = np.nan
    save_file(tensors, weights, {"format": "pt"})
    return folder
