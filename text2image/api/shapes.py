"""What a body asks for as a runner goes by it, found out once for all bodies that differ in their texts alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from pydantic_core import from_json, to_json

from text2image.api.openai_requests import Named
from text2image.core import validation
from text2image.core.errors import Text2ImageError
from text2image.core.messages import Request, RequestParams
from text2image.gateway.election import Elected
from text2image.gateway.generate import Gateway
from text2image.gateway.refusals import shape_of

# Characters of all texts of a body that no field finds too many, however they are put together.
_MAX_TEXT = validation.MAX_PROMPT_CHARS - len(", ")
# Bytes of a body without its texts, and how many of those are remembered.
_MAX_REST = 4096
_REMEMBERED = 256
# What stands for a text that is not blank, and signs by which one may say more than what to show.
_TEXT = "-"
_SIGNS = re.compile(r"[()\[\]{}<>:|\\]")


class Shapes:
    """The shapes of bodies of one kind.

    Args:
        parse: what a body asks for; raises ValueError, or our own errors.
        texts: its fields that may hold any text without signs, as long as it is not blank nor too long.
    """

    def __init__(
        self, parse: Callable[[bytes, Named], RequestParams], texts: Sequence[str]
    ) -> None:
        self._parse = parse
        self._texts = texts
        # Errors are not remembered: there is no end of them.
        self._shape = lru_cache(_REMEMBERED)(self._checked)

    def of(self, body: bytes, gateway: Gateway) -> Request | None:
        """The shape of what a body asks for; None if there is an error in it, or it is too long to be worth a look."""
        try:
            fields = from_json(body)
            if not isinstance(fields, dict):
                return None
            length = 0
            for name in self._texts:
                text = fields.get(name)
                if isinstance(text, str) and text.strip():
                    length += len(text)
                    fields[name] = text if _SIGNS.search(text) else _TEXT
            rest = to_json(fields)
            if length > _MAX_TEXT or len(rest) > _MAX_REST:
                return None
            return self._shape(rest, gateway, gateway.runners.elected)
        except (Text2ImageError, ValueError):
            return None

    def _checked(self, body: bytes, gateway: Gateway, _: Elected) -> Request:
        """The shape of a body, which depends on the models that are drawn with."""
        named = gateway.runners.named
        params = self._parse(body, named)
        return shape_of(gateway.resolve(params, named(params.model)))
