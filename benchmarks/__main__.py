"""Runs the benchmarks, several times each, and writes ``benchmarks/results.json`` and ``docs/performance.md``.

``python -m benchmarks NAME…`` runs those alone, and leaves the other results as they were.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import envoys, fanout, scale, start, tenants
from benchmarks.page import page
from benchmarks.stage import Stage
from xds import __version__
from xds.lab import binaries

RUNS = 3
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
BENCHMARKS: dict[str, Callable[[Stage], Awaitable[Any]]] = {
    "fanout": fanout.measure,
    "sizes": scale.sizes,
    "appears": scale.appears,
    "flip": scale.flip,
    "start": start.measure,
    "reconnect": scale.reconnect,
    "idle": scale.idle,
    "rotation": scale.rotation,
    "envoys": envoys.measure,
    "tenants": tenants.measure,
}


def machine(consul: tuple[int, int]) -> dict[str, Any]:
    """Return a description of the machine of the measurements."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    envoy = subprocess.run([binaries.envoy(), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "envoy": found[1] if (found := re.search(r"/(\d+\.\d+\.\d+)/", envoy)) else envoy.strip(),
        "consul": ".".join(map(str, consul)),
        "gossamer": __version__,
    }


async def run(names: list[str]) -> dict[str, Any]:
    """Run these benchmarks; all results, those of earlier runs among them."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = {name: found for name, found in results.items() if name in (*BENCHMARKS, "machines")}
    fresh: dict[str, list[Any]] = {name: [] for name in names}
    for run in range(1, RUNS + 1):
        async with Stage.open() as stage:
            here = machine(stage.consul.release)
            for name in names:
                print(f"{name}, run {run} of {RUNS} ...", flush=True)
                fresh[name].append(await BENCHMARKS[name](stage))
                results[name] = fresh[name]
                results.setdefault("machines", {})[name] = here
                RESULTS.write_text(json.dumps(results, separators=(",", ":")) + "\n")
    return results


def main() -> None:
    """Measure and write."""
    names = sys.argv[1:] or [*BENCHMARKS]
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    try:
        binaries.check_tools()
        results = asyncio.run(run(names))
    except binaries.MissingError as error:
        sys.exit(str(error))
    text = page(results)
    (ROOT / "docs" / "performance.md").write_text(text)
    print(text)


main()
