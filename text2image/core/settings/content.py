"""What pictures may show, and what their files tell."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field, field_validator

from text2image.core.formats import Metadata
from text2image.core.settings.group import Group

# What a switch says where there was nothing to choose yet.
_SWITCHES = {
    **dict.fromkeys(("1", "true", "yes", "on"), "classifier"),
    **dict.fromkeys(("0", "false", "no"), "off"),
}


class Safety(StrEnum):
    """Who looks at pictures before they are given out: the gateway's classifier, the model's own checker, or both."""

    OFF = "off"
    CLASSIFIER = "classifier"
    MODEL = "model"
    BOTH = "both"


class Content(Group):
    """Parameters and signatures in files, and what is not drawn or not given out."""

    metadata: Metadata = Field(
        Metadata.FULL,
        description="What files tell beside the picture: `full` is the parameters that draw it again, and that a model "
        "drew it (IPTC's digital source type); `source` is the latter alone, `none` neither.",
    )
    c2pa_cert: Path | None = Field(
        None,
        description="Certificate chain in PEM, the signer's own first, to sign pictures with as C2PA has it; with its "
        "key and the extra `c2pa`.",
    )
    c2pa_key: Path | None = Field(None, description="Key of that certificate, in PEM, not locked.")
    prompt_denylist: Path | None = Field(
        None,
        description="File of words, phrases and `/patterns/`, one a line, that prompts may not have; read again when "
        "it changes.",
    )
    safety: Safety = Field(
        Safety.OFF,
        description="Who looks at pictures before they are given out: a `classifier` (or `1`), the `model`'s own "
        "safety checker, `both`, or with `off` nobody; blocked ones are an error. Set it where the runners are too.",
    )
    safety_model: Path | None = Field(
        None,
        description="ONNX file of the classifier that looks at them; Yahoo's open_nsfw, which the extra `safety` "
        "brings, if unset.",
    )
    safety_threshold: float = Field(
        0.8, ge=0, le=1, description="Probability from which on a picture is blocked."
    )

    @field_validator("safety", mode="before")
    @classmethod
    def _check_safety(cls, value: object) -> object:
        named = str(value).lower()
        return _SWITCHES.get(named, named)

    @property
    def classifies(self) -> bool:
        """Whether the gateway's classifier looks at pictures."""
        return self.safety in (Safety.CLASSIFIER, Safety.BOTH)

    @property
    def checks(self) -> bool:
        """Whether the models' own safety checkers look at pictures."""
        return self.safety in (Safety.MODEL, Safety.BOTH)
