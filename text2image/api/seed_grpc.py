"""The first gRPC contract, `Text2ImageService.GenerateImage`: one answer, with errors in band in `status_code`."""

from __future__ import annotations

import base64

from text2image.api import load
from text2image.api.v1_grpc import credentials_of, timeout_of, trace
from text2image.core import validation
from text2image.core.errors import InvalidRequest
from text2image.core.messages import Picture, RequestParams
from text2image.core.settings import Settings
from text2image.gateway.auth import Caller
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Drawing, Gateway
from text2image.net import text2image_pb2 as pb
from text2image.net import wire
from text2image.net.rpc import Context, Handler, Malformed, as_ours, checked

TRANSPORT = "grpc"
SERVICE = pb.DESCRIPTOR.services_by_name["Text2ImageService"]
# What our fields are called in this contract, where it is not the same.
_NAMES = {"prompt": "text"}


class Text2ImageService:
    """The servicer."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    @property
    def methods(self) -> dict[str, Handler]:
        return {"GenerateImage": self.generate_image}

    async def generate_image(
        self, request: pb.ImageRequest | Malformed, context: Context
    ) -> pb.ImageResponse:
        await trace(context)
        try:
            with self._gateway.metrics.request(TRANSPORT):
                caller = self._gateway.authenticate(credentials_of(context))
                load.add_trailers(context, self._gateway)
                message = checked(request)
                drawing = await self._gateway.draw(self._asked(caller, message, context))
                load.add_trailers(context, self._gateway)
                return _response(drawing, with_images=message.HasField("n"))
        except Exception as error:
            return _refusal(error)

    def _asked(self, caller: Caller, message: pb.ImageRequest, context: Context) -> RequestContext:
        validation.check_context(message.text, message.context)
        return RequestContext(
            caller=caller,
            params=RequestParams(
                prompt=validation.compose_prompt(message.text, message.context),
                **wire.optional_fields(message),
            ),
            title=f"{message.context} {message.text}",
            timeout=timeout_of(context, self._settings),
        )


def _response(drawing: Drawing, with_images: bool) -> pb.ImageResponse:
    first = drawing.pictures[0]
    return pb.ImageResponse(
        status_code=200,
        message=drawing.message,
        image_base64=_base64(first),
        image_path=first.path,
        seed=first.seed,
        cached=drawing.cached,
        images=[
            pb.GeneratedPicture(
                image_base64=_base64(picture), image_path=picture.path, seed=picture.seed
            )
            for picture in drawing.pictures
            if with_images
        ],
    )


def _refusal(error: Exception) -> pb.ImageResponse:
    ours = as_ours(error)
    if isinstance(ours, InvalidRequest):
        ours = ours.renamed(_NAMES)
    return pb.ImageResponse(
        status_code=ours.http_status, message=ours.message, retry_after=ours.retry_after
    )


def _base64(picture: Picture) -> str:
    return base64.b64encode(picture.png).decode()
