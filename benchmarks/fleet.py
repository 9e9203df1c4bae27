"""A fleet of sidecars that ask and acknowledge as Envoy does, and note when what arrived. A process of its own.

They ask for clusters, then for listeners and secrets; for the endpoints of every cluster that came with its own
resource; for routes when a listener is about HTTP. They acknowledge every response. What they received they bring along
when they reconnect.
"""

from __future__ import annotations

import asyncio
import base64
import statistics
import time
from collections import Counter
from typing import Any

from benchmarks.child import obey
from benchmarks.http2 import GrpcStream
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER, SCOPED_ROUTE, SECRET, TYPE_NAMES
from xds.wire.envoy.service import discovery_pb2 as discovery

PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
HTTP = b"HttpConnectionManager"
"""Part of a listener's bytes for which Envoy subscribes to routes."""
AT_ONCE = 50
"""Connections that are being opened at any time: more than the backlog of a listening socket are refused."""


class Sidecar:
    """One of them."""

    def __init__(self, fleet: Fleet, proxy_id: str, service: str) -> None:
        self._fleet = fleet
        self._id = proxy_id
        self._service = service
        self.has: dict[str, dict[str, str]] = {}
        self.stream: GrpcStream | None = None
        self._introduced = False
        self._asked_for_rest = self._asked_for_routes = False
        self.received: list[tuple[str, float]] = []
        self.missing: set[str] = set()
        self.last: dict[str, bytes] = {}

    async def connect(self, host: str, port: int) -> None:
        """Connect and ask for clusters."""
        self._introduced = self._asked_for_rest = self._asked_for_routes = False
        loop = asyncio.get_running_loop()
        _, self.stream = await loop.create_connection(lambda: GrpcStream(PATH, self._take, self._ended), host, port)
        self._subscribe(CLUSTER)
        if self.has:
            self._subscribe(ENDPOINT, [*self.has.get(ENDPOINT, ())])
            self._ask_for_rest()

    def _ended(self) -> None:
        self.stream = None

    def _ask_for_rest(self) -> None:
        self._asked_for_rest = True
        self._subscribe(LISTENER)
        if self.has.get(SCOPED_ROUTE):
            self._ask_for_routes()
        self._subscribe(SECRET, ["leaf", "roots"])

    def _ask_for_routes(self) -> None:
        self._asked_for_routes = True
        self._subscribe(SCOPED_ROUTE)

    def _subscribe(self, type_url: str, names: list[str] | None = None) -> None:
        request = discovery.DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=names or (), initial_resource_versions=self.has.get(type_url)
        )
        if not self._introduced:
            self._introduced = True
            request.node.id, request.node.cluster = self._id, self._service
        assert self.stream is not None
        self.stream.send(request.SerializeToString())

    def _take(self, message: bytes) -> None:
        now = time.monotonic()
        response = discovery.DeltaDiscoveryResponse.FromString(message)
        kind = response.type_url
        self.received.append((kind, now))
        self._fleet.took(self, kind, message)
        has = self.has.setdefault(kind, {})
        fresh = []
        for resource in response.resources:
            if kind == CLUSTER and resource.name not in has and resource.name.startswith("vip:"):
                fresh.append(resource.name)
            has[resource.name] = resource.version
        for name in response.removed_resources:
            has.pop(name, None)
        assert self.stream is not None
        self.stream.send(
            discovery.DeltaDiscoveryRequest(type_url=kind, response_nonce=response.nonce).SerializeToString()
        )
        if fresh:
            self.missing.update(fresh)
            self._subscribe_more(ENDPOINT, fresh)
        if kind == ENDPOINT:
            self.missing.difference_update(resource.name for resource in response.resources)
        if kind == CLUSTER and not self._asked_for_rest:
            self._ask_for_rest()
        if kind == LISTENER and HTTP in message and not self._asked_for_routes:
            self._ask_for_routes()

    def _subscribe_more(self, type_url: str, names: list[str]) -> None:
        assert self.stream is not None
        request = discovery.DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names)
        self.stream.send(request.SerializeToString())

    @property
    def settled(self) -> bool:
        """Whether it has all that an Envoy needs to begin."""
        return bool(self.has.get(LISTENER)) and bool(self.has.get(SECRET)) and not self.missing


class Fleet:
    """All of them."""

    def __init__(self) -> None:
        self._sidecars: list[Sidecar] = []
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._progress = asyncio.Event()
        self._kept: dict[str, bytes] = {}

    def took(self, sidecar: Sidecar, kind: str, message: bytes) -> None:
        """Count a message that arrived."""
        self._counts[kind] += 1
        self._bytes[kind] += len(message)
        if sidecar is self._sidecars[0]:
            self._kept[kind] = message
        self._progress.set()

    async def open(self, port: int, sidecars: list[list[str]], host: str = "127.0.0.1") -> None:
        """Connect these: each an ID and a service."""
        for proxy_id, service in sidecars:
            self._sidecars.append(Sidecar(self, proxy_id, service))
        await self._connect(self._sidecars[-len(sidecars) :], host, port)

    async def _connect(self, sidecars: list[Sidecar], host: str, port: int) -> None:
        waiting = iter(sidecars)

        async def some() -> None:
            for sidecar in waiting:
                await sidecar.connect(host, port)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(some())

    async def again(self, port: int, host: str = "127.0.0.1") -> float:
        """Hang up all of them and connect anew, with what they have; when that began."""
        await self.hang_up()
        await self.arm()
        began = time.monotonic()
        await self._connect(self._sidecars, host, port)
        return began

    async def hang_up(self) -> None:
        """End every stream."""
        for sidecar in self._sidecars:
            if sidecar.stream is not None:
                sidecar.stream.close()
        await asyncio.sleep(0.5)

    async def forget(self) -> None:
        """End every stream, and forget the sidecars."""
        await self.hang_up()
        self._sidecars.clear()

    async def settled(self, within_s: float = 120) -> dict[str, Any]:
        """Wait until each has all it needs, and nothing has come for a quarter of a second."""
        async with asyncio.timeout(within_s):
            while not all(sidecar.settled for sidecar in self._sidecars):
                self._progress.clear()
                await self._progress.wait()
            count = -1
            while count != self._counts.total():
                count = self._counts.total()
                await asyncio.sleep(0.25)
        return await self.seen()

    async def arm(self) -> None:
        """Count from here on."""
        self._counts.clear()
        self._bytes.clear()
        self._kept.clear()
        for sidecar in self._sidecars:
            sidecar.received.clear()

    async def seen(self) -> dict[str, Any]:
        """Messages and bytes since `arm`, by type."""
        return {
            "messages": {TYPE_NAMES[kind]: count for kind, count in self._counts.items()},
            "bytes": {TYPE_NAMES[kind]: count for kind, count in self._bytes.items()},
            "last": max((at for sidecar in self._sidecars for _, at in sidecar.received), default=0.0),
        }

    async def each(self, kind: str, times: int = 1, within_s: float = 120) -> dict[str, Any]:
        """Wait until each has received ``times`` messages of a type since `arm`: when the last of them had."""
        type_url = next(url for url, name in TYPE_NAMES.items() if name == kind)
        async with asyncio.timeout(within_s):
            while self._counts[type_url] < times * len(self._sidecars):
                self._progress.clear()
                await self._progress.wait()
        at = [[when for what, when in sidecar.received if what == type_url][times - 1] for sidecar in self._sidecars]
        return {"last": max(at), "median": statistics.median(at), **await self.seen()}

    async def messages(self, count: int, within_s: float = 120) -> dict[str, Any]:
        """Wait until all together have received so many messages since `arm`."""
        async with asyncio.timeout(within_s):
            while self._counts.total() < count:
                self._progress.clear()
                await self._progress.wait()
        return await self.seen()

    async def whole(self, clusters: int, endpoints: int, within_s: float = 300) -> dict[str, Any]:
        """Wait until each has this many clusters named after virtual IPs, and as many endpoints."""

        def complete(sidecar: Sidecar) -> bool:
            found = sum(1 for name in sidecar.has.get(CLUSTER, ()) if name.startswith("vip:"))
            return found == clusters and (endpoints == 0 or len(sidecar.has.get(ENDPOINT, ())) == endpoints)

        async with asyncio.timeout(within_s):
            waiting = self._sidecars
            while waiting := [sidecar for sidecar in waiting if not complete(sidecar)]:
                self._progress.clear()
                await self._progress.wait()
                await asyncio.sleep(0.02)
        return await self.seen()

    async def kept(self) -> dict[str, str]:
        """Return the last message of each type that the first sidecar received since `arm`, in base64."""
        return {TYPE_NAMES[kind]: base64.b64encode(message).decode() for kind, message in self._kept.items()}


async def main() -> None:
    """Obey."""
    fleet = Fleet()
    names = ("open", "again", "hang_up", "forget", "settled", "arm", "seen", "each", "messages", "whole", "kept")
    await obey({name: getattr(fleet, name) for name in names})


if __name__ == "__main__":
    asyncio.run(main())
