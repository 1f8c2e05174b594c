"""Finished pictures and their files in the output folder.

All of it is blocking: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from text2image.core.messages import GeneratedImage, ModelInfo, Picture
from text2image.gateway.cache import key_of
from text2image.gateway.context import RequestContext
from text2image.gateway.finishing import Finisher
from text2image.gateway.store import NotSaved, Storage
from text2image.observe.metrics import GatewayMetrics

# Digits of a picture's key that tell its file from others of the same prompt.
_MARK_DIGITS = 12


class Saver:
    """Finishes pictures and saves them; `store` is None where they are not to be saved."""

    def __init__(self, store: Storage | None, finisher: Finisher, metrics: GatewayMetrics) -> None:
        self._store = store
        self._finisher = finisher
        self._metrics = metrics

    def lost(self, pictures: list[Picture]) -> bool:
        """Whether one of them was to be saved and could not be."""
        return self._store is not None and not all(picture.path for picture in pictures)

    def still_saved(self, context: RequestContext, picture: Picture) -> Picture:
        """The picture as it is asked for, where it was saved, or saved again if this gateway has no such file.

        A hit costs its caller nothing, so however many there are, and whatever their titles, they make one file.
        """
        picture = self._finisher.converted(picture, context.request, context.encoding)
        store = self._store
        if store is None:
            return replace(picture, path="")
        suffix = context.encoding.format.suffix
        title = context.request.prompt
        mark = key_of(context.request, picture.index, context.model)[:_MARK_DIGITS]
        for path in (picture.path, store.path_of(title, mark, suffix)):
            if store.holds(path, picture.file):
                return replace(picture, path=path)
        path = self._save(lambda store: store.save_once(picture.file, title, mark, suffix))
        return replace(picture, path=path)

    def finished(self, image: GeneratedImage, context: RequestContext, model: ModelInfo) -> Picture:
        """The picture as it is asked for, and where it was saved.

        Raises:
            ContentBlocked: it is not to be given out.
        """
        picture = self._finisher.finish(image, context.request, model, context.encoding)
        suffix = context.encoding.format.suffix
        path = self._save(lambda store: store.save(picture.file, context.title, suffix))
        return replace(picture, path=path)

    def _save(self, save: Callable[[Storage], str]) -> str:
        """Where the picture was saved, or nothing: a full disk is no reason to withhold it."""
        if self._store is None:
            self._metrics.pictures.labels("no").inc()
            return ""
        try:
            with self._metrics.stage("storing"):
                path = save(self._store)
        except NotSaved:
            self._metrics.pictures.labels("failed").inc()
            return ""
        self._metrics.pictures.labels("yes").inc()
        return path
