"""The progress of a job as server-sent events: each holds the job as it is, so none that was missed is missed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from text2image.api import rest
from text2image.gateway.generate import Gateway
from text2image.jobs.records import Job
from text2image.jobs.views import job_view
from text2image.net.rpc import as_ours

# Seconds after which a word is sent that means nothing, so that nobody on the way takes the connection for dead.
_PING = 15.0
# How often it is looked whether the server ends, which would wait for the stream.
_LOOK = 1.0


async def lines(gateway: Gateway, watching: AsyncGenerator[Job, None]) -> AsyncGenerator[str, None]:
    """`event: job` after each change, until the job has ended or the server does; a failure is `event: error`."""
    silent = 0.0
    coming: asyncio.Task[Job] | None = None
    async with aclosing(watching):
        try:
            while not gateway.work.draining:
                coming = coming or asyncio.ensure_future(anext(watching))
                done, _ = await asyncio.wait([coming], timeout=_LOOK)
                silent = 0.0 if done else silent + _LOOK
                if done:
                    job, coming = coming.result(), None
                    yield f"event: job\ndata: {job_view(job).model_dump_json()}\n\n"
                elif silent >= _PING:
                    silent = 0.0
                    yield ": waiting\n\n"
        except StopAsyncIteration:
            pass
        except Exception as error:
            yield f"event: error\ndata: {json.dumps(rest.error_body(as_ours(error)))}\n\n"
        finally:
            if coming:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
