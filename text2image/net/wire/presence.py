"""Numbers that a message may leave out."""

from __future__ import annotations

from text2image.v1 import image_generation_pb2 as pb


def seconds_in(message: pb.Loading | pb.ModelStatus) -> float | None:
    return message.seconds if message.HasField("seconds") else None
