"""Every example does what it says: mesh files under traffic, bootstraps in Envoy, the units' commands as they stand."""

from __future__ import annotations

import asyncio
import configparser
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import Mesh
from tests.integration.helpers import answers
from tests.integration.machine import BIN, ROOT, Machine
from xds.lab import binaries
from xds.lab.application import ask, dial, who_answers
from xds.lab.commands import ADMIN_PORT, ENVOY_UID, application, gossamer, here
from xds.lab.mesh import Member, get
from xds.lab.network import Host, Network, temporary_folder
from xds.lab.processes import Process, eventually, run_to_end
from xds.sources.file.document import parse
from xds.sources.file.settings import roots_file

EXAMPLES = ROOT / "examples" / "envoy"
MESH_FILES = sorted(path.name for path in EXAMPLES.glob("*.yaml") if "bootstrap" not in path.name)


class Running:
    """An example's mesh: a host for each instance, with the control plane on its own loopback, and one host outside."""

    def __init__(self, file: Path, network: Network, folder: Path, exit_stack: AsyncExitStack) -> None:
        self.file = file
        self.mesh = parse(str(file), file.read_text()).mesh
        self.hosts: dict[str, Host] = {}
        self.outside = network.host("outside")
        self.network = network
        self._folder = folder
        self._exit = exit_stack

    async def process(self, name: str, host: Host, *command: str, uid: int | None = None) -> Process:
        process = await Process.start(name, host.command(*command, uid=uid), self._folder / f"{name}.log")
        self._exit.push_async_callback(process.stop)
        return process

    async def start(self, *, redirect: dict[str, list[str] | None] | None = None, speaks: str = "tcp") -> None:
        for service in self.mesh.services:
            name = service.id or service.name
            self.hosts[name] = self.network.host(name, address=service.address)
        async with asyncio.TaskGroup() as tasks:
            for service in self.mesh.services:
                extra = (redirect or {}).get(service.name, [])
                tasks.create_task(self._start(service.id or service.name, service.port, extra, speaks))

    async def _start(self, name: str, port: int, extra: list[str] | None, speaks: str) -> None:
        host, file = self.hosts[name], str(self.file)
        await self.process(f"{name}-app", host, *here(application(name, port, speaks=speaks)))
        state = str(self._folder / "state")
        await self.process(f"{name}-gossamer", host, *gossamer("serve", "--mesh", file, "--state", state))
        if extra is not None:
            command = gossamer(
                "redirect-traffic", "--netns", host.path, "--mesh", file, "--proxy-id", f"{name}-sidecar-proxy",
                "--proxy-uid", str(ENVOY_UID), *extra,
            )  # fmt: skip
            await run_to_end(*command)
        sidecar = gossamer("sidecar", "--sidecar-for", name, "--mesh", file, "--envoy", binaries.envoy())
        await self.process(f"{name}-sidecar", host, *sidecar, "--", "--concurrency", "1", uid=ENVOY_UID)

        async def served() -> bool:
            _, found = await get(host, ADMIN_PORT, "/v1/sidecars", address="127.0.0.1")
            listeners = found[0]["resources"]["listeners"] if found and found[0]["served"] else {}
            return bool(listeners) and bool(listeners["sent"]) and listeners["acknowledged"] == listeners["sent"]

        await eventually(f"the sidecar of {name} to be served", served)

    async def virtual_ip(self, service: str) -> str:
        given = json.loads((self._folder / "state" / "virtual-ips.json").read_text())
        return str(given["by_service"][service])


@asynccontextmanager
async def example(name: str) -> AsyncIterator[Running]:
    folder = temporary_folder()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = stack.enter_context(Network())
        file = folder / name
        shutil.copy(EXAMPLES / name, file)
        yield Running(file, network, folder, stack)


def test_every_mesh_file_has_a_test_and_a_line_in_the_readme() -> None:
    readme = (EXAMPLES / "README.md").read_text()
    source = Path(__file__).read_text()
    for name in MESH_FILES:
        assert f"({name})" in readme
        assert f'example("{name}")' in source


@pytest.mark.parametrize("name", MESH_FILES)
def test_the_schema_accepts_every_mesh_file(name: str) -> None:
    schema = str(ROOT / "docs" / "mesh.schema.json")
    subprocess.run([BIN / "check-jsonschema", "--schemafile", schema, EXAMPLES / name], check=True)
    assert (EXAMPLES / name).read_text().startswith("# yaml-language-server: $schema=../../docs/mesh.schema.json\n")


async def test_default_deny() -> None:
    async with example("default-deny.yaml") as mesh:
        await mesh.start()
        api, db = await mesh.virtual_ip("api"), await mesh.virtual_ip("db")
        await answers(mesh.hosts["web"], api, 80, "api")
        await answers(mesh.hosts["web"], db, 80, None)
        await answers(mesh.hosts["api"], db, 80, "db")
        await answers(mesh.hosts["db"], api, 80, None)
        assert await who_answers(mesh.outside, "10.77.0.13", 5432, say="no certificate") is None


async def test_default_allow() -> None:
    async with example("default-allow.yaml") as mesh:
        await mesh.start()
        api, db = await mesh.virtual_ip("api"), await mesh.virtual_ip("db")
        await answers(mesh.hosts["web"], api, 80, "api")
        await answers(mesh.hosts["web"], db, 80, None)
        await answers(mesh.hosts["api"], db, 80, "db")
        await answers(mesh.hosts["db"], api, 80, "api")


async def test_an_explicit_upstream() -> None:
    async with example("explicit-upstream.yaml") as mesh:
        await mesh.start(redirect={"web": None})
        await answers(mesh.hosts["web"], "127.0.0.1", 9191, "api")
        await answers(mesh.hosts["api"], await mesh.virtual_ip("web"), 80, None)


async def test_headless() -> None:
    async with example("headless.yaml") as mesh:
        await mesh.start()
        web = mesh.hosts["web"]
        for _ in range(3):
            await answers(web, "10.77.0.12", 5432, "db-0")
            await answers(web, "10.77.0.13", 5432, "db-1")
        await eventually(
            "the virtual IP to lead to both", lambda: _either(web, mesh), until=lambda seen: len(seen) == 2
        )
        # The same address without the mesh's certificate leads nowhere.
        assert await who_answers(mesh.outside, "10.77.0.12", 5432, say="no certificate") is None
        text = mesh.file.read_text().replace("Action: allow", "Action: deny")
        mesh.file.write_text(text)

        async def seen() -> str | None:
            # Without a cluster of the mesh it goes out as it is, to a sidecar that wants a certificate.
            return await who_answers(web, "10.77.0.12", 5432, say="no certificate")

        await eventually("db-0 to be out of reach", seen, until=lambda name: name is None)


async def _either(web: Host, mesh: Running) -> set[str | None]:
    address = await mesh.virtual_ip("db")
    return {await who_answers(web, address, 80) for _ in range(8)}


async def test_an_exposed_health_check() -> None:
    async with example("exposed-health-check.yaml") as mesh:
        await mesh.start(speaks="http")
        assert (await ask(mesh.hosts["web"], f"http://{await mesh.virtual_ip('api')}/"))["service"] == "api"
        api = mesh.hosts["api"]
        outside = Host(mesh.outside.namespace, "outside", api.address)  # dials api's address
        for path, wanted in (("/health", 200), ("/health?full=1", 200), ("/", 404), ("/healthy", 404)):
            status, _ = await get(outside, 21500, path)
            assert status == wanted, path
        assert await who_answers(mesh.outside, api.address, 8080, say="no certificate") is None


async def test_excluded_ports() -> None:
    async with example("excluded-ports.yaml") as mesh:
        printed = re.search(r"#   gossamer redirect-traffic .*\\\n#(.*)\n", mesh.file.read_text())
        assert printed is not None
        await mesh.start(redirect={"api": shlex.split(printed[1])})
        api = mesh.hosts["api"]
        await mesh.process("exporter", api, *here(application("exporter", 9100, address="0.0.0.0")))
        await mesh.process("resolver", mesh.outside, *here(application("resolver", 53, address="0.0.0.0")))
        await answers(mesh.outside, api.address, 9100, "exporter")
        assert await who_answers(mesh.outside, api.address, 8080, say="no certificate") is None
        await answers(api, mesh.outside.address, 53, "resolver")
        await answers(mesh.hosts["web"], await mesh.virtual_ip("api"), 80, "api")


async def test_tokens() -> None:
    async with example("tokens.yaml") as mesh:
        control, folder = mesh.outside, mesh.file.parent
        state = ["--state", str(folder / "state")]
        serve = ["serve", "--mesh", str(mesh.file), *state, "--listen", f"{control.address}:18000"]
        await mesh.process("gossamer", control, *gossamer(*serve))
        # web's host has a file with its own service only, and api's a file with a token that is not api's.
        whole = yaml.safe_load(mesh.file.read_text())
        web, api = whole["services"]
        (folder / "web.yaml").write_text(yaml.safe_dump({**whole, "services": [web]}))
        (folder / "api.yaml").write_text(yaml.safe_dump({**whole, "services": [{**api, "token": web["token"]}]}))
        roots = roots_file(mesh.file)

        async def published() -> bool:
            return roots.exists()

        await eventually("the roots beside the mesh file", published)
        for name in ("web", "api"):
            shutil.copy(roots, roots_file(folder / f"{name}.yaml"))

        async def waiting() -> dict[str, str | None]:
            _, found = await get(control, ADMIN_PORT, "/v1/sidecars", address="127.0.0.1")
            return {each["service"]: each["waits_for"] if not each["served"] else None for each in found}

        for name in ("web", "api"):
            host = mesh.hosts[name] = mesh.network.host(name, address=whole["services"][name == "api"]["address"])
            command = gossamer(
                "sidecar", "--sidecar-for", name, "--mesh", str(folder / f"{name}.yaml"), "--xds",
                f"{control.address}:18000", "--envoy", binaries.envoy(), "--", "--concurrency", "1",
            )  # fmt: skip
            await mesh.process(f"{name}-sidecar", host, *command, uid=ENVOY_UID)
        seen = await eventually(
            "both sidecars to connect", waiting, until=lambda seen: seen.get("web", "") is None and "api" in seen
        )
        assert "another token than the one" in str(seen["api"])
        assert web["token"] not in str(seen["api"])


def _readme_commands() -> list[tuple[str, str]]:
    rows = r"^\| \[(bootstrap[^\]]*)\].*?`(gossamer bootstrap [^`]*)`"
    found = re.findall(rows, (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in found} == {path.name for path in EXAMPLES.glob("bootstrap*")}
    return [(name, command) for name, command in found]


@pytest.mark.parametrize(("name", "command"), _readme_commands())
async def test_a_bootstrap_is_as_printed_and_envoy_accepts_it(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES)
    printed = await run_to_end(*gossamer(*shlex.split(command)[1:]))
    assert printed == (EXAMPLES / name).read_text(), f"print it again: cd examples/envoy; {command} > {name}"
    output = await run_to_end(binaries.envoy(), "--mode", "validate", "-c", str(EXAMPLES / name))
    assert "configuration" in output
    assert "OK" in output


def _unit(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLES / "systemd" / name)
    return unit


def _environment(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


async def test_the_units_redirect_and_run_the_sidecar(denying: Mesh) -> None:
    """On a machine of its own, beside a real Consul: the commands of the units, as they stand."""
    lab = denying.lab
    member: Member = await lab.member("vm", instance="1", virtual_ip="240.0.3.1", start=False)
    folder = temporary_folder()
    try:
        machine = Machine(member.host, folder, {"envoy": binaries.envoy()})
        with (machine.etc / "passwd").open("a") as passwd:
            passwd.write("envoy:x:5678:5678::/:/bin/false\nconsul:x:5679:5679::/:/bin/false\n")
        redirect, sidecar = _unit("gossamer-redirect.service"), _unit("gossamer-sidecar.service")
        assert sidecar["Unit"]["Requires"] == "gossamer-redirect.service"
        assert "ExecStop" not in redirect["Service"], "a unit that stops must not open the host"
        if shutil.which("systemd-analyze"):
            units = [str(EXAMPLES / "systemd" / f"gossamer-{name}.service") for name in ("redirect", "sidecar")]
            complaints = await run_to_end(*machine.command("systemd-analyze", "verify", *units))
            assert "gossamer" not in complaints
        await run_to_end(*machine.command(*shlex.split(redirect["Service"]["ExecStart"])))
        await lab.application("vm-1", member.host)
        environment = _environment(EXAMPLES / "systemd" / "sidecar.env")
        environment |= {"XDS_ADDRESS": f"{lab.control.address}:18000", "CONSUL_HTTP_ADDR": lab.consul.url}
        environment |= {"SERVICE_ID": "vm-1", "CONSUL_HTTP_TOKEN": member.token}
        command = sidecar["Service"]["ExecStart"]
        for name, value in environment.items():
            command = command.replace(f"${{{name}}}", value)
        who = f"--reuid={sidecar['Service']['User']}"
        user = ["setpriv", who, "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        # The lab registers in the catalog, not with an agent; on a VM the agent knows its own services.
        line = machine.command(*user, *shlex.split(command), "--node-name", member.node)
        process = await Process.start("vm-sidecar", line, lab.folder / "vm-sidecar.log", environment)
        member.processes["sidecar"] = process
        try:
            await lab.served(member)
            await lab.consul.intention("web", "vm", "allow")
            await lab.consul.intention("vm", "api", "allow")
            await answers(denying.web.host, "240.0.3.1", 80, "vm-1")
            await answers(member.host, denying.api_ip, 80, "api-1")
            await run_to_end(*machine.command("gossamer", "redirect-traffic", "--undo"))
            with pytest.raises(OSError, match="Connect call failed"):  # nothing leads to a virtual IP any more
                await dial(member.host, denying.api_ip, 80)
        finally:
            await process.stop()
            await lab.consul.intention("vm", "api", None)
            await lab.deregister(member)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
