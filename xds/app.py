"""Assembles a running Gossamer from the source, the xDS server and the admin server; starts and stops them together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from xds.admin.server import AdminServer
from xds.ads.listening import ListenError
from xds.mesh.addresses import HostPort, is_loopback
from xds.mesh.mesh import Batch, Demand
from xds.metrics import Metrics
from xds.sources.consul.client import Consul
from xds.sources.consul.settings import ConsulSettings
from xds.sources.consul.source import ConsulSource
from xds.sources.file.settings import FileSettings
from xds.sources.file.source import FileSource
from xds.sources.source import Source
from xds.workers.grpc_log import GrpcLog
from xds.workers.pool import WorkerPool
from xds.workers.serving import Serving
from xds.workers.xds_settings import XdsSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of ``gossamer serve``."""

    source: ConsulSettings | FileSettings
    """Settings of the Consul or the mesh file to read."""
    serving: XdsSettings = XdsSettings()
    admin: HostPort = HostPort("127.0.0.1", 18001)
    default_allow: bool | None = None
    """Default where no intention matches; ``None`` takes the source's."""
    insecure: bool = False
    """Whether to serve other hosts although nothing authenticates them."""
    drain: float = 10.0
    """Seconds over which streams are ended when the server stops, at most."""
    workers: int = 1
    """Number of processes that serve. With more than one, the main process reads for all and serves nothing."""


class UnprotectedError(Exception):
    """Refusal to serve what anybody who reaches an address could read; the message says what, where, and what to do."""


class Gossamer:
    """Running control plane, for the duration of its ``async with`` block.

    ``settings`` holds the real ports once it is entered.

    Raises:
        SettingsError: Consul's settings can't be used. RefusedError: the mesh file can't be used. StateError: its state
        folder can't be used. ListenError: on entering, an address can't be listened on. UnprotectedError: on entering,
        other hosts reach an address and clients are not authenticated.
    """

    def __init__(self, settings: ServeSettings, grpc_log: GrpcLog | None = None) -> None:
        self.settings = settings
        self._serving: Serving | WorkerPool = (
            Serving(settings.serving, self._demand, grpc_log)
            if settings.workers == 1
            else WorkerPool(settings.serving, self._demand, settings.workers)
        )
        self._source = _source(settings, self._serving.apply, self._serving.metrics)
        self._admin = AdminServer(self._serving, self._source.troubles)
        self._running: asyncio.Task[None] | None = None

    def _demand(self, demand: Demand) -> None:
        self._source.demand(demand)

    async def __aenter__(self) -> Gossamer:
        serving, admin = self.settings.serving, self.settings.admin
        try:
            await self._check_protected()
            listen = HostPort(serving.listen.host, await self._serving.start())
            admin = HostPort(admin.host, await self._admin.start(admin))
        except (ListenError, UnprotectedError):
            await self._stop()
            raise
        self.settings = replace(self.settings, serving=replace(serving, listen=listen), admin=admin)
        self._running = asyncio.create_task(self._run())
        log.info(
            "serving xDS on %s, admin on http://%s, from %s",
            listen, admin, _named(self.settings.source),
        )  # fmt: skip
        if not is_loopback(listen.host) and serving.tls is None:
            log.warning(
                "xDS on %s is plain text and carries private keys: anybody on the network in between can read them",
                listen,
            )
        return self

    async def _check_protected(self) -> None:
        """Refuse to give keys, or the state of the mesh, to any host.

        Raises:
            UnprotectedError: that is so, and was not asked for.
        """
        listen, admin = self.settings.serving.listen, self.settings.admin
        if self.settings.insecure:
            return
        if not is_loopback(admin.host):
            raise UnprotectedError(
                f"--admin {admin}: the admin port has no authentication, so anybody who reaches it sees every"
                " sidecar and what it may call: listen on loopback, or accept that with --insecure"
            )
        if not is_loopback(listen.host) and not await self._source.asks_for_tokens():
            raise UnprotectedError(
                f"--listen {listen}: {_named(self.settings.source)} has no ACLs, so any host that"
                " reaches Gossamer would get any service's private key: turn on Consul's ACLs, listen on loopback, or"
                " accept that with --insecure"
            )

    async def __aexit__(self, *_exception: object) -> None:
        await self._stop()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._source.run())
            tasks.create_task(self._serving.watch())

    async def serve(self, until: asyncio.Event) -> None:
        """Serve until ``until`` is set, then end the streams one after the other.

        Raises:
            BaseExceptionGroup: the source failed unexpectedly. A restart is better than serving a state that no longer
            follows the mesh.
        """
        assert self._running is not None
        stopped = asyncio.create_task(until.wait())
        await asyncio.wait({stopped, self._running}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if self._running.done():
            self._running.result()
        self._admin.stopping = True
        await self._serving.drain(self.settings.drain)

    async def _stop(self) -> None:
        await self._serving.stop()
        await self._admin.stop()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._source.close()


def _source(settings: ServeSettings, sink: Callable[[Batch], None], metrics: Metrics) -> Source:
    if isinstance(settings.source, FileSettings):
        return FileSource(
            settings.source,
            sink,
            tokens_needed=_needs_tokens(settings),
            default_allow=settings.default_allow,
            quotas=settings.serving.mesh_wide.quotas,
        )
    settings.source.ssl_context()
    client = Consul(settings.source, needs_acls=_needs_tokens(settings))
    return ConsulSource(
        client,
        sink,
        default_allow=settings.default_allow,
        on_watches=metrics.watches.set,
        quotas=settings.serving.mesh_wide.quotas,
    )


def _named(source: ConsulSettings | FileSettings) -> str:
    return str(source.mesh) if isinstance(source, FileSettings) else f"Consul at {source.shown_address}"


def _needs_tokens(settings: ServeSettings) -> bool:
    """Return whether others than this host can connect, so that certificates have to be asked for by token."""
    return not (settings.insecure or is_loopback(settings.serving.listen.host))
