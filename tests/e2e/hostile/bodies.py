"""Requests that are wrong in what they say: JSON from the server's own schema, protobuf from its descriptors.

Most are refused by what they hold. The few that are right are made cheap, so that thousands can be sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import hypothesis
import schemathesis
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis import GenerationMode

# What a lone step of the smallest picture takes.
CHEAP = {"steps": 1, "n": 1, "width": 64, "height": 64}
# What no field of any dialect takes.
DEAR = {"steps": 151, "n": 11, "seed": -2, "guidance_scale": 31.0}
# One in so many is left as it is; the others get a field that is refused whatever else they hold.
LEFT_ALONE = 40
# From which mutants are made, since schemathesis takes its time.
MUTANTS = 20

_TEXTS = st.text(max_size=60) | st.text(st.characters(categories=["Cc", "Cf", "Co", "Mn", "Zl"]))
_VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: _TEXTS,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=60),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
}


def examples(strategy: st.SearchStrategy[Any], count: int, seed: int) -> list[Any]:
    """What hypothesis draws from a strategy, the same for a seed."""
    drawn: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def draw(value: Any) -> None:
        drawn.append(value)

    draw()
    return drawn[:count]


def json_bodies(
    schema: dict[str, Any], path: str, count: int, random: Random
) -> Iterator[tuple[str, bytes]]:
    """Path and body of `count` requests that fit the schema, do not, or are mutants of such."""
    operation = schemathesis.openapi.from_dict(schema)[path]["POST"]
    per_mode = count // (2 * MUTANTS) + 1
    seeds = [
        case.body
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        for case in examples(
            operation.as_strategy(generation_mode=mode), per_mode, random.getrandbits(32)
        )
    ]
    for number in range(count):
        body = _as_bytes(seeds[number % len(seeds)])
        yield path, _bounded_json(body if number < len(seeds) else mutant(body, random), random)


def _as_bytes(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    try:
        return json.dumps(body).encode()
    except TypeError:
        return b""  # schemathesis' way to leave the body out


def _bounded_json(body: bytes, random: Random) -> bytes:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(fields, dict):
        return body
    cheap = {name: value for name, value in CHEAP.items() if _is_drawable(fields.get(name))}
    if "prompt" in fields:  # in this dialect one field stands for both sides
        cheap = {"size": "64x64", "steps": 1, "n": 1}
    fields |= cheap | _refused(random)
    return json.dumps(fields).encode()


def messages(kind: type[Message], count: int, random: Random) -> Iterator[bytes]:
    """`count` messages of a kind as bytes, and mutants of them."""
    drawn = examples(_fields_of(kind.DESCRIPTOR), count // 4 + 1, random.getrandbits(32))
    seeds = [kind(**values).SerializeToString() for values in drawn]
    for number in range(count):
        seed = seeds[number % len(seeds)]
        yield _bounded_message(kind, seed if number < len(seeds) else mutant(seed, random), random)


def _fields_of(message: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    fields = {
        field.name: st.lists(_values_of(field), max_size=3)
        if field.is_repeated
        else _values_of(field)
        for field in message.fields
    }
    return st.fixed_dictionaries({}, optional=fields)


def _values_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    return _fields_of(field.message_type) if field.message_type else _VALUES[field.type]


def _bounded_message(kind: type[Message], data: bytes, random: Random) -> bytes:
    try:
        message = kind.FromString(data)
    except DecodeError:
        return data
    known = kind.DESCRIPTOR.fields_by_name
    cheap = {
        name: value
        for name, value in CHEAP.items()
        if name in known
        and _is_drawable(getattr(message, name) if message.HasField(name) else None)
    }
    refused = {name: value for name, value in _refused(random).items() if name in known}
    for name, value in (cheap | refused).items():
        setattr(message, name, value)
    return message.SerializeToString()


def _refused(random: Random) -> dict[str, Any]:
    if not random.randrange(LEFT_ALONE):
        return {}
    name = random.choice(list(DEAR))
    return {name: DEAR[name]}


def _is_drawable(value: Any) -> bool:
    """Whether a number may be taken as it is, and so would cost time."""
    return value is None or (isinstance(value, int | float) and 1 <= value <= 4096)


def mutant(data: bytes, random: Random) -> bytes:
    """The bytes with a few of them changed, lost, doubled or brought from elsewhere."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        place, span = random.randint(0, len(changed)), random.randint(1, 8)
        brought = [b"", random.randbytes(span), changed[place : place + span] * 2]
        end = place + random.choice([0, span])
        changed[place:end] = random.choice([*brought, random.choice(_MORSELS)])
    return bytes(changed)


def varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


_MORSELS = [
    b"\x00",
    b"\xff\xfe",
    b'"',
    b"\\ud800",
    b"\\u0000",
    b"null",
    b"-0",
    b"1e999",
    b"NaN",
    b"9" * 400,
    b"[" * 2000,
    b'{"a":' * 500,
    b"\x80" * 12,
    b"\xff\xff\xff\xff\x0f",
    "\u202e".encode(),
]
