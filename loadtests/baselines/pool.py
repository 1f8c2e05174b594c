"""A thread pool of three, each thread with a whole call of the pipeline: `python -m loadtests.baselines.pool PORT`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from loadtests.baselines.pipeline import Pipeline

WORKERS = 3


def app() -> Starlette:
    """The application; its pipeline is loaded when it starts."""
    executor = ThreadPoolExecutor(WORKERS)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # In a thread of the pool: while one request is alone, that thread draws it.
        app.state.pipeline = await asyncio.get_running_loop().run_in_executor(executor, Pipeline)
        yield
        executor.shutdown()

    async def generate(request: Request) -> Response:
        asked = await request.json()
        draw = request.app.state.pipeline.draw
        pictures = await asyncio.get_running_loop().run_in_executor(executor, draw, [asked])
        return JSONResponse({"image_base64": pictures[0]})

    async def ready(_: Request) -> Response:
        return Response()

    routes = [
        Route("/generate", generate, methods=["POST"]),
        Route("/readyz", ready),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


if __name__ == "__main__":
    uvicorn.run(app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
