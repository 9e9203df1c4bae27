"""TLS of the xDS port with the mesh's certificates, beside a real Consul: further control planes of one lab."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import TestAuthority
from tests.integration.conftest import Mesh
from tests.integration.helpers import log_says
from tests.integration.test_traffic import write_leaf
from xds.lab import binaries
from xds.lab.commands import here, serve
from xds.lab.consul import version
from xds.lab.mesh import Lab, Member, get
from xds.lab.processes import Process, eventually, run_to_end

PORTS = itertools.count(18100, 10)


@dataclass
class ControlPlane:
    """A further ``gossamer serve`` on the lab's control host."""

    lab: Lab
    process: Process
    port: int

    async def start_sidecar(self, member: Member) -> Process:
        """Run a member's sidecar, of this control plane."""
        await self.lab.start_sidecar(member, xds_port=self.port)
        return member.processes["sidecar"]

    async def ready(self) -> dict[str, Any]:
        _, found = await get(self.lab.control, self.port + 1, "/ready")
        return dict(found)

    async def sidecars(self) -> dict[str, Any]:
        _, found = await get(self.lab.control, self.port + 1, "/v1/sidecars")
        return {each["id"]: each for each in found}

    async def served(self, member: Member) -> None:
        async def served() -> bool:
            member.processes["sidecar"].alive()
            return bool((await self.sidecars()).get(member.sidecar_id, {}).get("served"))

        await eventually(f"{member.sidecar_id} to be served", served)


@asynccontextmanager
async def control_plane(lab: Lab, *arguments: str, token: str = "") -> AsyncIterator[ControlPlane]:
    port = next(PORTS)
    command = here([*serve(lab.catalog.serve_arguments(), lab.control.address, port), *arguments])
    log = lab.folder / f"gossamer-{port}.log"
    environment = {"CONSUL_HTTP_TOKEN": token or lab.consul.token, "CONSUL_HTTP_ADDR": ""}
    process = await Process.start(f"gossamer-{port}", lab.control.command(*command), log, environment)
    made = ControlPlane(lab, process, port)

    async def answering() -> bool:
        process.alive()
        return bool(await made.ready())

    try:
        await eventually("the control plane to answer", answering)
        yield made
    finally:
        await process.stop()


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    """Make a folder that every user can read."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        await asyncio.to_thread(Path(made).chmod, 0o755)
        yield Path(made)


async def readable(lab: Lab, service: str, folder: Path) -> dict[str, str]:
    """Copy the certificate, key and roots of a service into a folder."""
    files = {kind: Path(path) for kind, path in (await write_leaf(lab, service)).items()}
    return {kind: str(shutil.copy(path, folder / path.name)) for kind, path in files.items()}


async def test_the_port_opens_when_the_token_may_have_the_certificate(denying: Mesh) -> None:
    lab = denying.lab
    reading = """
        service_prefix "" { policy = "read" intentions = "read" }
        node_prefix "" { policy = "read" }
        agent_prefix "" { policy = "read" }
    """
    token = await lab.consul.make_token(reading)
    async with control_plane(lab, token=token) as own:
        await log_says(own.process, "Gossamer's own token needs service:write on 'gossamer'", "--tls-cert")
        about = await own.ready()
        assert not about["ready"]
        assert about["not_read_yet"] == ["certificate of the xDS port"]
        assert "service:write on 'gossamer'" in about["troubles"]["certificate of the xDS port"]
        made = lab.control.socket()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().sock_connect(made, (lab.control.address, own.port))
        made.close()
        (policy,) = (await lab.consul.client.read("/v1/acl/token/self", token=token)).data["Policies"]
        about = (await lab.consul.client.read(f"/v1/acl/policy/{policy['ID']}")).data
        rules = reading + 'service "gossamer" { policy = "write" }'
        await lab.consul.put(f"/v1/acl/policy/{policy['ID']}", about | {"Rules": rules})

        async def ready() -> bool:
            return bool((await own.ready())["ready"])

        await eventually("the control plane to be ready", ready, within_s=90)
        member = await lab.member("web", instance="tls", start=False)
        await own.start_sidecar(member)
        await own.served(member)
        await member.processes["sidecar"].stop()
        await lab.deregister(member)


async def test_a_control_plane_with_the_certificate_of_another_service_gets_no_sidecar(denying: Mesh) -> None:
    lab = denying.lab
    files = await write_leaf(lab, "web")
    async with control_plane(lab, "--tls-cert", files["certificate"], "--tls-key", files["key"]) as evil:
        member = await lab.member("web", instance="betrayed", start=False)
        process = await evil.start_sidecar(member)
        await log_says(process, "/svc/web, not for the service 'gossamer' of")
        await log_says(evil.process, f"TLS with {member.host.address} failed: the client does not accept this server's")
        assert await evil.sidecars() == {}
        await process.stop()
        await lab.deregister(member)


async def test_a_client_certificate_replaces_the_token_of_its_own_service_only(denying: Mesh, folder: Path) -> None:
    lab = denying.lab
    authority = TestAuthority(folder, "files")
    certificate, key = authority.issue("files-server", lab.control.address)
    web, db = await readable(lab, "web", folder), await readable(lab, "db", folder)
    arguments = ("--tls-cert", str(certificate), "--tls-key", str(key), "--tls-client-ca", web["roots"])
    async with control_plane(lab, *arguments) as own:
        weak = await lab.consul.make_token('node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }')
        for files, right in ((web, True), (db, False), (None, False)):
            flags = ["--xds-ca", str(authority.file)]
            if files:
                flags += ["--xds-cert", files["certificate"], "--xds-key", files["key"]]
            instance = f"certified-{right}-{files is None}".lower()
            member = await lab.member("web", instance=instance, token=weak, sidecar=tuple(flags), start=False)
            process = await own.start_sidecar(member)
            if right:
                await own.served(member)
            elif files:
                await log_says(
                    own.process, "its client certificate is for spiffe://", "/svc/db", "may not act for service"
                )
                assert not (await own.sidecars())[member.sidecar_id]["served"]
            else:
                await log_says(process, "requires a client certificate: give --xds-cert and --xds-key")
                await log_says(own.process, f"TLS with {member.host.address} failed: the client has no certificate")
            await process.stop()
            await lab.deregister(member)


async def test_tls_to_a_plain_text_port_is_reported_on_both_sides(denying: Mesh) -> None:
    lab = denying.lab
    async with control_plane(lab, "--plaintext") as own:
        await log_says(own.process, "is plain text and carries private keys")
        member = await lab.member("web", instance="secretive", start=False)
        process = await own.start_sidecar(member)
        await log_says(process, "speaks plain text, not TLS: start it with --tls mesh or --tls-cert")
        words = f"connections of {member.host.address} within a minute had no xDS stream"

        async def said() -> bool:
            return words in own.process.tail(1000)

        await eventually("the server's line", said, within_s=90)
        assert await own.sidecars() == {}
        await process.stop()
        await lab.deregister(member)


async def test_a_bootstrap_of_consuls_with_its_flags_for_tls_is_served(denying: Mesh, folder: Path) -> None:
    lab = denying.lab
    if await version() < (1, 14):
        pytest.skip("consul connect envoy has -grpc-ca-file, and -node-name, from 1.14 on")
    authority = TestAuthority(folder, "moving")
    certificate, key = authority.issue("moving-server", lab.control.address)
    async with control_plane(lab, "--tls-cert", str(certificate), "--tls-key", str(key)) as own:
        member = await lab.member("web", instance="moving", start=False)
        command = [
            binaries.consul(), "connect", "envoy", "-bootstrap", "-proxy-id", member.sidecar_id, "-node-name",
            member.node, "-http-addr", lab.consul.url, "-token", lab.consul.token, "-grpc-addr",
            f"https://{lab.control.address}:{own.port}", "-grpc-ca-file", str(authority.file), "-admin-bind",
            "127.0.0.1:19000",
        ]  # fmt: skip
        printed = await run_to_end(*member.host.command(*command))
        file = lab.folder / "moving.json"
        file.write_text(printed[printed.index("{") :])
        line = member.host.command(binaries.envoy(), "-c", str(file), "--concurrency", "1")
        process = await Process.start("moving-envoy", line, lab.folder / "moving-envoy.log")
        member.processes["sidecar"] = process
        await own.served(member)
        await process.stop()
        await lab.deregister(member)
