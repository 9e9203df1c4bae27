"""The admin HTTP server: ``/ready``, ``/metrics``, ``/v1/sidecars``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from xds.admin import status
from xds.transport.listening import ListenError


class Inspected(Protocol):
    """Whose state is told."""

    def missing(self) -> tuple[str, ...]:
        """The base facts that have not been read yet, by name."""

    async def sidecars(self) -> list[dict[str, Any]]:
        """Every connected sidecar, as plain data."""

    async def families(self) -> Iterable[Metric]:
        """What is counted."""


class _Collected(Collector):
    """Metrics that have been collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class AdminServer:
    """Serves the state of what serves over HTTP.

    Args:
        inspected: whose state.
        troubles: what the source can't read right now.
    """

    def __init__(self, inspected: Inspected, troubles: Callable[[], dict[str, str]]) -> None:
        self._inspected = inspected
        self._troubles = troubles
        app = web.Application()
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/sidecars", self._sidecars)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which is a free one for port 0.

        Raises:
            ListenError: the address can't be listened on.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, reuse_port=False).start()
        except OSError as error:
            raise ListenError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _ready(self, _request: web.Request) -> web.Response:
        ready, about = status.readiness(self._inspected.missing(), self._troubles())
        return web.json_response(about, status=200 if ready else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(await self._inspected.families()))
        body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _sidecars(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._inspected.sidecars())
