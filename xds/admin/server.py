"""The admin HTTP server: ``/ready``, ``/metrics``, ``/v1/sidecars``."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from xds.admin import status
from xds.ads.listening import ListenError
from xds.mesh.addresses import HostPort, is_ip


class Inspected(Protocol):
    """Source of the state that the admin server shows."""

    def missing(self) -> tuple[str, ...]:
        """Return the names of the base facts that have not been read yet."""

    async def sidecars(self) -> list[dict[str, Any]]:
        """Return every connected sidecar, as plain data."""

    async def families(self) -> Iterable[Metric]:
        """Return the metrics."""


class _Collected(Collector):
    """Metrics that have been collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _host_of(host: str) -> str:
    """Return the host of a ``Host`` header, without its port and the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0].lower() or host.lower() if host.count(":") == 1 else host.lower()


class AdminServer:
    """HTTP server of the control plane's state: readiness, metrics and sidecars.

    Args:
        inspected: source of the state.
        troubles: what the source can't read right now.
    """

    def __init__(self, inspected: Inspected, troubles: Callable[[], dict[str, str]]) -> None:
        self._inspected = inspected
        self._troubles = troubles
        self.stopping = False
        """Whether the server is about to end, and so not ready."""
        self._own_names = {"localhost", socket.gethostname().lower()}
        app = web.Application(middlewares=[self._refuse_other_hosts])
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/sidecars", self._sidecars)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, address: HostPort) -> int:
        """Listen. Return the port, which is a free one for port 0.

        Raises:
            ListenError: the address can't be listened on.
        """
        await self._runner.setup()
        self._own_names.add(address.host.lower())
        try:
            await web.TCPSite(self._runner, address.host, address.port, reuse_port=False).start()
        except OSError as error:
            raise ListenError(f"can't listen on {address}: {error.strerror or error}") from error
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    @web.middleware
    async def _refuse_other_hosts(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer only who asks for this server by an address or by its own name.

        A web page whose name is made to resolve to this address (DNS rebinding) would otherwise read the answers in
        the browser of someone who can reach it.
        """
        name = _host_of(request.host)
        if is_ip(name) or name in self._own_names:
            return await handler(request)
        return web.Response(
            status=421,
            text=f"host {name!r} is not this server's; ask for it by its address, or give the name in --admin\n",
        )

    async def _ready(self, _request: web.Request) -> web.Response:
        ready, about = status.readiness(self._inspected.missing(), self._troubles(), stopping=self.stopping)
        return web.json_response(about, status=200 if ready else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(await self._inspected.families()))
        body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _sidecars(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._inspected.sidecars())
