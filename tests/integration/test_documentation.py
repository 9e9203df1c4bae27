"""The documentation is true: it builds without a warning, and what it tells people to type does what it says.

Every block of commands says, in a comment that readers don't see, on which host the tests run it, as it is printed, or
why they don't. A block that is a file, by a first line like ``# mesh.yaml``, is written there.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.machine import BIN, ROOT, Machine
from xds.lab import binaries
from xds.lab.application import RefusedError, ask
from xds.lab.commands import application, here
from xds.lab.consul import version
from xds.lab.mesh import get
from xds.lab.network import Host, Network, temporary_folder
from xds.lab.processes import Process, eventually, run_to_end

PAGES = [ROOT / "README.md", ROOT / "examples" / "envoy" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<note>[^>]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)
GOES_ON = re.compile(r"gossamer (serve|sidecar)\b")
ADDRESSES = {"web": "10.77.0.11", "api": "10.77.0.12"}


@dataclass(frozen=True)
class Block:
    """Something fenced in a page."""

    language: str
    text: str
    note: str

    @property
    def hosts(self) -> list[str]:
        """On which hosts its commands are run."""
        return self.note.removeprefix("on ").split(", ") if self.note.startswith("on ") else []

    @property
    def file(self) -> str:
        """The file that it is, if it is one."""
        named = re.match(r"# ([\w.-]+\.(?:yaml|hcl))\n", self.text)
        return named[1] if named else ""

    def commands(self) -> list[str]:
        """Its commands, continued lines joined."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text())
    return [Block(match["language"], match["text"], match["note"] or "") for match in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_commands_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("sh", "bash", "console"):
            assert block.hosts or block.note.startswith("not run: "), block.text
            assert not block.hosts or page.name in RUN, f"{page.name} has no test"


async def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    sphinx = [str(BIN / "sphinx-build"), "-q", "-W", "--keep-going", str(ROOT / "docs"), str(tmp_path)]
    await run_to_end(*sphinx)
    commands = (tmp_path / "commands.html").read_text()
    for words in ("gossamer redirect-traffic", "--exclude-outbound-cidr", "gossamer ca rotate", "gossamer mesh export"):
        assert words in commands
    assert "local_bind_port" in (tmp_path / "mesh-file-fields.html").read_text()


class Hosts:
    """web's and api's hosts, each a machine of its own with its application, and one folder that both work in."""

    def __init__(self, network: Network, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.machines: dict[str, Machine] = {}
        self.work = folder / "work"
        self.work.mkdir(mode=0o755)
        folder.chmod(0o755)
        for name, address in ADDRESSES.items():
            own = folder / name
            own.mkdir()
            programs = {"consul": binaries.consul(), "envoy": binaries.envoy(), "python3": sys.executable}
            self.machines[name] = Machine(network.host(name, address=address), own, programs)

    async def start(self, name: str, command: list[str]) -> Process:
        process = await Process.start(name, command, self.folder / f"{name}.log")
        self._stack.push_async_callback(process.stop)
        return process

    async def type(self, page: str, adapted: Callable[[str], str] = lambda text: text) -> None:
        """Do what a page says."""
        for block in blocks(ROOT / "docs" / page):
            if block.file:
                (self.work / block.file).write_text(adapted(block.text))
            for host in block.hosts:
                for command in block.commands():
                    await self._run(host, command.replace("web", host) if len(block.hosts) > 1 else command)

    async def _run(self, host: str, command: str) -> None:
        goes_on = GOES_ON.search(command)
        line = self.machines[host].command("sh", "-c", f"exec {command}" if goes_on else command, cwd=self.work)
        if goes_on:
            process = await self.start(f"{host}-{goes_on[1]}", line)
            await eventually(f"{command!r} to be up", lambda: self._is_up(host, goes_on[1], process), within_s=150)
        elif command.startswith("curl") or "--verify" in command:
            # Whoever types is slower than the mesh, and than an agent that connects again; the tests are not.
            await eventually(f"{command!r} to succeed", lambda: self._succeeds(line), within_s=150)
        else:
            await run_to_end(*line)

    async def _is_up(self, host: str, what: str, process: Process) -> bool:
        process.alive()
        where = "http://127.0.0.1:18001/ready"
        if what == "sidecar":
            where = "--unix-socket /run/gossamer/*.sock http://envoy/ready"
        return await self._succeeds(self.machines[host].command("sh", "-c", f"curl -sf {where}"))

    async def _succeeds(self, command: list[str]) -> bool:
        process = await Process.start("attempt", command, self.folder / "attempts.log")
        return await process.ended() == 0

    @property
    def web(self) -> Host:
        return self.machines["web"].host


@asynccontextmanager
async def hosts() -> AsyncIterator[tuple[Hosts, Network]]:
    folder = temporary_folder()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = stack.enter_context(Network())
        made = Hosts(network, folder, stack)
        for name, machine in made.machines.items():
            await made.start(f"{name}-app", machine.host.command(*here(application(name, speaks="http"))))
        yield made, network


@pytest.mark.timeout(500)
async def test_the_start_and_mesh_file_pages_work() -> None:
    async with hosts() as (made, _):
        await made.type("start.md")
        assert (await ask(made.web, "http://240.0.0.2/"))["service"] == "api"
        await made.type("mesh-file.md")
        assert (await ask(made.web, "http://240.0.0.2/"))["service"] == "api"
        mesh = made.work / "mesh.yaml"
        mesh.write_text(mesh.read_text().replace("allow", "deny"))

        async def refused() -> bool:
            try:
                await ask(made.web, "http://240.0.0.2/")
            except RefusedError:
                return True
            return False

        await eventually("api to be out of reach", refused)


@pytest.mark.timeout(500)
async def test_on_vms_and_moving() -> None:
    """With a Consul server on a host of its own and an agent on each other one."""
    old = await version() < (1, 11)

    def adapted(text: str) -> str:
        return (
            text.replace('proxy { mode = "transparent" }', 'proxy { config { mode = "transparent" } }') if old else text
        )

    async with hosts() as (made, network):
        server = network.host("server")
        await _agent(made, "server", server.command, server.address, "-server", "-bootstrap-expect=1")
        for name, machine in made.machines.items():
            with (machine.etc / "passwd").open("a") as passwd:
                passwd.write("consul:x:5679:5679::/:/bin/false\n")
            user = ["setpriv", "--reuid=consul", "--clear-groups"]
            await _agent(
                made,
                name,
                lambda *command, machine=machine, user=user: machine.command(*user, *command),
                ADDRESSES[name],
                f"-retry-join={server.address}",
            )
        (made.work / "entry.json").write_text('{"Kind": "service-defaults", "Name": "api", "Protocol": "tcp"}')
        await run_to_end(*server.command(binaries.consul(), "config", "write", str(made.work / "entry.json")))
        await made.type("vms.md", adapted)
        _, ready = await get(made.web, 18001, "/ready", address="127.0.0.1")
        assert ready == {"ready": True, "not_read_yet": [], "troubles": {}}
        await made.type("moving.md")
        assert "api-sidecar-proxy" in (made.work / "mesh.yaml").read_text()


async def _agent(made: Hosts, name: str, on: Callable[..., list[str]], address: str, *more: str) -> None:
    data = made.folder / f"consul-{name}"
    data.mkdir()
    data.chmod(0o777)
    command = [
        binaries.consul(), "agent", f"-node={name}", f"-bind={address}", f"-data-dir={data}",
        "-hcl=connect { enabled = true } ports { grpc = -1 serf_wan = -1 } disable_update_check = true", *more,
    ]  # fmt: skip
    process = await made.start(f"consul-{name}", on(*command))
    leader: Any = on("curl", "-sf", "http://127.0.0.1:8500/v1/catalog/services")

    async def usable() -> bool:
        process.alive()
        return await made._succeeds(leader)

    await eventually(f"the Consul agent on {name} to know a leader", usable, within_s=150)


RUN = {"containers.md", "start.md", "mesh-file.md", "vms.md", "moving.md"}
"""The pages that a test types."""
