"""How a server is, and each of its models."""

from __future__ import annotations

from text2image.core.messages import (
    Counters,
    ModelState,
    ModelStatus,
    State,
    Status,
)
from text2image.net.wire.presence import seconds_in
from text2image.v1 import image_generation_pb2 as pb

_STATES = {
    State.LOADING: pb.STATE_LOADING,
    State.READY: pb.STATE_READY,
    State.DRAINING: pb.STATE_DRAINING,
    State.FAILED: pb.STATE_FAILED,
}
_STATES_BACK = {number: state for state, number in _STATES.items()}


def status_to(status: Status) -> pb.WatchStatusResponse:
    return pb.WatchStatusResponse(
        state=_STATES[status.state],
        detail=status.detail,
        backlog_seconds=status.backlog_seconds,
        active=status.active,
        pace=status.pace,
        models=[
            pb.ModelStatus(
                name=model.name,
                revision=model.revision,
                state=model.state.value,
                detail=model.detail,
                seconds=model.seconds,
                offers=model.offers,
                adapters=model.adapters,
                waiting_adapters=model.waiting_adapters,
            )
            for model in status.models
        ],
        waiting=status.waiting,
        utilization=status.utilization,
        counters=pb.Counters(
            **{
                field.name: getattr(status.counters, field.name)
                for field in pb.Counters.DESCRIPTOR.fields
            }
        ),
    )


def status_from(message: pb.WatchStatusResponse) -> Status:
    counters = {
        field.name: getattr(message.counters, field.name) for field in pb.Counters.DESCRIPTOR.fields
    }
    return Status(
        state=_STATES_BACK.get(message.state, State.FAILED),
        detail=message.detail,
        backlog_seconds=message.backlog_seconds,
        active=message.active,
        counters=Counters(**counters),
        pace=message.pace,
        models=tuple(
            ModelStatus(
                name=model.name,
                revision=model.revision,
                state=ModelState.named(model.state),
                detail=model.detail,
                seconds=seconds_in(model),
                offers=model.offers,
                adapters=tuple(model.adapters),
                waiting_adapters=tuple(model.waiting_adapters),
            )
            for model in message.models
        ),
        waiting=message.waiting,
        utilization=message.utilization,
    )
