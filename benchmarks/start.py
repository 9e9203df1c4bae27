"""A cold start: from nothing to the first sidecar served, with all that it may call read.

The floor reads and decodes the same answers and does nothing with them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
import yaml

from benchmarks.playback import virtual_ip
from benchmarks.stage import SERVE_PORT, Stage, children
from xds.lab.processes import run_to_end

INSTANCES = 10
LARGEST_FILE = 1000
"""Services in a mesh file. The loader of YAML alone takes most of a minute for ten times as many."""


async def measure(stage: Stage, sizes: tuple[int, ...] = (1000, 10000)) -> dict[str, Any]:
    """From Consul's answers, and from a mesh file."""
    found: dict[str, Any] = {}
    for services in sizes:
        async with stage.playback(services, INSTANCES, []) as played:
            floor = float(await run_to_end(sys.executable, "-m", "benchmarks.start", played.url, str(services)))
            ours = await _timed(stage, services, "--consul", played.url)
            ours["requests"] = await played.child.ask("asked")
        found[str(services)] = {"Consul": {**ours, "floor_s": floor}}
        if services <= LARGEST_FILE:
            found[str(services)]["a mesh file"] = await _from_file(stage, services)
    return found


async def _from_file(stage: Stage, services: int) -> dict[str, Any]:
    mesh = stage.folder / "mesh.yaml"
    mesh.write_text(mesh_file(services))
    began = time.perf_counter()
    yaml.load(mesh.read_text(), yaml.CSafeLoader)
    floor = time.perf_counter() - began
    return {**await _timed(stage, services, "--mesh", str(mesh)), "floor_s": floor}


async def _timed(stage: Stage, services: int, *source: str) -> dict[str, Any]:
    began = time.monotonic()
    async with children("benchmarks.fleet") as (fleet,), stage.serve(*source) as served:
        await served.ready(within_s=300)
        ready = time.monotonic()
        await fleet.ask("open", port=SERVE_PORT, sidecars=[["s-0-0-sidecar-proxy", "s-0"]])
        seen = await fleet.ask("whole", clusters=services - 1, endpoints=services - 1)
        return {
            "ready_s": ready - began,
            "served_s": seen["last"] - began,
            "cpu_s": served.cpu(),
            "memory_mib": served.memory(),
        }


def mesh_file(services: int) -> str:
    """A mesh file of so many services."""
    lines = ["default_intention_policy: allow", "services:"]
    for number in range(services):
        for instance in range(INSTANCES):
            address = f"10.{instance}.{number >> 8}.{number & 255}"
            lines.append(f"- {{id: s-{number}-{instance}, name: s-{number}, port: 8080, address: {address}}}")
            proxy = f"{{destination_service_name: s-{number}, destination_service_id: s-{number}-{instance},"
            proxy += " local_service_port: 8080, mode: transparent}"
            tagged = f"{{virtual: {{address: {virtual_ip(number + 1)}, port: 80}}}}"
            lines.append(
                f"- {{kind: connect-proxy, id: s-{number}-{instance}-sidecar-proxy, name: s-{number}-sidecar-proxy,"
                f" port: 20000, address: {address}, tagged_addresses: {tagged}, proxy: {proxy}}}"
            )
    return "\n".join(lines) + "\n"


async def read_everything(url: str, services: int) -> None:
    """The floor: one read of each service, and of the names, with nothing but aiohttp and json."""
    reading = asyncio.Semaphore(16)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def read(path: str) -> None:
            async with reading, session.get(f"{url}{path}") as response:
                json.loads(await response.read())

        await read("/v1/catalog/services")
        async with asyncio.TaskGroup() as tasks:
            for number in range(services):
                tasks.create_task(read(f"/v1/health/connect/s-{number}"))


def main() -> None:
    """Print how long the floor takes."""
    began = time.perf_counter()
    asyncio.run(read_everything(sys.argv[1], int(sys.argv[2])))
    print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
