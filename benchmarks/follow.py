"""How fast one sidecar follows a change in Consul, and what that costs: real Consul, real Envoy, 100 upstreams.

Everything runs in one network namespace of its own. For the times the control plane runs in this process, so that
the acknowledgement is seen when it arrives; for CPU and bytes it runs as ``gossamer serve``, apart from whoever
writes and measures.
"""

from __future__ import annotations

import asyncio
import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xds.ads.messages import Received
from xds.ads.server import AdsServer
from xds.app import Gossamer, ServeSettings, join_host_port
from xds.control.proxy import Proxy
from xds.control.registry import PlaneRegistry
from xds.envoy.resource import CLUSTER, ENDPOINT, LISTENER
from xds.lab import binaries
from xds.lab.commands import ADMIN_PORT, PUBLIC_PORT, XDS_PORT, gossamer
from xds.lab.consul import LabConsul
from xds.lab.mesh import get
from xds.lab.network import Host, Network
from xds.lab.processes import Process, eventually
from xds.sources.consul.settings import ConsulSettings

UPSTREAMS = 100
INSTANCES = 3
ENDPOINT_CHANGES = 300
NEW_UPSTREAMS = 20
CATALOG_PAUSE_S = 4.0
"""The catalog is read once a second on average, a few times in a row after a pause. Measured is a change after one."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds from the beginning of a write to the acknowledgement."""

    seconds: list[float]

    def summary(self) -> dict[str, float]:
        """Milliseconds."""
        cuts = statistics.quantiles(self.seconds, n=100)
        return {"n": len(self.seconds), "p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


class Observed(PlaneRegistry):
    """Tells when a type is acknowledged."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.acknowledged = {type_url: asyncio.Event() for type_url in (CLUSTER, ENDPOINT, LISTENER)}

    def received(self, peer: Proxy, received: Received, seconds: float | None) -> None:
        super().received(peer, received, seconds)
        if received.acknowledged in self.acknowledged:
            self.acknowledged[received.acknowledged].set()


class Bench:
    """A Consul with 100 services that the sidecar of ``web`` may call."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.consul = LabConsul(host, folder, acl=False)
        self._version = 0

    async def fill(self) -> None:
        """Register everything."""
        await self.consul.start()
        await self._register("web", 0, "240.1.0.1")
        for number in range(UPSTREAMS):
            for instance in range(INSTANCES):
                await self._register(f"service-{number}", instance, f"240.0.{number}.1")

    async def _register(self, service: str, instance: int, virtual_ip: str, weight: int = 1) -> None:
        address = self.host.address if service == "web" else f"10.9.{instance}.1"
        node = f"node-{service}-{instance}"
        mode: dict[str, Any] = {"Mode": "transparent"} if self.consul.transparent else {}
        await self.consul.register(node, address, {"ID": f"{service}-{instance}", "Service": service, "Port": 8080})
        registration = {
            "Kind": "connect-proxy",
            "ID": f"{service}-{instance}-sidecar-proxy",
            "Service": f"{service}-sidecar-proxy",
            "Port": PUBLIC_PORT,
            "TaggedAddresses": {"virtual": {"Address": virtual_ip, "Port": 80}},
            "Weights": {"Passing": weight, "Warning": 1},
            "Proxy": {
                "DestinationServiceName": service,
                "DestinationServiceID": f"{service}-{instance}",
                "LocalServicePort": 8080,
                "Config": {} if mode else {"mode": "transparent"},
                **mode,
            },
        }
        await self.consul.register(node, address, registration)

    async def change_an_endpoint(self) -> None:
        """Give one instance of one service another weight: one write, one endpoint resource."""
        self._version += 1
        service = f"service-{self._version % UPSTREAMS}"
        await self._reweigh(service, self._version)

    async def _reweigh(self, service: str, version: int) -> None:
        number = service.removeprefix("service-")
        await self._register(service, 0, f"240.0.{number}.1", weight=2 + version // UPSTREAMS)

    async def add_an_upstream(self) -> None:
        """Register a service with a sidecar and a virtual IP."""
        self._version += 1
        await self._register(f"new-{self._version}", 0, f"240.2.{self._version // 250}.{self._version % 250 + 1}")

    @asynccontextmanager
    async def envoy(self) -> AsyncIterator[Process]:
        """A real sidecar of web."""
        command = [
            *gossamer("sidecar"), "web-0-sidecar-proxy", "--node-name", "node-web-0", "--consul", self.consul.url,
            "--xds", f"{self.host.address}:{XDS_PORT}", "--admin", "127.0.0.1:19000", "--envoy", binaries.envoy(),
            "--", "--concurrency", "1", "--log-level", "warning",
        ]  # fmt: skip
        process = await Process.start("envoy", command, self.folder / "envoy.log")
        try:
            yield process
        finally:
            await process.stop()

    def settings(self) -> ServeSettings:
        """Of a control plane in this process."""
        return ServeSettings(
            source=ConsulSettings(address=self.consul.url),
            listen=(self.host.address, XDS_PORT),
            admin=(self.host.address, ADMIN_PORT),
        )


async def measure() -> dict[str, Any]:
    """The whole benchmark; its figures."""
    with Network() as network, tempfile.TemporaryDirectory() as name:
        host = network.host("bench")
        _enter(host)
        bench = Bench(host, Path(name))
        try:
            await bench.fill()
            return {
                "upstreams": UPSTREAMS,
                "instances": INSTANCES,
                "consul": ".".join(map(str, bench.consul.release)),
                **await _times(bench),
                **await _costs(bench),
            }
        finally:
            await bench.consul.close()


async def _times(bench: Bench) -> dict[str, Any]:
    serving = Gossamer(bench.settings())
    observed = Observed(serving.plane)
    serving._ads = AdsServer(observed)
    async with serving, bench.envoy():
        await _settled(bench)
        endpoints = await _timed(bench.change_an_endpoint, observed.acknowledged[ENDPOINT], ENDPOINT_CHANGES)
        added = await _timed(bench.add_an_upstream, observed.acknowledged[CLUSTER], NEW_UPSTREAMS, CATALOG_PAUSE_S)
    return {"endpoint_change": endpoints.summary(), "new_upstream": added.summary()}


async def _timed(
    write: Callable[[], Awaitable[None]], acknowledged: asyncio.Event, times: int, pause_s: float = 0.15
) -> Times:
    seconds = []
    for _ in range(times):
        await asyncio.sleep(pause_s)
        acknowledged.clear()
        began = time.perf_counter()
        await write()
        async with asyncio.timeout(60):
            await acknowledged.wait()
        seconds.append(time.perf_counter() - began)
    return Times(seconds)


async def _costs(bench: Bench) -> dict[str, Any]:
    address = bench.host.address
    command = [
        *gossamer("serve"), "--consul", bench.consul.url, "--listen", join_host_port((address, XDS_PORT)),
        "--admin", join_host_port((address, ADMIN_PORT)), "--log-level", "warning",
    ]  # fmt: skip
    server = await Process.start("gossamer", command, bench.folder / "gossamer.log")
    try:
        async with bench.envoy() as envoy:
            await _settled(bench)
            before = (_cpu_seconds(server.pid), _cpu_seconds(envoy.pid), await _metrics(bench))
            for _ in range(ENDPOINT_CHANGES):
                await bench.change_an_endpoint()
                await asyncio.sleep(0.15)
            after = (_cpu_seconds(server.pid), _cpu_seconds(envoy.pid), await _metrics(bench))
            memory = _resident_mib(server.pid)
    finally:
        await server.stop()
    sent = {key: after[2][key] - before[2][key] for key in before[2]}
    return {
        "cost_of_an_endpoint_change": {
            "gossamer_cpu_us": (after[0] - before[0]) / ENDPOINT_CHANGES * 1e6,
            "envoy_cpu_us": (after[1] - before[1]) / ENDPOINT_CHANGES * 1e6,
            "responses": sent["responses"] / ENDPOINT_CHANGES,
            "bytes": sent["bytes"] / ENDPOINT_CHANGES,
        },
        "gossamer_memory_mib": memory,
    }


async def _settled(bench: Bench) -> None:
    async def listening() -> bool:
        _, sidecars = await get(bench.host, ADMIN_PORT, "/v1/sidecars")
        return bool(sidecars) and bool(sidecars[0]["resources"]["listeners"]["acknowledged"])

    await eventually("the sidecar to be served", listening)


async def _metrics(bench: Bench) -> dict[str, float]:
    _, text = await get(bench.host, ADMIN_PORT, "/metrics")
    found = {"responses": 0.0, "bytes": 0.0}
    for line in str(text).splitlines():
        for key, metric in (
            ("responses", "gossamer_responses_sent_total"),
            ("bytes", "gossamer_responses_bytes_total"),
        ):
            if line.startswith(metric):
                found[key] += float(line.rpartition(" ")[2])
    return found


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def _enter(host: Host) -> None:
    """Move this process into a host's network namespace."""
    with Path(host.path).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000) != 0:
            sys.exit(f"can't enter {host.path}: it needs root")
