"""One endpoint changes in a real Consul: how long until the last of N sidecars has it, and what that costs the server.

The floor is a server that holds one blocking query on the same Consul and pushes ready bytes to as many streams when
it returns: grpc.aio and Consul, and nothing between them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.child import Child, cpu_seconds
from benchmarks.stage import SERVE_PORT, Stage, children

STREAMS = (1, 100, 1000)
CHANGES = {1: 60, 100: 40, 1000: 20}
PAUSE_S = 0.35
"""Between changes: within Gossamer's pace of ten reads a second of one service."""


async def fill(stage: Stage, streams: int) -> None:
    """Register the caller's sidecars, and what they call."""
    for number in range(streams):
        await register(stage, "web", number, "240.1.0.1")
    for number in range(10):
        service = f"called-{number}"
        await stage.consul.register(f"node-{service}-0", "10.1.0.0", {"ID": service, "Service": service, "Port": 8080})
        await register(stage, service, 0, f"240.0.0.{number + 1}")


async def register(stage: Stage, service: str, number: int, virtual_ip: str, weight: int = 1) -> None:
    """Register a sidecar: one write."""
    mode: dict[str, Any] = {"Mode": "transparent"} if stage.consul.transparent else {}
    sidecar = {
        "Kind": "connect-proxy",
        "ID": f"{service}-{number}-sidecar-proxy",
        "Service": f"{service}-sidecar-proxy",
        "Port": 20000,
        "TaggedAddresses": {"virtual": {"Address": virtual_ip, "Port": 80}},
        "Weights": {"Passing": weight, "Warning": 1},
        "Proxy": {
            "DestinationServiceName": service,
            "LocalServicePort": 8080,
            "Config": {} if mode else {"mode": "transparent"},
            **mode,
        },
    }
    await stage.consul.register(f"node-{service}-{number}", f"10.1.{number >> 8}.{number & 255}", sidecar)


async def measure(stage: Stage) -> dict[str, Any]:
    """Every number of streams."""
    await fill(stage, max(STREAMS))
    return {str(streams): await _one(stage, streams) for streams in STREAMS}


async def _one(stage: Stage, streams: int) -> dict[str, Any]:
    sidecars = [[f"web-{number}-sidecar-proxy", "web"] for number in range(streams)]
    weight = iter(range(2, 1 << 30))

    async def write() -> None:
        await register(stage, "called-3", 0, "240.0.0.4", next(weight))

    async with children("benchmarks.fleet", "benchmarks.bare") as (fleet, bare):
        async with stage.serve("--consul", stage.consul.url) as served:
            await served.ready()
            await fleet.ask("open", port=SERVE_PORT, sidecars=sidecars)
            await fleet.ask("settled")
            await fleet.ask("arm")
            await write()
            await fleet.ask("each", kind="endpoints")
            pushed = (await fleet.ask("kept"))["endpoints"]
            ours = await _timed(fleet, write, served.cpu, streams)
            await fleet.ask("forget")
        port = await bare.ask("listen")
        await fleet.ask("open", port=port, sidecars=sidecars)
        await bare.ask("push", messages=[])
        url = f"{stage.consul.url}/v1/health/connect/called-3"
        await bare.ask("follow", url=url, message=pushed)
        floor = await _timed(fleet, write, lambda: cpu_seconds(bare.pid), streams)
    return {"gossamer": ours, "floor": floor}


async def _timed(
    fleet: Child, write: Callable[[], Awaitable[None]], cpu: Callable[[], float], streams: int
) -> dict[str, Any]:
    seconds, changes = [], CHANGES[streams]
    await asyncio.sleep(1)
    before = cpu()
    for _ in range(changes):
        await fleet.ask("arm")
        began = time.monotonic()
        await write()
        received = await fleet.ask("each", kind="endpoints")
        seconds.append(received["last"] - began)
        await asyncio.sleep(PAUSE_S)
    spent = cpu() - before
    return {
        "seconds": sorted(seconds),
        "cpu_us_per_stream": spent / changes / streams * 1e6,
        "bytes": received["bytes"],
    }
