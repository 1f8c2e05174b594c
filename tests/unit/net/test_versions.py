"""In the middle of an upgrade a gateway works with runners of different versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.init_images import control_picture, init_image
from tests.samples import MODEL
from tests.unit.net.versions import (
    LATER_QUALITY,
    LATER_SAMPLER,
    LATER_SCHEDULE,
    LATER_STATE,
    NEWER,
    OLDER,
    VERSIONS,
    Peer,
    Version,
    draw,
    gateway_of,
)
from text2image.client import AsyncClient
from text2image.core import errors
from text2image.core.messages import (
    Completed,
    Control,
    ControlInfo,
    GeneratedImage,
    Input,
    LoraInfo,
    LoraWeight,
    Progress,
    PromptSyntax,
    Quality,
    Queued,
    Sampler,
    Schedule,
    State,
)
from text2image.gateway import metadata
from text2image.net import wire
from text2image.v1 import image_generation_pb2 as pb

EDGES = ControlInfo("edges", "0123456789", "Stable Diffusion 1.x")
INK = LoraInfo("ink", "0123456789", "Stable Diffusion 1.x", ("ink wash",))


@VERSIONS
async def test_a_gateway_draws_with_a_runner_of_another_version(
    tmp_path: Path, version: Version
) -> None:
    async with Peer(version, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        request, events = await draw(runners, seed=7)
        assert [type(event) for event in events] == [Queued, Progress, GeneratedImage, Completed]
        assert peer.requests[0].prompt == request.prompt
        assert peer.requests[0].sampler == request.sampler
        # One that has no catalogue knows no field that names a model.
        assert "model" not in {field.name for field, _ in peer.requests[0].ListFields()}
        assert [model.id for model in runners.models] == [MODEL.id]
        with pytest.raises(errors.ModelNotFound, match=f"'other' is not served here; '{MODEL.id}'"):
            runners.named("other")
        assert runners.status.active == 3
        assert runners.status.counters.admitted == 5


async def test_a_gateway_draws_with_samplers_that_it_does_not_know(tmp_path: Path) -> None:
    later = Sampler.named(LATER_SAMPLER)
    model = replace(MODEL, sampler=later, samplers=(Sampler.EULER, later))
    async with (
        Peer(NEWER, tmp_path / "0", model=model).serving() as peer,
        gateway_of(peer) as runners,
    ):
        assert [sampler.value for sampler in runners.model.samplers] == ["euler", LATER_SAMPLER]
        await draw(runners)
        request, _ = await draw(runners, sampler=LATER_SAMPLER)
        await draw(runners, sampler="euler")
        assert [asked.sampler for asked in peer.requests] == [LATER_SAMPLER] * 2 + ["euler"]
        described = metadata.describe(request, request.seed, runners.model)
        assert metadata.parse(described).sampler == LATER_SAMPLER
        # As the gateway tells its own clients.
        assert wire.model_to(runners.model).sampler == LATER_SAMPLER


async def test_a_gateway_draws_with_a_schedule_that_it_does_not_know(tmp_path: Path) -> None:
    model = replace(MODEL, schedules=(*MODEL.schedules, Schedule.named(LATER_SCHEDULE)))
    async with (
        Peer(NEWER, tmp_path / "0", model=model).serving() as peer,
        gateway_of(peer) as runners,
    ):
        request, _ = await draw(runners, sampler="euler", schedule=LATER_SCHEDULE)
        assert peer.requests[0].schedule == LATER_SCHEDULE
        described = metadata.describe(request, request.seed, runners.model)
        assert metadata.parse(described).schedule == LATER_SCHEDULE
        assert list(wire.model_to(runners.model).schedules) == [*Schedule, LATER_SCHEDULE]


async def test_an_older_runner_is_asked_for_no_schedule(tmp_path: Path) -> None:
    """It would draw without it, and say nothing."""
    async with Peer(OLDER, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        assert runners.model.schedules == ()
        with pytest.raises(errors.InvalidRequest, match="'karras'; with euler it must be left out"):
            await draw(runners, sampler="euler", schedule="karras")


async def test_an_older_runner_is_asked_for_no_adapter(tmp_path: Path) -> None:
    """It would draw without it, and say nothing."""
    model = replace(MODEL, loras=(INK,))
    async with (
        Peer(OLDER, tmp_path / "0", model=model).serving() as old,
        gateway_of(old) as runners,
    ):
        with pytest.raises(errors.InvalidRequest, match="embedded has no adapters"):
            await draw(runners, loras=(LoraWeight("ink", 0.5),))
    async with (
        Peer(OLDER, tmp_path / "1", model=model).serving() as old,
        Peer(NEWER, tmp_path / "2", model=model).serving() as new,
        gateway_of(old, new) as runners,
    ):
        assert runners.model.loras == ()
        await draw(runners)
    async with (
        Peer(NEWER, tmp_path / "3", model=model).serving() as new,
        gateway_of(new) as runners,
    ):
        await draw(runners, loras=(LoraWeight("ink", 0.5),))
        assert wire.params_from(new.requests[0]).loras == (LoraWeight("ink", 0.5, INK.hash),)


async def test_an_older_runner_is_asked_for_no_control(tmp_path: Path) -> None:
    """It would draw without it, and say nothing."""
    model = replace(MODEL, controls=(EDGES,))
    shown = control_picture((MODEL.width, MODEL.height))
    async with (
        Peer(OLDER, tmp_path / "0", model=model).serving() as old,
        gateway_of(old) as runners,
    ):
        with pytest.raises(errors.InvalidRequest, match="embedded has no ControlNets"):
            await draw(runners, controls=(Control("edges", shown),))
    async with (
        Peer(OLDER, tmp_path / "1", model=model).serving() as old,
        Peer(NEWER, tmp_path / "2", model=model).serving() as new,
        gateway_of(old, new) as runners,
    ):
        assert runners.model.controls == ()
        await draw(runners)
    async with (
        Peer(NEWER, tmp_path / "3", model=model).serving() as new,
        gateway_of(new) as runners,
    ):
        await draw(runners, controls=(Control("edges", shown, 0.5),))
        assert wire.sent_params_from(new.requests[0]).controls == (
            Control("edges", shown, 0.5, hash=EDGES.hash),
        )


async def test_an_older_runner_is_asked_for_no_layer_and_reads_prompts_as_they_stand(
    tmp_path: Path,
) -> None:
    """It would draw with its own, and weigh nothing."""
    async with Peer(OLDER, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        assert runners.model.prompt_syntax is PromptSyntax.PLAIN
        with pytest.raises(errors.InvalidRequest, match="clip_skip: is 2; embedded takes none"):
            await draw(runners, clip_skip=2)


async def test_runners_that_read_prompts_otherwise_share_no_work(tmp_path: Path) -> None:
    web_ui = replace(MODEL, prompt_syntax=PromptSyntax.A1111)
    async with (
        Peer(OLDER, tmp_path / "0").serving() as old,
        Peer(NEWER, tmp_path / "1", model=web_ui).serving() as one,
        Peer(NEWER, tmp_path / "2", model=web_ui).serving() as other,
        gateway_of(old, one, other) as runners,
    ):
        assert runners.model.prompt_syntax is PromptSyntax.A1111
        for _ in range(20):
            await draw(runners)
        assert not old.requests
        assert one.requests or other.requests


async def test_only_layers_that_all_runners_have_are_asked_for(tmp_path: Path) -> None:
    deep = replace(MODEL, max_clip_skip=12, clip_skip=2)
    async with (
        Peer(OLDER, tmp_path / "0").serving() as old,
        Peer(NEWER, tmp_path / "1", model=deep).serving() as new,
        gateway_of(old, new) as runners,
    ):
        assert (runners.model.clip_skip, runners.model.max_clip_skip) == (0, 0)


async def test_an_older_runner_is_asked_for_nothing_that_begins_from_a_picture(
    tmp_path: Path,
) -> None:
    """It would draw from the text alone."""
    async with Peer(OLDER, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        assert runners.model.inputs == (Input.TEXT,)
        with pytest.raises(errors.InvalidRequest, match=r"image: .* draws from a text alone"):
            await draw(runners, image=init_image())
        assert not peer.requests


async def test_a_runner_that_knows_nothing_of_fast_pictures_is_asked_for_the_exact_one(
    tmp_path: Path,
) -> None:
    """It would draw it all the same, and it would be kept as another picture."""
    async with Peer(OLDER, tmp_path / "0").serving() as peer, gateway_of(peer) as runners:
        assert (runners.model.quality, runners.model.fast) == (Quality.EXACT, "")
        request, _ = await draw(runners, quality="fast")
        assert request.quality is Quality.EXACT
        assert "Quality" not in metadata.describe(request, request.seed, runners.model)


async def test_a_gateway_leaves_open_a_quality_that_only_its_runner_knows(tmp_path: Path) -> None:
    model = replace(MODEL, quality=Quality.named(LATER_QUALITY))
    async with (
        Peer(NEWER, tmp_path / "0", model=model).serving() as peer,
        gateway_of(peer) as runners,
    ):
        request, _ = await draw(runners)
        await draw(runners, quality="fast")
        assert [asked.quality for asked in peer.requests] == [LATER_QUALITY, "fast"]
        described = metadata.describe(request, request.seed, runners.model)
        assert metadata.parse(described).quality == LATER_QUALITY
        assert wire.model_to(runners.model).quality == LATER_QUALITY


async def test_runners_that_leave_out_different_things_all_draw_exactly(tmp_path: Path) -> None:
    async with (
        Peer(NEWER, tmp_path / "0").serving() as one,
        Peer(NEWER, tmp_path / "1", model=replace(MODEL, fast="much more")).serving() as other,
        gateway_of(one, other) as runners,
    ):
        assert runners.model.fast == ""
        for _ in range(20):
            await draw(runners, quality="fast")
        assert {asked.quality for peer in (one, other) for asked in peer.requests} == {"exact"}
        assert one.requests
        assert other.requests


async def test_the_least_of_the_runners_limits_counts(tmp_path: Path) -> None:
    few, many = ((Sampler.LCM, 8),), ((Sampler.LCM, 50), (Sampler.TCD, 50))
    async with (
        Peer(NEWER, tmp_path / "0", model=replace(MODEL, max_steps=few)).serving() as one,
        Peer(NEWER, tmp_path / "1", model=replace(MODEL, max_steps=many)).serving() as other,
        gateway_of(one, other) as runners,
    ):
        assert runners.model.max_steps == (*few, (Sampler.TCD, 50))


async def test_a_name_that_is_known_is_the_sampler_itself() -> None:
    for sampler in Sampler:
        assert Sampler.named(sampler.value) is sampler
    later = Sampler.named(LATER_SAMPLER)
    assert later == Sampler.named(LATER_SAMPLER)
    assert len({later, Sampler.named(LATER_SAMPLER), *Sampler}) == len(Sampler) + 1
    assert later not in list(Sampler)


async def test_old_and_new_runners_draw_side_by_side_with_what_both_know(tmp_path: Path) -> None:
    more = replace(MODEL, samplers=(*MODEL.samplers, Sampler.named(LATER_SAMPLER)))
    async with (
        Peer(OLDER, tmp_path / "0").serving() as old,
        Peer(NEWER, tmp_path / "1", model=more).serving() as new,
        gateway_of(old, new) as runners,
    ):
        assert runners.model.samplers == MODEL.samplers
        assert runners.model.schedules == ()
        for _ in range(20):
            await draw(runners)
        assert old.requests
        assert new.requests


async def test_a_state_of_a_later_version_is_waited_out(tmp_path: Path) -> None:
    peer = Peer(NEWER, tmp_path / "0")
    peer.states = [LATER_STATE, pb.STATE_READY]
    async with peer.serving(), gateway_of(peer) as runners:
        assert runners.is_ready
    peer.states = [LATER_STATE]
    async with peer.serving(), AsyncClient(peer.address) as client:
        async for message in client._stub.WatchStatus(pb.WatchStatusRequest()):
            assert wire.status_from(message).state is not State.READY
            break
