"""From drawn pixels to the file that a client gets: looked at, told what is in it, converted, signed. In this order.

All of it is blocking: call it off the event loop.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from text2image.core.errors import ContentBlocked
from text2image.core.formats import PNG, Encoding, FileFormat, Metadata
from text2image.core.messages import GeneratedImage, ModelInfo, Picture, Pixels, Request
from text2image.gateway import encoding as forms
from text2image.gateway import metadata
from text2image.gateway.painting import composed
from text2image.gateway.provenance import Signer, source_of
from text2image.gateway.safety import Classifier
from text2image.observe.metrics import GatewayMetrics


class Finisher:
    """Makes pictures of pixels. Signed ones are kept signed, so that who asks again gets the same bytes."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        *,
        told: Metadata = Metadata.FULL,
        signer: Signer | None = None,
        classifier: Classifier | None = None,
        checked: bool = False,
    ) -> None:
        """
        Args:
            told: what files tell beside the picture.
            signer: None where pictures are not signed.
            classifier: None where nobody looks at them here.
            checked: whether the runners do.
        """
        self.looks = classifier is not None or checked
        self._metrics = metrics
        self._told = told
        self._signer = signer
        self._classifier = classifier
        self._checked = checked

    @property
    def mark(self) -> str:
        """What is done otherwise than by default, for a cache to tell its pictures by; empty if nothing is."""
        told = "" if self._told is Metadata.FULL else self._told.value
        by = (
            told,
            self._signer and self._signer.fingerprint,
            self._classifier and self._classifier.fingerprint,
            *(["checked"] if self._checked else []),
        )
        return hashlib.sha256(repr(by).encode()).hexdigest() if any(by) else ""

    def finish(
        self, image: GeneratedImage, request: Request, model: ModelInfo, encoding: Encoding
    ) -> Picture:
        """The picture as it is asked for, not saved yet.

        Raises:
            ContentBlocked: it is not to be given out.
        """
        self._look(image.pixels)
        overlay = request.image and request.image.overlay
        if overlay:
            image = replace(image, pixels=composed(image.pixels, overlay))
            # What was drawn may be a small part of it, or mean something else beside the rest.
            self._look(image.pixels)
        with self._metrics.stage("png"):
            png = metadata.png_of(image, request, model, self._told)
        picture = Picture(
            index=image.index,
            seed=image.seed,
            width=image.pixels.width,
            height=image.pixels.height,
            png=self._signed(png, request, PNG),
            path="",
            timings=image.timings,
        )
        return self.converted(picture, request, encoding)

    def converted(self, picture: Picture, request: Request, encoding: Encoding) -> Picture:
        """A picture with its file in the form that it is asked for."""
        if encoding.format is FileFormat.PNG:
            return picture
        file = forms.convert(picture.png, encoding)
        return replace(picture, converted=self._signed(file, request, encoding))

    def _look(self, pixels: Pixels) -> None:
        if self._classifier is None:
            return
        with self._metrics.stage("looking"):
            blocked = self._classifier.blocks(pixels)
        if blocked:
            raise ContentBlocked.picture()

    def _signed(self, file: bytes, request: Request, encoding: Encoding) -> bytes:
        if self._signer is None:
            return file
        with self._metrics.stage("signing"):
            return self._signer.sign(file, encoding.format, source_of(request))
