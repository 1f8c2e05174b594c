"""Files of pictures are data: whatever one holds, it is read, or refused by the name of its field."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from tests.doubles import make_info
from tests.hostile_files import KINDS, SIZE, odd_png, pictures
from tests.init_images import file_of, picture
from text2image.core.errors import InvalidRequest, PayloadTooLarge, Text2ImageError
from text2image.core.init_image import InitImage
from text2image.core.messages import Control, ControlInfo, Input, RequestParams
from text2image.gateway.init_images import Limits, Reader

MODEL = make_info(inputs=tuple(Input), controls=(ControlInfo("edges", "0123456789"),))
LIMITS = Limits(file_bytes=200_000, pixels=1_000_000)
SOUND = file_of(picture(SIZE))
# Files of each use, more than two thousand together.
COUNTS = {"image": 720, "mask": 720, "controls": 720}
BLUR = {"mask_blur": (4, 4)}
MASKED = ({}, {"mask_by_alpha": True}, {"mask_inverted": True}, BLUR, BLUR | {"mask_padding": 8})


def asking(use: str, file: bytes, number: int) -> RequestParams:
    if use == "image":
        return RequestParams(prompt="a cat", image=file, stretched=number % 2 == 0)
    if use == "mask":
        how = MASKED[number % len(MASKED)]
        return RequestParams(prompt="a cat", image=SOUND, mask=file, **how)  # type: ignore[arg-type]
    control = Control("edges", file, preprocess=("", "inpaint")[number % 2])
    return RequestParams(prompt="a cat", controls=(control,))


async def told(use: str, file: bytes, number: int) -> RequestParams | Text2ImageError:
    deadline = asyncio.get_running_loop().time() + 120
    try:
        return await Reader(LIMITS).read(asking(use, file, number), MODEL, deadline)
    except (InvalidRequest, PayloadTooLarge) as refusal:
        return refusal


async def outcome(use: str, file: bytes, number: int) -> str:
    match await told(use, file, number):
        case InvalidRequest(violations=violations):
            assert {each.field for each in violations} == {use}
            return "refused"
        case PayloadTooLarge() as refusal:
            assert str(refusal).startswith(f"{use} has ")
            return "too large"
        case RequestParams(image=image, controls=controls):
            read = controls[0].image if controls else image
            assert isinstance(read, InitImage)
            assert len(read.rgb) == read.width * read.height * 3
            assert read.mask is None or len(read.mask) == read.width * read.height
            return "read"
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize("use", COUNTS)
async def test_two_thousand_hostile_files_are_read_or_refused_by_name(use: str) -> None:
    assert sum(COUNTS.values()) >= 2000
    outcomes = Counter[str]()
    for number, file in enumerate(pictures(COUNTS[use], Random(use))):
        outcomes[await outcome(use, file, number // len(KINDS))] += 1
    assert outcomes.total() == COUNTS[use]
    # None of the ways out is missing, so the files are neither all sound nor all noise.
    assert min(outcomes[way] for way in ("read", "refused", "too large")) >= 10, outcomes


async def test_more_transparent_colours_than_a_palette_has_are_refused() -> None:
    random = Random(0)
    files = [odd_png(random) for _ in range(900)]
    lying = [file for file in files if (300).to_bytes(4) + b"tRNS" in file and b"PLTE" in file]
    assert len(lying) > 10
    for use in COUNTS:
        for file in lying:
            assert await outcome(use, file, 0) in {"read", "refused"}
