"""A gateway process put together: the request path, and gRPC beside the HTTP that BentoML serves."""

from __future__ import annotations

import asyncio

from text2image.api.grpc_server import GrpcServer
from text2image.core.folders import private_folder
from text2image.core.hardware import runner_addresses
from text2image.core.lifecycle import Work
from text2image.core.settings import Settings
from text2image.gateway.auth import authenticator_of
from text2image.gateway.cache import PictureCache
from text2image.gateway.cache_backends import DiskBackend
from text2image.gateway.denylist import denylist_of
from text2image.gateway.finishing import Finisher
from text2image.gateway.generate import Gateway
from text2image.gateway.init_images import Limits
from text2image.gateway.provenance import signer_of
from text2image.gateway.quota import Quotas
from text2image.gateway.remote_store import RemoteStore, store_of
from text2image.gateway.runners import Runners
from text2image.gateway.safety import classifier_of
from text2image.gateway.store import Storage
from text2image.gateway.urls import PictureUrls, key_in
from text2image.jobs.drawing import jobs_of
from text2image.jobs.webhooks import Webhooks
from text2image.net.tls import runner_tls_of
from text2image.observe import tracing
from text2image.observe.metrics import GatewayMetrics
from text2image.ops.readiness import announce, block_of


class GatewayServer:
    """Make it in the event loop of the process that serves."""

    def __init__(self, settings: Settings) -> None:
        metrics = GatewayMetrics()
        self._settings = settings
        self._runners = Runners(
            runner_addresses(settings),
            settings.runner_retries,
            metrics,
            runner_tls_of(settings),
        )
        self._shared = _Shared(settings) if settings.redis_url or settings.cache_redis_url else None
        self._quotas = Quotas(self._shared.rate_limits if self._shared else None)
        store = store_of(settings)
        finisher = Finisher(
            metrics,
            told=settings.metadata,
            signer=signer_of(settings),
            classifier=classifier_of(settings),
            checked=settings.checks,
        )
        self.gateway = Gateway(
            self._runners,
            store,
            metrics,
            Work(),
            cache=_cache(settings, self._shared, finisher.mark),
            locks=self._shared.locks if self._shared else None,
            authenticator=authenticator_of(settings, metrics),
            quotas=self._quotas,
            urls=_urls(settings, self._shared, store),
            images=Limits.of(settings),
            finisher=finisher,
            denied=denylist_of(settings),
            log_prompts=settings.log_prompts,
            prompt_loras=settings.prompt_loras,
        )
        self.jobs = jobs_of(settings, self.gateway)
        self.webhooks = Webhooks(settings)
        self.jobs.on_ended(self.webhooks)
        self._grpc = GrpcServer(self.gateway, settings, self.jobs)

    async def start(self, http_host: str, http_port: int) -> None:
        """Connects to the runners, listens for gRPC, and tells when the server is ready and where, HTTP included.

        Raises:
            RuntimeError: the gRPC port is taken.
            PermissionError: somebody else could listen in a runner's place.
        """
        folder = self._settings.socket_of(0).parent
        private_folder(folder)
        self._export = tracing.set_up(self._settings.otlp_endpoint, "text2image-gateway")
        self._runners.start()
        await self._grpc.start()
        await self.jobs.start()
        self._announcing = asyncio.create_task(
            announce(
                self.gateway.statuses(),
                folder,
                lambda: block_of(self._settings, self._runners.model, http_host, http_port),
            )
        )

    async def drain(self) -> None:
        """Refuses new work on every transport and finishes the admitted, as long as the settings allow."""
        settings = self._settings
        await self.jobs.drain()
        await self.gateway.drain(settings.drain_timeout, settings.drain_notice)

    async def stop(self) -> None:
        """Ends all calls and closes all connections."""
        self._announcing.cancel()
        await asyncio.gather(self._announcing, return_exceptions=True)
        await self.jobs.close()
        await self.webhooks.close()
        await self.gateway.close()
        await self._runners.close()
        await self._grpc.stop()
        await self._quotas.close()
        if self._shared:
            await self._shared.close()
        if self._export:
            await self._export.close()


class _Shared:
    """What several gateways share: rate limits where T2I_REDIS_URL is set, pictures and locks on them in any case."""

    def __init__(self, settings: Settings) -> None:
        # Here, since a gateway that shares nothing needs no Redis.
        from text2image.gateway.shared.cache import PICTURE_TIMEOUT, RedisBackend
        from text2image.gateway.shared.locks import DrawingLocks
        from text2image.gateway.shared.rate_limits import RedisStore
        from text2image.gateway.shared.state import SharedState
        from text2image.gateway.shared.urls import SharedKey

        pictures = SharedState(
            settings.cache_redis_url or settings.redis_url or "", PICTURE_TIMEOUT
        )
        self._states = [pictures]
        self.cache = RedisBackend(pictures, settings.cache_ttl)
        self.locks = DrawingLocks(pictures)
        self.hosted = RedisBackend(pictures, settings.url_ttl)
        self.url_key = SharedKey(pictures)
        self.rate_limits = None
        if settings.redis_url:
            counts = SharedState(settings.redis_url)
            self._states.append(counts)
            self.rate_limits = RedisStore(counts)

    async def close(self) -> None:
        for state in self._states:
            await state.close()


def _urls(settings: Settings, shared: _Shared | None, store: Storage | None) -> PictureUrls | None:
    """What gives pictures URLs; None where the settings want none."""
    if not settings.url_ttl:
        return None
    sign = store.signed if isinstance(store, RemoteStore) else None
    folder = settings.cache_root
    backend = (
        shared.hosted
        if shared
        else DiskBackend(folder / "urls", settings.url_bytes, settings.url_ttl)
    )

    async def local_key() -> bytes:
        if settings.url_key:
            return settings.url_key.get_secret_value().encode()
        return await asyncio.to_thread(key_in, folder / "keys")

    key = shared.url_key if shared and not settings.url_key else local_key
    return PictureUrls(backend, key, settings.url_ttl, sign)


def _cache(settings: Settings, shared: _Shared | None, mark: str) -> PictureCache | None:
    """The cache of pictures: in Redis if there is one, else on disk; None where it is switched off."""
    if not settings.cache_bytes:
        return None
    if shared:
        return PictureCache(shared.cache, mark)
    return PictureCache(DiskBackend(settings.picture_cache_dir, settings.cache_bytes), mark)
