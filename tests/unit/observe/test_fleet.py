"""The gauges by which an endpoint picker chooses among gateways."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from tests.samples import MODEL
from text2image.core.messages import LoraInfo, ModelState, ModelStatus, State, Status
from text2image.observe.fleet import exposition

INK, FOX = (LoraInfo(name, "0123456789", "", ()) for name in ("ink", "fox"))
FIRST = replace(MODEL, id="first", aliases=("one",), loras=(INK, FOX))
SECOND = replace(MODEL, id="second", aliases=())


def told(status: Status) -> dict[str, list[tuple[dict[str, str], float]]]:
    text = exposition(status, [FIRST, SECOND], clock=lambda: 1234.5).decode()
    return {
        family.name.removeprefix("text2image_"): [
            (sample.labels, sample.value) for sample in family.samples
        ]
        for family in text_string_to_metric_families(text)
    }


def models(second: ModelState) -> tuple[ModelStatus, ...]:
    first = ModelStatus(
        name="first",
        revision="1",
        state=ModelState.LOADED,
        adapters=("fox",),
        waiting_adapters=("ink",),
    )
    return first, ModelStatus(name="second", revision="1", state=second)


def test_the_queue_what_is_drawn_and_how_full_the_fleet_is() -> None:
    gauges = told(Status(state=State.READY, active=5, waiting=3, utilization=0.25))
    assert gauges["requests_waiting"] == [({}, 3)]
    assert gauges["requests_running"] == [({}, 2)]
    assert gauges["utilization"] == [({}, 0.25)]
    assert told(Status(state=State.READY, utilization=1.5))["utilization"] == [({}, 1)]


def test_what_is_in_memory_and_what_is_on_its_way_by_the_names_that_requests_use() -> None:
    gauges = told(Status(state=State.READY, models=models(ModelState.LOADING)))
    labels = {
        "max_lora": "5",
        "running_lora_adapters": "first,one,fox",
        "waiting_lora_adapters": "ink,second",
    }
    assert gauges["lora_requests_info"] == [(labels, 1234.5)]
    assert gauges["adapter_loaded"] == [({"model": "first", "adapter": "fox"}, 1)]


def test_a_model_that_has_left_is_in_no_line() -> None:
    ((labels, _),) = told(Status(state=State.READY, models=models(ModelState.IDLE)))[
        "lora_requests_info"
    ]
    assert "second" not in labels["running_lora_adapters"] + labels["waiting_lora_adapters"]
