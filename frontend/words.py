"""What the page says: errors for people, and a picture's data in a line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from textwrap import shorten

from frontend.drawing import View
from frontend.history import Piece
from frontend.orders import LABELS, Order
from text2image.core.errors import (
    Cancelled,
    ContentBlocked,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    Text2ImageError,
    Unauthenticated,
    Unavailable,
)
from text2image.core.messages import State, Status

_TITLE_CHARS = 100
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|<>~$:])")


class Tone(Enum):
    """How much a notice matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Remedy(Enum):
    """What the visitor can do about it."""

    NONE = "nothing, or write it otherwise"
    AGAIN = "ask again, after the delay if there is one"
    WAIT = "wait for the server, which is looked after meanwhile"
    KEY = "show an API key"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell. `retry_after` is in seconds from when the notice was made."""

    tone: Tone
    title: str
    text: str = ""
    remedy: Remedy = Remedy.NONE
    retry_after: float = 0.0


def notice_of(error: Text2ImageError, *, has_key: bool = False) -> Notice:
    """An error in words: what happened and what to do. `has_key` tells whether a key was shown, so a wrong one."""
    match error:
        case InvalidRequest():
            return Notice(Tone.WARNING, "The server cannot draw this", _fields(error))
        case ContentBlocked():
            text = sentence(error.message)
            return Notice(Tone.WARNING, "The server does not draw this", text)
        case Unauthenticated() | PermissionDenied():
            return _about_key(error, has_key=has_key)
        case QuotaExceeded():
            return _later("You have reached your limit", error)
        case Unavailable(reason=Unavailable.FULL):
            return _later("The server is busy", error)
        case Unavailable():
            return Notice(Tone.WARNING, "The server cannot draw just now", "", Remedy.WAIT)
        case Cancelled():
            return Notice(Tone.INFO, "Cancelled", "", Remedy.AGAIN)
        case DeadlineExceeded():
            text = sentence(error.message)
            return Notice(Tone.WARNING, "This takes too long", text, Remedy.AGAIN)
        case Internal():
            return Notice(Tone.ERROR, "Something went wrong", sentence(error.message), Remedy.AGAIN)
    return Notice(Tone.ERROR, "The server refused", sentence(error.message), Remedy.AGAIN)


def _about_key(error: Unauthenticated | PermissionDenied, *, has_key: bool) -> Notice:
    text = sentence(error.message)
    if isinstance(error, PermissionDenied):
        return Notice(Tone.WARNING, "This API key may not do that", text, Remedy.KEY)
    if has_key:
        return Notice(Tone.WARNING, "The API key was not accepted", text, Remedy.KEY)
    kept = "The key stays in this tab and is forgotten when you close it."
    return Notice(Tone.INFO, "This server asks for an API key", kept, Remedy.KEY)


def condition_of(status: Status | None, address: str) -> Notice:
    """Why a server does not draw; None is one that does not answer."""
    if status is None:
        text = (
            f"Nothing answers at `{address}`. If it was started a moment ago it will soon be there; "
            "`make serve` starts one. This page goes on by itself."
        )
        return Notice(Tone.WARNING, "The server does not answer", text, Remedy.WAIT)
    match status.state:
        case State.LOADING:
            text = f"{sentence(status.detail)} This page goes on by itself."
            return Notice(Tone.INFO, "The server is starting", text.strip(), Remedy.WAIT)
        case State.DRAINING:
            text = "It takes no more work. This page goes on by itself when it is back."
            return Notice(Tone.INFO, "The server is stopping", text, Remedy.WAIT)
        case State.FAILED:
            return Notice(
                Tone.ERROR, "The server cannot draw", sentence(status.detail), Remedy.WAIT
            )
    return Notice(Tone.INFO, "The server is ready", "", Remedy.AGAIN)


def sentence(text: str) -> str:
    """A message of an error as a sentence."""
    return f"{plain(text[0].upper() + text[1:].rstrip('.'))}." if text else ""


def plain(text: str) -> str:
    """Text that is shown as it is, where Markdown is read."""
    return _MARKDOWN.sub(r"\\\1", text)


def title_of(order: Order) -> str:
    """What an order is called where it is shown: the beginning of its prompt."""
    return plain(shorten(order.prompt, _TITLE_CHARS, placeholder=" …")) or "From a picture"


def caption_of(piece: Piece) -> str:
    """A picture's seed, and the time that it took."""
    picture = piece.picture
    took = "from the cache" if picture.cached else in_seconds(picture.timings.total)
    return f"Seed {picture.seed} · {took}"


def parameters_of(piece: Piece) -> str:
    """What a picture was drawn with, besides its prompt."""
    order = piece.order
    words = [
        f"{piece.picture.width} × {piece.picture.height}",
        f"{order.steps} steps",
        f"guidance {order.guidance_scale:g}",
        plain(order.sampler),
    ]
    if order.clip_skip:
        words.append(f"clip skip {order.clip_skip}")
    if order.enlarges:
        steps = f" of {order.hires_steps} steps" if order.hires_steps else ""
        by = f" by {plain(order.hires_upscaler)}" if order.hires_upscaler else ""
        words.append(
            f"enlarged {order.hires_scale:g} ×{by}, changed by {order.hires_strength:g}{steps}"
        )
    if order.start:
        masked = " where it is marked" if order.start.mask else ""
        words.append(f"from a picture at strength {order.strength:g}{masked}")
    words += [f"{plain(lora.name)} {lora.weight:g}" for lora in order.loras]
    words += [f"steered by {plain(each.name)} {each.scale:g}" for each in order.controls]
    if order.negative_prompt:
        words.append(f"without {plain(order.negative_prompt)}")
    return " · ".join(words)


def progress_of(view: View) -> str:
    """How far a drawing is, and how much longer it takes as things stand."""
    if view.predicted_seconds is None:
        return f"Loading the model: {plain(view.loading)}" if view.loading else "Asking the server"
    left = max(0.0, view.predicted_seconds - view.seconds)
    if not view.steps_done:
        return f"Waiting for its turn, about {in_seconds(left)}"
    return f"Step {view.steps_done} of {view.steps}"


def in_seconds(seconds: float) -> str:
    """A duration as short as it can be told."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _later(title: str, error: Text2ImageError) -> Notice:
    text = sentence(error.message)
    return Notice(Tone.WARNING, title, text, Remedy.AGAIN, error.retry_after or 0.0)


def _fields(error: InvalidRequest) -> str:
    lines = [f"**{LABELS.get(v.field, v.field)}** {plain(v.reason)}." for v in error.violations]
    return "  \n".join(lines)
