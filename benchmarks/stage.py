"""Prepares what every benchmark needs: a namespace, a real or recorded Consul, Gossamer, the floor."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import Child, cpu_seconds, resident_mib
from benchmarks.playback import record
from xds.lab.commands import gossamer
from xds.lab.consul import LabConsul
from xds.lab.mesh import get
from xds.lab.network import Host, Network
from xds.lab.processes import Process, eventually

SERVE_PORT = 18000
ADMIN_PORT = 18001


class Stage:
    """Opened once for a whole run."""

    def __init__(
        self, folder: Path, network: Network, host: Host, consul: LabConsul, templates: dict[str, Any]
    ) -> None:
        self.network = network
        self.folder = folder
        self.host = host
        self.consul = consul
        self.templates = templates

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Stage]:
        """Make a namespace, which this process enters, with a real Consul in it."""
        with Network() as network, tempfile.TemporaryDirectory() as name:
            host = network.host("bench")
            enter(host)
            consul = LabConsul(host, Path(name), acl=False)
            try:
                await consul.start()
                yield cls(Path(name), network, host, consul, await record(consul))
            finally:
                await consul.close()

    @asynccontextmanager
    async def serve(self, *arguments: str, host: str = "127.0.0.1") -> AsyncIterator[Served]:
        """``gossamer serve`` with these arguments, its source among them, where clusters are sent eagerly."""
        command = [
            *gossamer("serve"), "--clusters", "eager", *arguments, "--listen", f"{host}:{SERVE_PORT}",
            "--admin", f"127.0.0.1:{ADMIN_PORT}", "--log-level", "error",
        ]  # fmt: skip
        log = self.folder / "gossamer.log"
        log.unlink(missing_ok=True)
        process = await Process.start("gossamer", command, log)
        try:
            yield Served(self, process)
        finally:
            await process.stop()
            said = process.tail()
            if said:
                print(said, file=sys.stderr)

    @asynccontextmanager
    async def playback(
        self,
        services: int,
        instances: int,
        intentions: list[list[str]],
        *,
        templates: dict[str, Any] | None = None,
        where: dict[str, Any] | None = None,
    ) -> AsyncIterator[Played]:
        """Consul's answers for such a mesh, made of ``templates`` (the recorded ones), with everybody ``where``."""
        async with Child("benchmarks.playback") as child:
            port = await child.ask("start", templates=templates or self.templates)
            await child.ask("fill", services=services, instances=instances, intentions=intentions, where=where)
            yield Played(child, port)


@dataclass(frozen=True, slots=True)
class Played:
    """A Consul's answers, played back."""

    child: Child
    port: int

    @property
    def url(self) -> str:
        """Where."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Served:
    """A running Gossamer."""

    stage: Stage
    process: Process

    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_seconds(self.process.pid)

    def memory(self) -> float:
        """MiB it holds."""
        return resident_mib(self.process.pid)

    async def ready(self, within_s: float = 120.0) -> None:
        """Wait until it has read what it needs to serve anybody."""

        async def is_ready() -> bool:
            self.process.alive()
            status, _ = await get(self.stage.host, ADMIN_PORT, "/ready", "127.0.0.1")
            return status == 200

        await eventually("gossamer to be ready", is_ready, within_s=within_s)

    async def metrics(self) -> dict[str, float]:
        """Return the metrics by name, without labels."""
        _, text = await get(self.stage.host, ADMIN_PORT, "/metrics", "127.0.0.1")
        found: dict[str, float] = {}
        for line in str(text).splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found


@asynccontextmanager
async def children(*modules: str) -> AsyncIterator[list[Child]]:
    """Start processes of the benchmark."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Child(module)) for module in modules]


def enter(host: Host) -> None:
    """Move this process into a host's network namespace."""
    with Path(host.path).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000) != 0:
            sys.exit(f"can't enter {host.path}: it needs root")
