"""What a request's prompts mean to a model beyond their characters, as far as configurations tell."""

from __future__ import annotations

from text2image.core import prompt_syntax
from text2image.core.messages import Embedding, ModelInfo, PromptSyntax, Request


def named_embeddings(request: Request, model: ModelInfo) -> list[Embedding]:
    """The textual inversions that a request's prompts name, each once."""
    if model.prompt_syntax is not PromptSyntax.A1111 or not model.embeddings:
        return []
    names = [each.name for each in model.embeddings]
    texts = (request.prompt, request.negative_prompt)
    found = {name for text in texts for name in prompt_syntax.used(text, names)}
    return [each for each in model.embeddings if each.name in found]


def reading_of(request: Request, model: ModelInfo) -> str:
    """What the pictures of a request depend on by how its prompts are read; empty if that is as they stand."""
    if model.prompt_syntax is not PromptSyntax.A1111:
        return ""
    inversions = [f"{each.name} {each.hash}" for each in named_embeddings(request, model)]
    texts = (request.prompt, request.negative_prompt)
    if not inversions and all(map(prompt_syntax.is_plain, texts)):
        return ""
    return " ".join((model.prompt_syntax, *inversions))
