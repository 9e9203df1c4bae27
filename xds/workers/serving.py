"""Runs a control plane and its xDS server in this process, which is the only one or one of several workers."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from prometheus_client import Metric

from xds.admin import status
from xds.ads.handshakes import Event
from xds.ads.listening import ListenError, Reservation, reserve
from xds.ads.server import AdsServer
from xds.ads.tls import FileCertificate, MeshCertificate, MeshTls, TlsError
from xds.control.ads_adapter import AdsAdapter
from xds.control.plane import ControlPlane
from xds.mesh.facts import CONTROL_PLANE_CERTIFICATE, CONTROL_PLANE_LEAF, Leaf
from xds.mesh.mesh import Batch, Demand, Key, Kind
from xds.metrics import Metrics
from xds.workers.grpc_log import GrpcLog
from xds.workers.xds_settings import XdsSettings

log = logging.getLogger(__name__)

GARBAGE = (50_000, 2, 500)
"""Garbage-collection thresholds for generations 0, 1 and 2.

A collection pauses the event loop: 30 ms for generation 0, 100 ms for generation 1. With the usual second threshold of
ten or twenty, a collection of generation 1 takes three times as long.
"""
OWN_CERTIFICATE = Key(Kind.LEAF, CONTROL_PLANE_LEAF)
LATER_S = 0.25
"""Minimum interval between throttled runs, in seconds."""


def prepare_process() -> None:
    """Set this process up for a long life with many connections."""
    # Most objects live long and few are in cycles: with the usual thresholds, garbage collection took an eighth of the
    # CPU time of a change for a thousand sidecars.
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Serving:
    """Server in this process. Facts come by `apply`; what has to be read is reported to ``on_demand``.

    Where TLS is the mesh's, the leaf certificate of the control plane is a fact like others, and is demanded like
    others. The server listens as soon as it has the certificate.
    """

    def __init__(
        self,
        settings: XdsSettings,
        on_demand: Callable[[Demand], None],
        grpc_log: GrpcLog | None = None,
    ) -> None:
        self.metrics = Metrics()
        self._listen = settings.listen
        self._tls = settings.tls
        self._grpc_log = grpc_log or GrpcLog()
        self._on_demand = on_demand
        self.plane = ControlPlane(settings.mesh_wide, self._demand, self.metrics, self._soon, self._later)
        self._ads = AdsServer(AdsAdapter(self.plane))
        self._own_certificate = MeshCertificate()
        self._certified = asyncio.Event()
        self._reservation: Reservation | None = None
        self._failed = asyncio.Event()
        self._failure: Exception | None = None

    def _demand(self, demand: Demand) -> None:
        if isinstance(self._tls, MeshTls):
            demand = replace(demand, leaves=demand.leaves | {CONTROL_PLANE_LEAF})
        self._on_demand(demand)

    def _soon(self, then: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(self._do, then)

    def _later(self, then: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(LATER_S, self._do, then)

    def _do(self, then: Callable[[], None]) -> None:
        try:
            then()
        except Exception as error:
            self._failure = error
            self._failed.set()
            self._certified.set()

    async def start(self, *, shared: bool = False) -> int:
        """Listen on the address of the settings; ``shared`` with other processes.

        Returns:
            The port. Where TLS is the mesh's, it is reserved, and listened at when there is a certificate.

        Raises:
            ListenError: the address can't be listened on, or not with this certificate.
        """
        if isinstance(self._tls, MeshTls):
            if not shared:
                self._reservation = await reserve(self._listen)
                self._listen = self._reservation.address
            return self._listen.port
        try:
            certificate = None if self._tls is None else await asyncio.to_thread(FileCertificate, self._tls)
        except TlsError as error:
            raise ListenError(f"can't serve TLS on {self._listen}: {error}") from None
        return await self._ads.start(self._listen, shared=shared, certificate=certificate)

    async def stop(self) -> None:
        """End every stream and stop listening."""
        await self._ads.stop()
        if self._reservation is not None:
            self._reservation.close()

    async def watch(self) -> None:
        """Start listening when the certificate is there, if TLS is the mesh's. Then wait until cancelled.

        Raises:
            Exception: following the mesh failed, because of an error in Gossamer.
        """
        with self._grpc_log.followed(self._take_event):
            if isinstance(self._tls, MeshTls):
                self._demand(Demand())
                await self._certified.wait()
                if self._failure is None:
                    await self._ads.start(self._listen, shared=True, certificate=self._own_certificate)
                    log.info("xDS on %s has the mesh's certificate for the service 'gossamer'", self._listen)
            await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    def apply(self, batch: Batch) -> None:
        """Take a batch of facts."""
        self.plane.apply(batch)
        leaf = batch.get(OWN_CERTIFICATE)
        if isinstance(leaf, Leaf):
            self._use_certificate(leaf)
        self._ads.set_ready(not self.missing())

    def _use_certificate(self, leaf: Leaf) -> None:
        try:
            self._own_certificate.use(leaf)
            self._certified.set()
        except TlsError as error:
            log.error("the certificate in use stays: %s", error)  # noqa: TRY400 - of the authority that made it

    async def drain(self, seconds: float) -> None:
        """End the streams one after the other, over at most ``seconds``, and stop listening."""
        await self._ads.drain(seconds)

    def missing(self) -> tuple[str, ...]:
        """Return the names of the base facts that have not been read yet."""
        missing = self.plane.mesh.missing()
        waits = isinstance(self._tls, MeshTls) and not self._certified.is_set()
        return (*missing, CONTROL_PLANE_CERTIFICATE) if waits else missing

    def _take_event(self, event: Event) -> None:
        self._ads.handshakes.take(event, asyncio.get_running_loop().time())

    async def sidecars(self) -> list[dict[str, Any]]:
        """Return every connected sidecar, as plain data."""
        return status.sidecars(self.plane)

    async def families(self) -> Iterable[Metric]:
        """Return the metrics."""
        return list(self.metrics.registry.collect())
