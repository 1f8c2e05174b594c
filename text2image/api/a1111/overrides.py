"""`override_settings` of A1111: what of its settings a request may name for itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from text2image.core.errors import FieldViolation, ModelNotFound
from text2image.core.formats import MAX_QUALITY, Encoding, FileFormat
from text2image.core.messages import ModelInfo
from text2image.core.validation import MAX_STEPS

# Finds a model by its name, or the default one.
Named = Callable[[str | None], ModelInfo]

MODEL, LAYER = "sd_model_checkpoint", "CLIP_stop_at_last_layers"
FORMAT, QUALITY = "samples_format", "jpeg_quality"
PREVIEWS, PREVIEW_EVERY = "live_previews_enable", "show_progress_every_n_steps"
# Letters of a hash, as titles of models have them.
HASH_LETTERS = 10
# What A1111 does where nothing is said: quality of JPEG and WebP, and steps from one preview to the next.
_QUALITY, _EVERY = 80, 10
_FORMATS = {
    "png": FileFormat.PNG,
    "jpg": FileFormat.JPEG,
    "jpeg": FileFormat.JPEG,
    "webp": FileFormat.WEBP,
}
# Settings that would change pictures or answers, each with the values that do not.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "sd_vae": ("Automatic", "None"),
    "eta_noise_seed_delta": (0,),
    "img2img_color_correction": (False,),
    "img2img_fix_steps": (False,),
    "return_grid": (False,),
    "return_mask": (False,),
    "return_mask_composite": (False,),
    "token_merging_ratio": (0,),
    "tiling": (False,),
    "face_restoration": (False,),
}
# Settings of what is saved and shown, which is the server's own business.
_IGNORED = re.compile(
    r"(save|samples|grid|directories|outdir|live_preview|show_progress|do_not_show)_\w+|enable_pnginfo"
)
_TITLE = re.compile(r"(.+?)(?:\.safetensors|\.ckpt)?(?: \[([0-9a-f]{4,64})\])?", re.DOTALL)


def title_of(model: ModelInfo) -> str:
    """What A1111 calls a model of this name."""
    return f"{model.id} [{model.revision[:HASH_LETTERS]}]"


def model_titled(title: str, named: Named) -> ModelInfo:
    """The model that a client means: by its name or alias, with or without the file's ending and hash.

    Raises:
        ModelNotFound: none is called so, or its hash is another.
        Unavailable: it is not known yet which models there are.
    """
    try:
        return named(title)
    except ModelNotFound:
        match = _TITLE.fullmatch(title)
        if not match or match[1] == title:
            raise
        name, digest = match.groups()
    model = named(name)
    if digest and not (model.revision.startswith(digest) or digest.startswith(model.revision)):
        raise ModelNotFound(f"{title[:80]!r} is not served here; {title_of(model)!r} is")
    return model


class Overrides:
    """The settings that a request names; null and empty ones count as left out."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = {
            name: value for name, value in settings.items() if value not in (None, "", [], {})
        }

    def violations(self, named: Named) -> Iterator[FieldViolation]:
        """What of them is not done here."""
        for name, value in self._settings.items():
            if reason := self._refusal(name, value, named):
                yield FieldViolation(f"override_settings.{name[:80]}", reason)

    def _refusal(self, name: str, value: Any, named: Named) -> str:
        if name == MODEL:
            return _model_refusal(value, named)
        if name in (LAYER, QUALITY, PREVIEW_EVERY):
            most = MAX_QUALITY if name == QUALITY else None
            return _number_refusal(value, most)
        if name == FORMAT:
            known = isinstance(value, str) and value.lower() in _FORMATS
            return "" if known else f"is {_shown(value)}; it must be one of {', '.join(_FORMATS)}"
        if name in _ONLY:
            only = " or ".join(map(str, _ONLY[name]))
            return "" if value in _ONLY[name] else f"is {_shown(value)}; only {only} is done here"
        return "" if _IGNORED.fullmatch(name) else "is no setting that a request may name here"

    @property
    def names_layer(self) -> bool:
        return LAYER in self._settings

    def model(self, named: Named) -> str | None:
        """The name of the model, if one is named."""
        title = self._settings.get(MODEL)
        return model_titled(title, named).id if isinstance(title, str) else None

    def layer(self, default: int | None) -> int | None:
        """The layer of the text encoder; its last, which A1111 takes for nothing said, is the model's own."""
        value = self._settings.get(LAYER, default)
        return None if value is None else _layer(int(value))

    @property
    def encoding(self) -> Encoding:
        form = _FORMATS[str(self._settings.get(FORMAT, FileFormat.PNG)).lower()]
        if form is FileFormat.PNG:
            return Encoding()
        return Encoding(form, int(self._settings.get(QUALITY, _QUALITY)))

    def preview_every(self, wanted: bool) -> int:
        """Steps from one preview to the next, 0 for none; as A1111 has it where they are `wanted` and not named."""
        if self._settings.get(PREVIEWS) is False:
            return 0
        every = int(self._settings.get(PREVIEW_EVERY, _EVERY if wanted else 0))
        return max(0, min(every, MAX_STEPS))


def _layer(value: int) -> int:
    return 0 if value == 1 else value


def _model_refusal(value: Any, named: Named) -> str:
    if not isinstance(value, str):
        return "must be the name of a model"
    try:
        model_titled(value, named)
    except ModelNotFound as error:
        return f"is unknown: {error.message}"
    return ""


def _number_refusal(value: Any, most: int | None) -> str:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole:
        return f"is {_shown(value)}; it must be a whole number"
    if most is not None and not 0 <= value <= most:
        return f"is {_shown(value)}; it must be between 0 and {most}"
    return ""


def _shown(value: Any) -> str:
    return repr(value)[:40]
