"""docker-compose.yml: true to its schema and to what the lab runs, and run as far as that goes without an engine.

A container's network is a namespace, its command runs there as it stands, under its user and with its capabilities,
with its entries in ``/etc/hosts``; images, health checks' timing and the engine's own network are what is not tried.
"""

from __future__ import annotations

import json
import os
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

from tests.integration.machine import BIN, ROOT, Machine
from xds.lab import binaries, compose, shop
from xds.lab.application import RefusedError, ask
from xds.lab.commands import ADMIN_PORT, here
from xds.lab.consul import version
from xds.lab.mesh import get
from xds.lab.network import Host, Network, temporary_folder
from xds.lab.processes import Process, eventually, run_to_end

FILE = ROOT / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_the_compose_file_is_that_of_the_generator() -> None:
    assert FILE.read_text() == compose.text(), "run 'python -m xds.lab.compose > docker-compose.yml'"


def test_the_compose_file_is_valid() -> None:
    subprocess.run([BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE], check=True)


def test_only_the_redirecting_container_has_net_admin_and_root() -> None:
    for name, service in SERVICES.items():
        if name == "consul":
            continue
        assert service["cap_drop"] == ["ALL"], name
        redirects = name.endswith("-redirect")
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


class Containers:
    """The compose file's containers as processes."""

    def __init__(self, network: Network, folder: Path, stack: AsyncExitStack) -> None:
        self._network = network
        self._folder = folder
        self._stack = stack
        self.machines: dict[str, Machine] = {}

    def machine(self, name: str) -> Machine:
        """Return where a container runs: in its own network, or that of the one it shares."""
        owner = SERVICES[name].get("network_mode", f"service:{name}").removeprefix("service:")
        if owner not in self.machines:
            host = self._network.host(owner, address=SERVICES[owner]["networks"]["mesh"]["ipv4_address"])
            folder = self._folder / owner
            folder.mkdir()
            machine = self.machines[owner] = Machine(host, folder)
            with (machine.etc / "hosts").open("a") as hosts:
                for called, address in SERVICES[owner].get("extra_hosts", {}).items():
                    hosts.write(f"{address} {called}\n")
        return self.machines[owner]

    def command(self, name: str) -> list[str]:
        service = SERVICES[name]
        user, capabilities = service.get("user", "5677"), service.get("cap_add", [])
        kept = [f"+{capability.lower()}" for capability in capabilities]
        limits = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
        limits += [f"--bounding-set={','.join(['-all', *kept])}", f"--inh-caps={','.join(['-all', *kept])}"]
        return self.machine(name).command(*limits, *here(service["command"]))

    async def start(self, name: str) -> None:
        for mount in SERVICES[name].get("tmpfs", ()):
            path, uid, mode = re.fullmatch(r"/run/([a-z]+):uid=(\d+),mode=(\d+)", mount).groups()  # type: ignore[union-attr]
            folder = self.machine(name).run / path
            folder.mkdir()
            folder.chmod(int(mode, 8))
            os.chown(folder, int(uid), -1)
        log = self._folder / f"{name}.log"
        process = await Process.start(name, self.command(name), log)
        self._stack.push_async_callback(process.stop)

    async def healthy(self, name: str, test: list[str]) -> None:
        async def passes() -> bool:
            process = await Process.start(f"{name}-health", self.machine(name).command(*here(test)), Path("/dev/null"))
            return await process.ended() == 0

        await eventually(f"{name} to be healthy", passes)


@pytest.fixture(scope="module")
async def containers() -> AsyncIterator[Containers]:
    folder = temporary_folder()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = stack.enter_context(Network())
        made = Containers(network, folder, stack)
        await _start_consul(made, folder, stack)
        await made.start("gossamer")
        health = _dockerfile("HEALTHCHECK")[0]
        await made.healthy("gossamer", json.loads(health[health.index("[") :]))
        for name in SERVICES:
            if "network_mode" not in SERVICES[name] and name not in ("consul", "gossamer"):
                await made.start(name)
        for name in SERVICES:
            if name.endswith("-redirect"):
                await run_to_end(*made.command(name))
        sidecars = [name for name in SERVICES if name.endswith("-sidecar")]
        for name in sidecars:
            # The image has its Envoy; here it may be another, and two cores are shared by all.
            command = SERVICES[name]["command"]
            SERVICES[name]["command"] = [*command[:3], "--envoy", binaries.envoy(), *command[3:]]
            await made.start(name)
        for name in sidecars:
            await made.healthy(name, SERVICES[name]["healthcheck"]["test"][1:])
        yield made


async def _start_consul(made: Containers, folder: Path, stack: AsyncExitStack) -> None:
    """Consul as its container runs it. One before 1.11 is told the same in the words that it knows."""
    configuration = json.loads(COMPOSE["configs"]["shop"]["content"])
    old = await version() < (1, 11)
    intentions = []
    if old:
        for service in configuration["services"]:
            sidecar = service["connect"]["sidecar_service"]
            sidecar["proxy"] = {"config": {"mode": "transparent"}}
            # Its own check would dial the sidecar on Consul's loopback (Consul issue 14433).
            sidecar["checks"] = [{"name": "alias", "alias_service": service["id"]}]
        intentions = configuration.pop("config_entries")["bootstrap"]
    file = folder / "shop.json"
    file.write_text(json.dumps(configuration))
    (mount,) = SERVICES["consul"]["configs"]
    arguments = [part.replace(mount["target"], str(file)) for part in SERVICES["consul"]["command"]]
    host = made.machine("consul").host
    process = await Process.start("consul", host.command(binaries.consul(), *arguments), folder / "consul.log")
    stack.push_async_callback(process.stop)
    test = shlex.join(SERVICES["consul"]["healthcheck"]["test"][1:]).replace("consul", binaries.consul(), 1)

    async def usable() -> bool:
        health = await Process.start("health", host.command(*shlex.split(test)), Path("/dev/null"))
        return await health.ended() == 0

    await eventually("consul to be healthy", usable)
    for entry in intentions:
        for source in entry["Sources"]:
            action = f"-{source['Action']}"
            command = [binaries.consul(), "intention", "create", action, source["Name"], entry["Name"]]
            await run_to_end(*host.command(*command))


FRONT_DOOR = f"http://{SERVICES['web-1']['networks']['mesh']['ipv4_address']}:8080/"


async def test_one_request_goes_through_the_whole_shop(containers: Containers) -> None:
    outside = containers.machine("consul").host

    async def answer() -> Any:
        try:
            return await ask(outside, FRONT_DOOR)
        except RefusedError:
            return {}

    def complete(found: Any) -> bool:
        api = found.get("calls", {}).get("api", {})
        called = api.get("calls", {}) if isinstance(api, dict) else {}
        return isinstance(called.get("db"), dict) and isinstance(called.get("payments"), dict)

    # Consul checks a sidecar every ten seconds, and begins with critical.
    found = await eventually("the whole shop to answer", answer, until=complete, within_s=60)
    assert found["calls"]["api"]["calls"]["db"] == {"service": "db-1"}


async def test_a_call_without_an_intention_is_refused(containers: Containers) -> None:
    web = containers.machine("web-1").host
    with pytest.raises(RefusedError):
        await ask(web, f"http://{shop.VIRTUAL_IPS['payments']}/")
    outside: Host = containers.machine("consul").host
    address = SERVICES["api-1"]["networks"]["mesh"]["ipv4_address"]
    with pytest.raises(RefusedError):
        await ask(outside, f"http://{address}:8080/")


async def test_a_deleted_intention_takes_effect(containers: Containers) -> None:
    consul = containers.machine("consul").host
    await run_to_end(*consul.command(binaries.consul(), "intention", "delete", "web", "api"))

    async def refused() -> bool:
        return not isinstance((await ask(consul, FRONT_DOOR))["calls"]["api"], dict)

    await eventually("api to be out of reach", refused)
    _, ready = await get(containers.machine("gossamer").host, ADMIN_PORT, "/ready")
    assert ready["ready"]
