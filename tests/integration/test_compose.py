"""docker-compose.yml on a real Docker engine, by the commands of docs/containers.md as they are printed there.

The engine runs in namespaces of its own, from images that are made here (`tests.integration.engine`). Two things differ
from a user's machine, by an override file: the image's base, and that applications dial a server outside the mesh all
the time, which none of them may ever reach past its sidecar.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.engine import BASE, MISSING, Engine
from tests.integration.machine import BIN, ROOT
from tests.integration.test_documentation import blocks
from xds.lab import binaries, compose
from xds.lab.consul import version
from xds.lab.network import temporary_folder
from xds.lab.processes import CommandError, Process, eventually, run_to_end

FILE = ROOT / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
GUIDE = ROOT / "docs" / "containers.md"


def test_the_compose_file_is_that_of_the_generator() -> None:
    assert FILE.read_text() == compose.text(), "run 'python -m xds.lab.compose > docker-compose.yml'"


def test_the_compose_file_is_valid() -> None:
    subprocess.run([BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE], check=True)


def test_only_the_redirecting_container_has_net_admin_and_root() -> None:
    for name, service in SERVICES.items():
        if name == "consul":
            continue
        assert service["cap_drop"] == ["ALL"], name
        redirects = name.endswith(compose.NETWORK_SUFFIX)
        assert service.get("cap_add", []) == (["NET_ADMIN"] if redirects else []), name
        assert (service.get("user") == "0") == redirects, name
    assert _dockerfile("USER")[-1] == "gossamer"


def test_every_image_is_pinned_or_built_here() -> None:
    for name, service in SERVICES.items():
        assert service["image"] == "gossamer" or ":" in service["image"], name
    assert {image.split()[0] for image in _dockerfile("FROM")} == {"${PYTHON_IMAGE}"}
    (image,) = _dockerfile("ARG")
    assert re.fullmatch(r"PYTHON_IMAGE=python:\d+\.\d+-[a-z-]+@sha256:[0-9a-f]{64}", image)


def test_the_image_has_the_packages_that_are_tested_and_takes_no_others() -> None:
    locked = dict(re.findall(r"(?m)^([a-z0-9_.-]+)==(\S+)", (ROOT / "requirements.lock").read_text()))
    tested = dict(re.findall(r"(?m)^([a-z0-9_.-]+)==(\S+)", (ROOT / "constraints.txt").read_text()))
    assert {name: version for name, version in locked.items() if name in tested and tested[name] != version} == {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["envoy"]]
    assert {re.split(r"[<>=]", each)[0] for each in wanted} <= locked.keys()
    assert any("--require-hashes" in line for line in (ROOT / "Dockerfile").read_text().splitlines())


def _dockerfile(instruction: str) -> list[str]:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [line.removeprefix(instruction).strip() for line in lines if line.startswith(f"{instruction} ")]


async def test_without_an_engine_one_line_says_how_to_get_one(tmp_path: Path) -> None:
    path = f"{tmp_path}:/usr/bin:/bin"
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "fetch-docker", tmp_path / "scripts")
    assert await run_to_end(str(script), environment={"PATH": path}) == (
        "fetch-docker: no Docker engine for the tests: run 'make test' as root\n"
    )


needs_engine = pytest.mark.skipif(not BASE.exists(), reason=MISSING)

PYTHON_IMAGE, CONSUL_IMAGE = "gossamer-base:test", SERVICES["consul"]["image"]
GATEWAY = "10.77.0.1"
"""Address of the engine's own network, on the containers' network."""
OUTSIDE_PORT = 9999
DIALER = f"""\
import socket, time
while True:
    try:
        with socket.create_connection(("{GATEWAY}", {OUTSIDE_PORT}), 1) as made:
            made.sendall(b"past the sidecar\\n")
    except OSError:
        pass
    time.sleep(0.01)
"""
OUTSIDE = f"""\
import socketserver, sys
class Count(socketserver.StreamRequestHandler):
    def handle(self):
        sys.stdout.write(self.rfile.readline().decode())
        sys.stdout.flush()
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("", {OUTSIDE_PORT}), Count).serve_forever()
"""
SHOP = [name for name in SERVICES if f"{name}{compose.NETWORK_SUFFIX}" in SERVICES]


def override(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return what differs here from a user's machine."""
    dialing = {}
    for name in SHOP:
        shell, flag, script = SERVICES[name]["command"]
        wait, started, application = script.partition("; exec ")
        dials = shlex.join(["python", "-c", DIALER])
        dialing[name] = {"command": [shell, flag, f"{wait}; {dials} &{started.removeprefix(';')}{application}"]}
    gossamer = {
        "build": {"network": "host", "args": {"PYTHON_IMAGE": PYTHON_IMAGE}},
        "command": [*SERVICES["gossamer"]["command"], "--mesh-destinations-only"],
    }
    return {
        "services": {"gossamer": gossamer, **dialing},
        "configs": {"shop": {"content": json.dumps(configuration)}},
    }


class Shop:
    """The containers of the compose file, on an engine."""

    def __init__(self, engine: Engine, folder: Path, intentions: list[Any]) -> None:
        self.engine = engine
        self._folder = folder
        self._intentions = intentions

    async def run(self, command: str) -> str:
        """Run a line of the guide, as it stands, in the folder of the compose file."""
        return await self.engine.run("sh", "-c", command, folder=self._folder)

    async def write_intentions(self) -> None:
        """Write the intentions to a Consul that does not take them from its configuration (before 1.9)."""
        for entry in self._intentions:
            for source in entry["Sources"]:
                words = ["consul", "intention", "create", f"-{source['Action']}", source["Name"], entry["Name"]]
                await self.run(shlex.join(["docker", "compose", "exec", "-T", "consul", *words]))

    async def inspect(self, name: str, field: str) -> str:
        container = f"{COMPOSE['name']}-{name}-1"
        return (await self.engine.run("docker", "inspect", "--format", f"{{{{{field}}}}}", container)).strip()

    async def crash(self, name: str) -> None:
        """Kill a container's first process, and wait until the engine has started it again."""
        before = await self.inspect(name, ".State.StartedAt")
        await self.run(f"kill -9 {await self.inspect(name, '.State.Pid')}")
        await self.started_again(name, before)

    async def started_again(self, name: str, before: str) -> None:
        """Wait until a container that was started at ``before`` was started again and is healthy."""

        async def state() -> tuple[bool, str]:
            started = await self.inspect(name, ".State.StartedAt")
            return started != before, await self.inspect(name, ".State.Health.Status")

        await eventually(f"{name} to be started again", state, until=(True, "healthy").__eq__, within_s=90, every_s=0.2)

    async def namespace(self, name: str) -> str:
        """Return the network namespace of a container."""
        return await self.run(f"docker compose exec -T {name} readlink /proc/self/ns/net")

    async def answers(self, front: str, within_s: float = 60) -> None:
        """Wait until ``front``, the guide's request, is answered by the whole shop."""

        def complete(found: Any) -> bool:
            api = found.get("calls", {}).get("api", {})
            called = api.get("calls", {}) if isinstance(api, dict) else {}
            return called.get("db") == {"service": "db-1"} and isinstance(called.get("payments"), dict)

        await eventually(
            "the whole shop to answer", lambda: self.ask(front), until=complete, within_s=within_s, every_s=0.2
        )

    async def ask(self, front: str) -> Any:
        try:
            return json.loads(await self.run(front.replace("curl", "curl --silent --show-error")))
        except CommandError:
            return {}


@pytest.fixture(scope="module")
async def shop() -> AsyncIterator[Shop]:
    folder = temporary_folder()
    work = folder / "work"
    configuration = json.loads(COMPOSE["configs"]["shop"]["content"])
    intentions = []
    if await version() < (1, 11):
        for service in configuration["services"]:
            service["connect"]["sidecar_service"]["proxy"] = {"config": {"mode": "transparent"}}
        intentions = configuration.pop("config_entries")["bootstrap"]
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        check_out(work)
        (work / "docker-compose.override.yml").write_text(json.dumps(override(configuration)))
        async with Engine(folder, isolated=False) as builder:
            await _import_images(builder, consul_image(folder / "consul"))
            await builder.run("docker", "compose", "build", folder=work)
        engine = await stack.enter_async_context(Engine(folder, isolated=True))
        yield Shop(engine, work, intentions)


def check_out(folder: Path) -> None:
    """Copy the files of this checkout, those that are not committed yet included."""
    folder.mkdir()
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def consul_image(folder: Path) -> Path:
    """Make the build context of an image of this machine's Consul, with the volume that the official image has."""
    folder.mkdir()
    shutil.copy(binaries.consul(), folder / "consul")
    (folder / "Dockerfile").write_text(
        f'FROM {PYTHON_IMAGE}\nCOPY consul /bin/consul\nVOLUME /consul/data\nENTRYPOINT ["consul"]\n'
    )
    return folder


async def _import_images(engine: Engine, consul: Path) -> None:
    """Make the images that a user's engine pulls: Python's and Consul's."""
    await engine.run("docker", "import", str(BASE), PYTHON_IMAGE)
    await engine.run("docker", "build", "--quiet", "--tag", CONSUL_IMAGE, str(consul))


@needs_engine
@pytest.mark.timeout(600)
async def test_the_guide_and_every_restart(shop: Shop, tmp_path: Path) -> None:
    """One test, since its steps are one story: up, restarts and crashes under traffic, a denial, down."""
    (guide,) = [block for block in blocks(GUIDE) if block.note == "on an engine"]
    up, front, delete_intention, again, down = guide.commands()
    await shop.run(up)
    await shop.write_intentions()
    found = await shop.ask(front)
    assert found["calls"]["api"]["calls"]["db"] == {"service": "db-1"}, "the first request after --wait is answered"

    log = tmp_path / "outside.log"
    server = await Process.start("outside", shop.engine.command("python3", "-c", OUTSIDE), log)
    try:
        await _restarts(shop, front)
        await _direct(shop, log)
        await shop.run(delete_intention)

        async def refused() -> bool:
            return not isinstance((await shop.ask(again))["calls"]["api"], dict)

        await eventually("api to be out of reach", refused)
        # A Consul in memory comes back with another certificate authority, and without what was changed.
        await shop.crash("consul")
        await shop.write_intentions()
        await shop.answers(front, within_s=180)
    finally:
        await server.stop()
    await shop.run(down)
    for what in ("ps --all --quiet", "volume ls --quiet", "network ls --quiet --filter type=custom"):
        assert await shop.run(f"docker {what}") == ""


async def _restarts(shop: Shop, front: str) -> None:
    """Restart and kill each kind of container. Afterwards the application is redirected, and the shop answers."""
    owner = f"api-1{compose.NETWORK_SUFFIX}"
    for name in ("api-1", "api-1-sidecar", owner, "gossamer"):
        await shop.run(f"docker compose restart {name}")
        await shop.answers(front)
    for name in ("api-1", "api-1-sidecar", "gossamer"):
        await shop.crash(name)
        await shop.answers(front)
    before = {name: await shop.inspect(name, ".State.StartedAt") for name in ("api-1", "api-1-sidecar")}
    await shop.crash(owner)
    for name, started in before.items():
        await shop.started_again(name, started)
        assert await shop.namespace(name) == await shop.namespace(owner)
    await shop.answers(front)
    for name in (owner, "gossamer", "api-1"):
        await shop.run(f"docker compose up --wait --force-recreate {name}")
        await shop.run("docker compose up --wait")
        await shop.answers(front)


async def _direct(shop: Shop, log: Path) -> None:
    """Check that no application ever dialed past its sidecar, and that this would have been seen."""
    assert written(log) == ""
    dial = ["timeout", "2", "python", "-c", DIALER]
    network = f"{COMPOSE['name']}_mesh"
    with pytest.raises(CommandError):
        await shop.engine.run("docker", "run", "--rm", "--network", network, "gossamer", *dial)
    assert written(log).startswith("past the sidecar\n")


def written(log: Path) -> str:
    """Return what a log has."""
    return log.read_text()
