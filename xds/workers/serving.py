"""A control plane and its xDS server in this process, whether that is the only one or one of several workers."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import Metric

from xds.admin import status
from xds.ads.server import AdsServer
from xds.ads.tls import TlsFiles
from xds.control.metrics import Metrics
from xds.control.plane import ControlPlane
from xds.control.registry import PlaneRegistry
from xds.mesh.mesh import Batch, Demand
from xds.policy.operator import OperatorSettings

GARBAGE = (50_000, 2, 500)
"""How many more objects there have to be before the young are looked through; after how many times the middle-aged are,
and after how many of those the old. Everything stands still meanwhile: 30 ms for the young, a tenth of a second for the
middle-aged, which with a usual ten or twenty would be more and take three times as long.
"""
LATER_S = 0.25
"""How long what is done again and again rests between."""


def prepare_process() -> None:
    """Set this process up for a long life with many connections."""
    # What is kept is kept for long, and refers to itself in few places: looking through it all for what nobody can
    # reach any more took an eighth of the CPU of a change for a thousand sidecars.
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Serving:
    """Serves from here. Facts come by `apply`; what has to be read is told to ``on_demand``."""

    def __init__(
        self, outbound: OperatorSettings, on_demand: Callable[[Demand], None], tls: TlsFiles | None = None
    ) -> None:
        self.metrics = Metrics()
        self.plane = ControlPlane(outbound, on_demand, self.metrics, self._soon, self._later)
        self._ads = AdsServer(PlaneRegistry(self.plane), tls)
        self._failed = asyncio.Event()
        self._failure: Exception | None = None

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

    async def start(self, address: str, *, shared: bool = False) -> int:
        """Listen on ``address``; ``shared`` with other processes. The port.

        Raises:
            ListenError: the address can't be listened on.
        """
        return await self._ads.start(address, shared=shared)

    async def stop(self) -> None:
        """End every stream and stop listening."""
        await self._ads.stop()

    async def watch(self) -> None:
        """Wait until cancelled.

        Raises:
            Exception: following the mesh failed, which is nobody's fault but ours.
        """
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    def apply(self, batch: Batch) -> None:
        """Take a batch of facts."""
        self.plane.apply(batch)
        self._ads.set_ready(not self.missing())

    async def drain(self, seconds: float) -> None:
        """End the streams one after the other, over at most ``seconds``, and stop listening."""
        await self._ads.drain(seconds)

    def missing(self) -> tuple[str, ...]:
        """The base facts that have not been read yet, by name."""
        return self.plane.mesh.missing()

    async def sidecars(self) -> list[dict[str, Any]]:
        """Every connected sidecar, as plain data."""
        return status.sidecars(self.plane)

    async def families(self) -> Iterable[Metric]:
        """What is counted here."""
        return list(self.metrics.registry.collect())
