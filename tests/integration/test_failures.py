"""Tests of failures that get a clear error and lose nothing: tokens, Consul away, Connect disabled, a restart."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.integration.conftest import Mesh
from tests.integration.helpers import answers
from xds.lab import binaries
from xds.lab.application import dial, who_answers
from xds.lab.commands import ADMIN_PORT, gossamer
from xds.lab.consul import LabConsul
from xds.lab.mesh import Lab, Member, get
from xds.lab.network import Network
from xds.lab.processes import CommandError, Process, eventually, run_to_end

PORT = 80


async def waits_for(mesh: Mesh, member: Member) -> str:
    sidecar = (await mesh.lab.sidecars()).get(member.sidecar_id)
    return str(sidecar["waits_for"]) if sidecar else ""


@pytest.mark.parametrize("rules", ['service "web" { policy = "read" } node_prefix "" { policy = "read" }', None])
async def test_a_token_without_the_right_to_the_certificate_gets_nothing_but_the_reason(
    denying: Mesh, rules: str | None
) -> None:
    """No service:write, and a token that Consul doesn't know."""
    lab = denying.lab
    token = await lab.consul.make_token(rules) if rules else "11111111-1111-1111-1111-111111111111"
    number = "weak" if rules else "unknown"
    member = await lab.member("web", instance=number, start=False)
    await lab.application(f"web-{number}", member.host)
    # Its bootstrap needs a token that may look up the registration; the stream presents the weak one.
    await start_with_stream_token(lab, member, token)
    said = await eventually(
        "the refusal to be told",
        lambda: waits_for(denying, member),
        until=lambda text: "may not act for service" in text,
    )
    assert ("service:write on 'web'" if rules else "ACL not found") in said
    sidecar = (await lab.sidecars())[member.sidecar_id]
    assert not sidecar["served"]
    assert sidecar["resources"]["secrets"]["sent"] == {}
    await answers(denying.web.host, denying.api_ip, PORT, "api-1")
    await lab.deregister(member)


async def test_a_revoked_right_ends_the_stream_and_a_granted_one_starts_it(denying: Mesh) -> None:
    lab = denying.lab
    token = await lab.consul.token_for("web")
    member = await lab.member("web", instance="withdrawn", token=token)
    await lab.served(member)
    await lab.consul.delete_token(token)

    async def shown() -> tuple[bool, str]:
        sidecar = (await lab.sidecars())[member.sidecar_id]
        return sidecar["connected"], sidecar["waits_for"] or ""

    said = await eventually("the stream's end", shown, until=lambda found: not found[0], within_s=120)
    assert "ACL not found" in said[1]
    assert "consul acl token create -service-identity web" in member.processes["sidecar"].tail()
    assert token not in member.processes["sidecar"].tail(1000)
    await answers(member.host, denying.api_ip, PORT, "api-1")
    member.token = lab.consul.token
    await member.processes["sidecar"].stop()
    await lab.start_sidecar(member)
    await lab.served(member)
    await lab.deregister(member)


async def test_a_stopping_server_is_not_ready_ends_its_streams_and_exits(denying: Mesh) -> None:
    lab = denying.lab
    assert lab.gossamer is not None
    async with await dial(denying.web.host, denying.api_ip, PORT) as held:
        await lab.gossamer.stop()
        assert await lab.gossamer.ended() == 0
        assert "stopping" in lab.gossamer.tail()
        assert await held.echo("again") == "again"
        await lab.start_gossamer()
        await lab.served(denying.web, denying.api)


async def start_with_stream_token(lab: Lab, member: Member, token: str) -> None:
    """Run a sidecar whose stream presents ``token``."""
    command = [
        *gossamer("bootstrap"), member.sidecar_id, "--node-name", member.node, "--consul", lab.consul.url,
        "--xds", f"{lab.control.address}:18000", "--admin", f"{member.host.address}:19000", "--format", "json",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONSUL_HTTP_TOKEN", lab.consul.token)
        printed = await run_to_end(*lab.control.command(*command))
    assert lab.consul.token in printed
    file = lab.folder / f"{member.sidecar_id}.json"
    file.write_text(printed.replace(lab.consul.token, token))
    process = await lab.run(member.sidecar_id, member.host, binaries.envoy(), "-c", str(file), "--concurrency", "1")
    member.processes["sidecar"] = process


async def test_connections_and_new_dials_survive_the_control_planes_restart(denying: Mesh) -> None:
    lab = denying.lab
    async with await dial(denying.web.host, denying.api_ip, PORT) as held:
        await lab.stop_gossamer()
        assert await held.echo("no control plane") == "no control plane"
        await answers(denying.web.host, denying.api_ip, PORT, "api-1")
        await lab.start_gossamer()
        await lab.served(denying.web, denying.api)
        assert await held.echo("back again") == "back again"
    resources = (await lab.sidecars())[denying.web.sidecar_id]["resources"]
    # They came back with what they had: nothing was sent again.
    assert resources["clusters"]["responses"] == 0
    assert resources["endpoints"]["responses"] == 0
    await lab.consul.intention("web", "api", "deny")
    await answers(denying.web.host, denying.api_ip, PORT, None)
    await lab.consul.intention("web", "api", "allow")
    await answers(denying.web.host, denying.api_ip, PORT, "api-1")


async def test_a_dead_control_plane_leaves_the_mesh_running(denying: Mesh) -> None:
    lab = denying.lab
    assert lab.gossamer is not None
    await lab.gossamer.stop(signal.SIGKILL)
    await answers(denying.web.host, denying.api_ip, PORT, "api-1")
    await lab.start_gossamer()
    await lab.served(denying.web, denying.api)
    await answers(denying.web.host, denying.api_ip, PORT, "api-1")


async def troubles(lab: Lab) -> tuple[int, dict[str, str]]:
    """Return the status of ``/ready``, and the troubles that it lists."""
    status, about = await get(lab.control, ADMIN_PORT, "/ready")
    return status, dict(about["troubles"])


async def certificates(lab: Lab, member: Member) -> set[str]:
    """Versions of the secrets that a sidecar has acknowledged: its certificate and the roots."""
    sidecar = (await lab.sidecars()).get(member.sidecar_id)
    return set(sidecar["resources"]["secrets"]["acknowledged"].values()) if sidecar else set()


def replaces(old: set[str], held: set[str]) -> bool:
    return len(held) == len(old) and held.isdisjoint(old)


@pytest.fixture
async def fragile() -> AsyncIterator[Mesh]:
    """Start a mesh whose Consul a test may damage."""
    async with Lab() as lab:
        web = await lab.member("web", virtual_ip="240.9.0.10")
        api = await lab.member("api", virtual_ip="240.9.0.11")
        await lab.served(web, api)
        yield Mesh(lab, web, api, "240.9.0.11")


async def test_an_unreachable_consul_leaves_the_mesh_running_and_is_reported(fragile: Mesh) -> None:
    lab = fragile.lab
    assert lab.consul.process is not None
    await lab.consul.process.stop(signal.SIGKILL)

    async def troubles_while_ready() -> dict[str, str]:
        status, found = await troubles(lab)
        assert status == 200
        return found

    found = await eventually("the trouble to be reported", troubles_while_ready, until=lambda t: "intentions" in t)
    assert "can't reach Consul" in found["intentions"]
    await answers(fragile.web.host, fragile.api_ip, PORT, "api-1")
    await fragile.web.processes["sidecar"].stop()
    assert await who_answers(fragile.web.host, fragile.api_ip, PORT) is None
    assert "Traceback" not in (lab.folder / "gossamer.log").read_text()


async def test_a_consul_that_is_replaced_by_an_empty_one_is_followed_again(fragile: Mesh) -> None:
    """A development server forgets everything: new certificate authority, lower indexes, an empty catalog."""
    lab = fragile.lab
    assert lab.consul.process is not None
    members = (fragile.web, fragile.api)
    forgotten = [await certificates(lab, member) for member in members]
    assert all(forgotten)
    await lab.consul.process.stop(signal.SIGKILL)
    await lab.consul.start()
    for member in members:
        await lab.register(member)
    # Until both hold certificates of the new authority, a dial is answered by the old mesh or, in between, refused.
    for member, old in zip(members, forgotten, strict=True):
        await eventually(
            f"certificates of the new authority at {member.sidecar_id}",
            partial(certificates, lab, member),
            until=partial(replaces, old),
        )

    await eventually(
        "every watch to have read the new Consul", partial(troubles, lab), until=lambda found: not found[1]
    )
    await answers(fragile.web.host, fragile.api_ip, PORT, "api-1")
    await lab.consul.intention("web", "api", "deny")
    await answers(fragile.web.host, fragile.api_ip, PORT, None)


async def test_gossamer_starts_without_a_consul_and_is_ready_once_it_comes(tmp_path: Path) -> None:
    with Network() as network:
        host = network.host("alone")
        address = host.address
        command = [*gossamer("serve"), "--consul", f"http://{address}:8500", "--admin", f"{address}:{ADMIN_PORT}"]
        command.append("--insecure")
        process = await Process.start("gossamer", host.command(*command), tmp_path / "log")
        consul = LabConsul(host, tmp_path, acl=False)

        async def status() -> int:
            process.alive()
            code, about = await get(host, ADMIN_PORT, "/ready")
            assert code == 200 or about["not_read_yet"]
            return code

        try:
            await eventually("it to say that it is not ready", status, until=lambda code: code == 503)
            await consul.start()
            await eventually("it to be ready", status, until=lambda code: code == 200)
        finally:
            await process.stop()
            await consul.close()
        assert "Traceback" not in (tmp_path / "log").read_text()


async def test_disabled_connect_is_reported_with_the_text_of_consul(fragile: Mesh) -> None:
    lab = fragile.lab
    assert lab.consul.process is not None
    await lab.consul.process.stop(signal.SIGKILL)
    config = lab.folder / "consul.json"
    settings = json.loads(config.read_text())
    settings["connect"]["enabled"] = False
    config.write_text(json.dumps(settings))
    # Without -dev, which switches Connect on whatever the file says.
    command = [
        binaries.consul(), "agent", "-server", "-bootstrap-expect", "1", "-config-file", str(config),
        "-data-dir", str(lab.folder / "data"),
    ]  # fmt: skip
    (lab.folder / "consul.sock").unlink(missing_ok=True)
    lab.consul.process = await Process.start("consul", lab.control.command(*command), lab.folder / "consul.log")

    _, found = await eventually(
        "Connect's absence to be reported",
        partial(troubles, lab),
        until=lambda found: "Connect must be enabled" in found[1].get("CA roots", ""),
    )
    assert "/v1/connect/ca/roots" in found["CA roots"]
    await answers(fragile.web.host, fragile.api_ip, PORT, None)


async def test_a_sidecar_that_is_not_registered_is_named_with_those_that_are(denying: Mesh) -> None:
    lab, web = denying.lab, denying.web
    command = [*gossamer("bootstrap"), "nobody", "--node-name", web.node, "--consul", lab.consul.url]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONSUL_HTTP_TOKEN", lab.consul.token)
        with pytest.raises(CommandError) as caught:
            await run_to_end(*lab.control.command(*command))
    assert "no sidecar with service ID 'nobody' is registered" in str(caught.value)
    assert web.sidecar_id in str(caught.value)
