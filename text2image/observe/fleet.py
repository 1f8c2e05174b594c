"""What those ask for who choose among servers: how long the queue is, how full it is, and which weights are in memory.

The gauges are the ones that the model server protocol of Kubernetes' Gateway API inference extension calls
TotalQueuedRequests, TotalRunningRequests, KVCacheUtilization and LoRA info
(kubernetes-sigs/gateway-api-inference-extension, docs/proposals/003-model-server-protocol). Names are a setting of
whoever reads them. They are made when they are asked for: what is not resident any more leaves no line behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from text2image.core.messages import ModelInfo, ModelState, Status


def exposition(
    status: Status, models: Sequence[ModelInfo], clock: Callable[[], float] = time.time
) -> bytes:
    """The gauges of a fleet of runners, in Prometheus' text form.

    Args:
        status: of all runners together.
        models: that they serve, the default one first.
    """
    registry = CollectorRegistry()
    registry.register(_Fleet(status, models, clock))
    return generate_latest(registry)


class _Fleet(Collector):
    def __init__(
        self, status: Status, models: Sequence[ModelInfo], clock: Callable[[], float]
    ) -> None:
        self._status = status
        self._models = {model.id: model for model in models}
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily(
            "text2image_requests_waiting",
            "Pictures that runners have admitted and not begun",
            value=status.waiting,
        )
        yield GaugeMetricFamily(
            "text2image_requests_running",
            "Pictures that runners are drawing",
            value=max(0, status.active - status.waiting),
        )
        yield GaugeMetricFamily(
            "text2image_utilization",
            "Backlog as a share of the longest that is admitted, 1 at most",
            value=min(1.0, status.utilization),
        )
        yield self._info()
        adapters = GaugeMetricFamily(
            "text2image_adapter_loaded",
            "1 for an adapter that is in a runner's memory",
            labels=["model", "adapter"],
        )
        for model in status.models:
            for name in model.adapters:
                adapters.add_metric([model.name, name], 1)
        yield adapters

    def _info(self) -> Metric:
        """Models and adapters by each name that requests may have for them; the value says when that was so."""
        loaded, loading, served = [], [], []
        for status in self._status.models:
            model = self._models.get(status.name)
            names = [status.name, *(model.aliases if model else ())]
            served += names
            if model:
                served += [each.name for each in model.loras]
                served += [each.name for each in model.controls]
            if status.state is ModelState.LOADED:
                loaded += names
            elif status.state is ModelState.LOADING:
                loading += names
            loaded += status.adapters
            loading += status.waiting_adapters
        info = GaugeMetricFamily(
            "text2image_lora_requests_info",
            "Models and adapters that are in memory and that are on their way; the time of the look at them",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        labels = [str(len(set(served))), _listed(loaded), _listed(loading)]
        info.add_metric(labels, self._clock())
        return info


def _listed(names: Sequence[str]) -> str:
    return ",".join(dict.fromkeys(names))
