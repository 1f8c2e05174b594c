"""What pictures may show, and what their files tell."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from text2image.core.formats import Metadata
from text2image.core.settings.group import Group


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
    safety: bool = Field(
        False,
        description="Whether pictures are looked at before they are given out; blocked ones are an error.",
    )
    safety_model: Path | None = Field(
        None,
        description="ONNX file of the classifier that looks at them; Yahoo's open_nsfw, which the extra `safety` "
        "brings, if unset.",
    )
    safety_threshold: float = Field(
        0.8, ge=0, le=1, description="Probability from which on a picture is blocked."
    )
