"""Draws jobs' items as requests of their owners, by the road that all requests take."""

from __future__ import annotations

from text2image.core.errors import Text2ImageError
from text2image.core.limits import work_of
from text2image.core.messages import RequestParams
from text2image.core.settings import Settings
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Gateway
from text2image.jobs.claims import Claim
from text2image.jobs.jobs import Jobs
from text2image.jobs.metrics import JobMetrics
from text2image.jobs.worker import Drawn

# Seconds that one item may take; runners refuse before that what would wait too long.
_LONGEST = 3600.0
# Items at work: twice those that step, so that the next ones wait for each place that comes free.
_FEWEST, _MOST = 8, 512


class GatewayDrawer:
    """By a gateway of this process."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def draw(self, item: Claim) -> Drawn:
        """Draws an item, charged to its owner's limits as they are now.

        Raises:
            Text2ImageError: as `Gateway.draw` says; also where the owner's key was removed.
        """
        context = RequestContext(
            caller=self._gateway.caller_named(item.owner),
            params=item.params,
            title=item.title or item.params.prompt,
            timeout=_LONGEST if item.patience is None else min(_LONGEST, item.patience + 1.0),
            encoding=item.encoding,
            background=True,
        )
        drawing = await self._gateway.draw(context)
        return Drawn(drawing.pictures, drawing.message)

    def places(self) -> int:
        """Twice as many items as are stepping now, which grows until a batch is full."""
        runners = self._gateway.runners
        if not runners.is_ready or self._gateway.work.leaving:
            return 0
        load = runners.load
        return min(_MOST, max(_FEWEST, 2 * (load.active - load.waiting) + _FEWEST // 2))

    def cap(self, owner: str) -> int | None:
        """What the owner's key allows at once, less one for a request that is waited for.

        A removed key's items are claimed to fail.
        """
        try:
            most = self._gateway.caller_named(owner).allowance.max_concurrent
        except Text2ImageError:
            return None
        return most and max(1, most - 1)

    def work(self, params: RequestParams) -> int | None:
        """Pixel-steps that a request costs; None where no model says, or it is none."""
        try:
            model = self._gateway.runners.named(params.model)
            return work_of(self._gateway.resolve(params, model))
        except (Text2ImageError, TypeError, AttributeError):
            return None


def jobs_of(settings: Settings, gateway: Gateway) -> Jobs:
    """The jobs that the settings ask for, drawn by a gateway."""
    folder = settings.data_root / "jobs"
    url = settings.jobs_url.get_secret_value() if settings.jobs_url else None
    return Jobs(
        (url or folder / "jobs.sqlite") if settings.jobs else None,
        folder,
        GatewayDrawer(gateway),
        max_items=settings.jobs_max_items,
        keep_seconds=settings.jobs_keep_seconds,
        keep_bytes=settings.jobs_keep_bytes,
        metrics=JobMetrics(),
    )
