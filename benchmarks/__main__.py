"""Runs the benchmarks, and writes ``benchmarks/results.json`` and ``docs/performance.md``."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import follow
from xds import __version__
from xds.lab import binaries

ROOT = Path(__file__).parents[1]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    envoy = subprocess.run([binaries.envoy(), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "envoy": found[1] if (found := re.search(r"/(\d+\.\d+\.\d+)/", envoy)) else envoy.strip(),
        "gossamer": __version__,
    }


def row(what: str, times: dict[str, float]) -> str:
    """A line of the table."""
    return f"| {what} | {times['n']} | {times['p50_ms']:.1f} ms | {times['p99_ms']:.1f} ms |"


def page(results: dict[str, Any]) -> str:
    """``docs/performance.md``."""
    about, follow_up = results["machine"], results["follow"]
    endpoint, new = follow_up["endpoint_change"], follow_up["new_upstream"]
    cost = follow_up["cost_of_an_endpoint_change"]
    return f"""# Performance

Written by `make bench`, never by hand; the figures as JSON are in `benchmarks/results.json`.

Measured on {about["cores"]} cores of {about["cpu"]}, Linux {about["kernel"]}, Python {about["python"]}, grpcio
{about["grpcio"]}, protobuf {about["protobuf"]}, Envoy {about["envoy"]}, Consul {follow_up["consul"]}, Gossamer
{about["gossamer"]}. Consul, Envoy and Gossamer share these cores.

## Following a change

One sidecar that may call {follow_up["upstreams"]} services of {follow_up["instances"]} instances each. The time runs
from the beginning of the write to Consul's HTTP API until Envoy has acknowledged what came of it, so it holds
Consul's own commit and wake-up, Gossamer's work and Envoy's.

| Change | n | p50 | p99 |
|---|---|---|---|
{row("one instance's weight: two writes to Consul, one endpoint resource", endpoint)}
{row("a new service with a sidecar and a virtual IP: two writes, a cluster and its endpoints", new)}

The names in the catalog are read once a second on average, because each read costs Consul the whole list; a few in a
row after a pause don't wait. Where services are registered all the time, a new one can take that second longer.

## What an endpoint change costs

| | per change |
|---|---|
| Gossamer's CPU, reading Consul included | {cost["gossamer_cpu_us"]:.0f} µs |
| Envoy's CPU | {cost["envoy_cpu_us"]:.0f} µs |
| responses sent to the sidecar | {cost["responses"]:.2f} |
| bytes sent to the sidecar | {cost["bytes"]:.0f} |

Gossamer's memory with this mesh: {follow_up["gossamer_memory_mib"]:.0f} MiB.
"""


def main() -> None:
    """Measure and write."""
    try:
        binaries.check_tools()
        results = {"machine": machine(), "follow": asyncio.run(follow.measure())}
    except binaries.MissingError as error:
        sys.exit(str(error))
    (ROOT / "benchmarks" / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (ROOT / "docs" / "performance.md").write_text(page(results))
    print(page(results))


main()
