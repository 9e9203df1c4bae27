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
MOST_IN_YAML = 1000
"""Services in a mesh file that is YAML, whose loader alone takes most of a minute for ten times as many."""


async def measure(stage: Stage, sizes: tuple[int, ...] = (1000, 10000)) -> dict[str, Any]:
    """From Consul's answers, and from a mesh file."""
    found: dict[str, Any] = {}
    for services in sizes:
        async with stage.playback(services, INSTANCES, []) as played:
            floor = float(await run_to_end(sys.executable, "-m", "benchmarks.start", played.url, str(services)))
            ours = await _timed(stage, services, "--consul", played.url)
            ours["requests"] = await played.child.ask("asked")
        found[str(services)] = {"Consul": {**ours, "floor_s": floor}}
        if services <= MOST_IN_YAML:
            found[str(services)]["a mesh file, YAML"] = await _from_file(stage, services, "yaml")
        found[str(services)]["a mesh file, JSON"] = await _from_file(stage, services, "json")
    return found


async def _from_file(stage: Stage, services: int, kind: str) -> dict[str, Any]:
    mesh = stage.folder / f"mesh.{kind}"
    with mesh.open("w") as file:
        if kind == "json":
            json.dump(mesh_file(services), file, indent=1)
        else:
            yaml.dump(mesh_file(services), file, yaml.CSafeDumper)
    load = "json.load(file)" if kind == "json" else "yaml.load(file, yaml.CSafeLoader)"
    code = f"import json, sys, time, yaml; began = time.perf_counter(); file = open(sys.argv[1]); {load}"
    floor = float(await run_to_end(sys.executable, "-c", f"{code}; print(time.perf_counter() - began)", str(mesh)))
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


def mesh_file(services: int) -> dict[str, Any]:
    """Return the content of a mesh file with so many services."""
    found: list[dict[str, Any]] = []
    for number in range(services):
        for instance in range(INSTANCES):
            address, name = f"10.{instance}.{number >> 8}.{number & 255}", f"s-{number}"
            found.append({"id": f"{name}-{instance}", "name": name, "port": 8080, "address": address})
            proxy = {
                "destination_service_name": name,
                "destination_service_id": f"{name}-{instance}",
                "local_service_port": 8080,
                "mode": "transparent",
            }
            sidecar = {
                "kind": "connect-proxy",
                "id": f"{name}-{instance}-sidecar-proxy",
                "name": f"{name}-sidecar-proxy",
                "port": 20000,
                "address": address,
                "tagged_addresses": {"virtual": {"address": virtual_ip(number + 1), "port": 80}},
                "proxy": proxy,
            }
            found.append(sidecar)
    return {"default_intention_policy": "allow", "services": found}


async def read_everything(url: str, services: int) -> None:
    """Measure the floor: one read of each service, and of the names, with only aiohttp and json."""
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
