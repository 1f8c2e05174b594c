"""Files in the place of pictures, masks and control pictures, in each dialect that takes some."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.e2e.hostile.bodies import CHEAP
from tests.hostile_files import SIZE, pictures
from tests.init_images import file_of, picture
from text2image.v1 import image_generation_pb2 as v1

SOUND = file_of(picture(SIZE))
TYPES = ("image/png", "image/jpeg", "image/webp", "image/svg+xml", "text/html", "a", "")
# A drawing that begins from noise, however few its steps.
ASKED = CHEAP | {"strength": 1}


def requests(net: str, count: int, random: Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and content of `count` requests over HTTP; each kind of file goes by each way in turn."""
    for number, file in enumerate(pictures(count, random)):
        yield _WAYS[(number + number // 9) % len(_WAYS)](file, net, random)


def messages(net: str, count: int, random: Random) -> Iterator[bytes]:
    """The same for gRPC."""
    for number, file in enumerate(pictures(count, random)):
        fields: dict[str, Any] = {"prompt": "a cat", **ASKED}
        match number % 3:
            case 0:
                fields |= {"image": file}
            case 1:
                fields |= {"image": SOUND, "mask": file}
            case _:
                del fields["strength"]
                fields |= {"controls": [v1.Control(name=net, image=file)]}
        yield v1.GenerateRequest(**fields).SerializeToString()


def _text(file: bytes, random: Random) -> str:
    """As base64, often with a type that need not be the file's."""
    text = base64.b64encode(file).decode()
    return f"data:{random.choice(TYPES)};base64,{text}" if random.randrange(2) else text


def _image(file: bytes, net: str, random: Random) -> tuple[str, dict[str, Any]]:
    return "/generate", {"json": {"text": "a cat", "image": _text(file, random), **ASKED}}


def _mask(file: bytes, net: str, random: Random) -> tuple[str, dict[str, Any]]:
    path, content = _image(SOUND, net, random)
    return path, {"json": content["json"] | {"mask": _text(file, random)}}


def _control(file: bytes, net: str, random: Random) -> tuple[str, dict[str, Any]]:
    controls = [{"name": net, "image": _text(file, random)}]
    return "/generate", {"json": {"text": "a cat", "controls": controls, **CHEAP}}


def _form(file: bytes, net: str, random: Random) -> tuple[str, dict[str, Any]]:
    use = random.choice(("image", "mask"))
    sent = {"image": SOUND, use: file}
    files = {name: ("../a.png", data, random.choice(TYPES[:5])) for name, data in sent.items()}
    asked = {"prompt": "a cat", "size": "64x64", "steps": "1"}
    return "/v1/images/edits", {"data": asked, "files": files}


def _a1111(file: bytes, net: str, random: Random) -> tuple[str, dict[str, Any]]:
    asked = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64}
    if random.randrange(2):
        pair = {"init_images": [_text(SOUND, random)], "mask": _text(file, random)}
    else:
        pair = {"init_images": [_text(file, random)]}
    return "/sdapi/v1/img2img", {"json": asked | pair}


def _reading(file: bytes, net: str, random: Random) -> tuple[str, dict[str, Any]]:
    path = random.choice(("png-info", "extra-single-image"))
    return f"/sdapi/v1/{path}", {"json": {"image": _text(file, random)}}


_WAYS = (_image, _mask, _control, _form, _a1111, _reading)
