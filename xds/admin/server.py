"""The admin HTTP server: ``/ready``, ``/metrics``, ``/v1/sidecars``."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from xds.admin import status
from xds.ads.server import ListenError
from xds.control.plane import ControlPlane


class AdminServer:
    """Serves one control plane's state over HTTP.

    Args:
        plane: whose state.
        troubles: what the source can't read right now.
    """

    def __init__(self, plane: ControlPlane, troubles: Callable[[], dict[str, str]]) -> None:
        self._plane = plane
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
        ready, about = status.readiness(self._plane, self._troubles())
        return web.json_response(about, status=200 if ready else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = generate_latest(self._plane.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _sidecars(self, _request: web.Request) -> web.Response:
        return web.json_response(status.sidecars(self._plane))
