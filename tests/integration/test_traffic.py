"""Tests of who reaches whom, as intentions, health and the catalog change on a running mesh."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator

import pytest

from tests.integration.conftest import Mesh
from tests.integration.helpers import answers
from xds.lab.application import dial, who_answers
from xds.lab.commands import APPLICATION_PORT, ENVOY_ADMIN_PORT, PUBLIC_PORT
from xds.lab.mesh import Lab, Member, get
from xds.lab.network import Host
from xds.lab.processes import eventually

PORT = 80


async def test_an_allowed_dial_of_the_virtual_ip_works_on_any_port(denying: Mesh) -> None:
    for port in (PORT, 443, 9999):
        async with await dial(denying.web.host, denying.api_ip, port) as connection:
            assert connection.greeting == "api-1"
            assert await connection.echo("hello") == "hello"


async def test_no_upstream_is_configured_anywhere(denying: Mesh) -> None:
    assert "Upstreams" not in denying.web.registered["Proxy"]
    sidecars = await denying.lab.sidecars()
    clusters = sidecars[denying.web.sidecar_id]["resources"]["clusters"]["acknowledged"]
    assert f"vip:{denying.api_ip}" in clusters


async def test_with_default_deny_a_call_without_an_intention_is_refused(denying: Mesh) -> None:
    await answers(denying.api.host, "240.9.0.10", PORT, None)


async def test_an_intention_added_changed_and_removed_takes_effect_on_the_running_mesh(denying: Mesh) -> None:
    lab, api, web_ip = denying.lab, denying.api, "240.9.0.10"
    await answers(api.host, web_ip, PORT, None)
    await lab.consul.intention("api", "web", "allow")
    await answers(api.host, web_ip, PORT, "web-1")
    await lab.consul.intention("api", "web", "deny")
    await answers(api.host, web_ip, PORT, None)
    await lab.consul.intention("api", "web", "allow")
    await answers(api.host, web_ip, PORT, "web-1")
    await lab.consul.intention("api", "web", None)
    await answers(api.host, web_ip, PORT, None)


async def test_the_destination_enforces_intentions_by_itself(denying: Mesh) -> None:
    """Dial the public listener with a certificate of the mesh, not through a sidecar.

    The application speaks first, and a client that may not call it must not hear a word of it.
    """
    lab = denying.lab
    insider = lab.host("insider")

    async def let_in(service: str) -> str | None:
        return await dial_with_leaf(lab, insider, service, denying.api.host.address)

    assert await let_in("web") == "api-1"
    assert await let_in("db") is None
    assert await lab.stat(denying.api, r"listener\..*_20000\.ssl\.fail_verify_san") > 0
    async with await dial(denying.web.host, denying.api_ip, PORT) as held:
        await lab.consul.intention("web", "api", "deny")
        await eventually("web to be turned away", lambda: let_in("web"), until=lambda found: found is None)
        assert await held.echo("still here") == "still here"
    await lab.consul.intention("web", "api", "allow")
    await eventually("web to be let in again", lambda: let_in("web"), until=lambda found: found == "api-1")
    await answers(denying.web.host, denying.api_ip, PORT, "api-1")


async def test_with_default_allow_every_service_may_call_every_other(allowing: Mesh) -> None:
    await answers(allowing.web.host, allowing.api_ip, PORT, "api-1")
    await answers(allowing.api.host, "240.9.0.10", PORT, "web-1")
    await allowing.lab.consul.intention("*", "api", "deny")
    await answers(allowing.web.host, allowing.api_ip, PORT, None)
    await allowing.lab.consul.intention("web", "api", "allow")
    await answers(allowing.web.host, allowing.api_ip, PORT, "api-1")
    await allowing.lab.consul.intention("web", "api", None)
    await answers(allowing.web.host, allowing.api_ip, PORT, None)
    await allowing.lab.consul.intention("*", "api", None)
    await answers(allowing.web.host, allowing.api_ip, PORT, "api-1")


async def test_an_unknown_virtual_ip_is_refused_at_once(allowing: Mesh) -> None:
    assert await who_answers(allowing.web.host, "240.9.9.9", PORT, within_s=5) is None


async def test_a_connection_without_a_certificate_is_refused(allowing: Mesh) -> None:
    outside = allowing.lab.host("stranger")
    for port in (PUBLIC_PORT, APPLICATION_PORT):
        assert await who_answers(outside, allowing.api.host.address, port, say="hello") is None


async def test_an_address_outside_the_mesh_is_passed_through(allowing: Mesh) -> None:
    outside = allowing.lab.host("outside")
    await allowing.lab.application("outside", outside, 9000, outside.address)
    await answers(allowing.web.host, outside.address, 9000, "outside")
    assert await allowing.lab.stat(allowing.web, r"cluster\.original-destination\.upstream_cx_total") > 0


@pytest.fixture
async def second_api(allowing: Mesh) -> AsyncIterator[Member]:
    member = await allowing.lab.member("api", instance="2", virtual_ip=allowing.api_ip)
    await allowing.lab.served(member)
    yield member
    await allowing.lab.deregister(member)


async def test_an_instance_gets_no_traffic_while_critical_or_in_maintenance(allowing: Mesh, second_api: Member) -> None:
    lab, api, host = allowing.lab, allowing.api, allowing.web.host

    async def seen(dials: int = 20) -> set[str | None]:
        return {await who_answers(host, allowing.api_ip, PORT) for _ in range(dials)}

    both: set[str | None] = {"api-1", "api-2"}
    await eventually("both instances to answer", seen, until=lambda found: found == both)
    await lab.consul.check(api.node, api.host.address, api.sidecar_id, "critical")
    await eventually("only the healthy one to answer", seen, until=lambda found: found == {"api-2"})
    await lab.consul.check(api.node, api.host.address, api.sidecar_id, "passing")
    await eventually("both to answer again", seen, until=lambda found: found == both)

    check = {
        "Node": api.node, "CheckID": f"_service_maintenance:{api.sidecar_id}", "Name": "Maintenance",
        "ServiceID": api.sidecar_id, "Status": "critical",
    }  # fmt: skip
    named = {"Node": api.node, "Address": api.host.address, "SkipNodeUpdate": True}
    await lab.consul.put("/v1/catalog/register", {**named, "Check": check})
    await eventually("the one in maintenance to get no more", seen, until=lambda found: found == {"api-2"})
    clusters = str((await get(host, ENVOY_ADMIN_PORT, "/clusters"))[1])
    assert f"{api.host.address}:{PUBLIC_PORT}::health_flags::/eds_status_draining" in clusters
    await lab.consul.put("/v1/catalog/deregister", {"Node": api.node, "CheckID": check["CheckID"]})
    await eventually("both to answer at the end", seen, until=lambda found: found == both)


async def test_a_service_that_is_registered_later_becomes_reachable(allowing: Mesh) -> None:
    lab = allowing.lab
    late = await lab.member("late", virtual_ip="240.9.0.77", register=False, start=False)
    await answers(allowing.web.host, "240.9.0.77", PORT, None)
    await lab.register(late)
    await lab.start(late)
    await answers(allowing.web.host, "240.9.0.77", PORT, "late-1")


async def test_a_sidecar_that_waits_is_served_the_moment_it_is_registered(allowing: Mesh) -> None:
    lab = allowing.lab
    member = await lab.member("patient", virtual_ip="240.9.0.78")
    await lab.served(member)
    # Its bootstrap is made; now it reconnects, and is not registered any more.
    await lab.deregister(member)
    await lab.stop_gossamer()
    await lab.start_gossamer()
    for other in (allowing.web, allowing.api):
        await lab.served(other)

    async def waiting() -> str:
        return str((await lab.sidecars()).get(member.sidecar_id, {}).get("waits_for"))

    await eventually("it to wait", waiting, until=lambda reason: "is registered for service 'patient'" in reason)
    await lab.register(member)
    await lab.served(member)
    await answers(allowing.web.host, "240.9.0.78", PORT, "patient-1")
    log = (lab.folder / "gossamer.log").read_text()
    assert log.count(f"sidecar {member.sidecar_id!r} waits") == 1


async def test_two_services_on_one_virtual_ip_leave_all_others_working(allowing: Mesh) -> None:
    lab = allowing.lab
    intruder = await lab.member("intruder", virtual_ip=allowing.api_ip)
    await lab.served(intruder)

    async def reported() -> bool:
        sidecar = (await lab.sidecars())[allowing.web.sidecar_id]
        return any("belongs to service 'api'" in text for text in sidecar["set_aside"].get("intruder", []))

    await eventually("the conflict to be reported", reported)
    assert {await who_answers(allowing.web.host, allowing.api_ip, PORT) for _ in range(10)} == {"api-1"}
    third = await lab.member("third", virtual_ip="240.9.0.13")
    await lab.served(third)
    await answers(allowing.web.host, "240.9.0.13", PORT, "third-1")
    await lab.deregister(intruder)


async def test_an_invalid_virtual_ip_is_reported_and_breaks_nothing(allowing: Mesh) -> None:
    lab = allowing.lab
    broken = await lab.member("broken", virtual_ip="not-an-address", start=False)

    async def reported() -> bool:
        sidecar = (await lab.sidecars())[allowing.web.sidecar_id]
        return "virtual IP 'not-an-address' is not an IP address" in sidecar["set_aside"].get("broken", [])

    await eventually("it to be reported", reported)
    await answers(allowing.web.host, allowing.api_ip, PORT, "api-1")
    await lab.deregister(broken)


async def test_a_service_claims_an_address_in_the_ranges_of_the_operator_and_nowhere_else(allowing: Mesh) -> None:
    lab = allowing.lab
    member = await lab.member("cluster-ip", virtual_ip="10.96.0.15")
    await lab.served(member)
    async with await dial(allowing.web.host, allowing.api_ip, PORT) as held:
        await answers(allowing.web.host, "10.96.0.15", PORT, "cluster-ip-1")
        assert await held.echo("a changed matcher drains nothing") == "a changed matcher drains nothing"
    outside = lab.host("database")
    await lab.application("database", outside, APPLICATION_PORT, outside.address)
    thief = await lab.member("thief", virtual_ip=outside.address)
    await lab.served(thief)

    async def told() -> str:
        return str((await lab.sidecars())[allowing.web.sidecar_id]["set_aside"])

    await eventually("it to be reported", told, until=lambda text: "thief" in text and outside.address in text)
    await answers(allowing.web.host, outside.address, APPLICATION_PORT, "database")
    await lab.deregister(thief)


async def test_an_explicit_upstream_answers_at_its_local_address_and_at_its_virtual_ip(allowing: Mesh) -> None:
    upstreams = [{"DestinationType": "service", "DestinationName": "api", "LocalBindPort": 9191}]
    member = await allowing.lab.member("explicit", virtual_ip="240.9.0.14", proxy={"Upstreams": upstreams})
    await allowing.lab.served(member)
    await answers(member.host, "127.0.0.1", 9191, "api-1")
    await answers(member.host, allowing.api_ip, PORT, "api-1")


async def test_a_resource_that_envoy_rejects_is_named_and_everything_else_stays_fresh(allowing: Mesh) -> None:
    """An explicit upstream wants the port that Envoy's own admin interface has."""
    lab = allowing.lab
    upstreams = [{"DestinationName": "api", "LocalBindPort": ENVOY_ADMIN_PORT, "LocalBindAddress": "0.0.0.0"}]
    member = await lab.member("rejects", virtual_ip="240.9.0.16", proxy={"Upstreams": upstreams})
    name = f"api:0.0.0.0:{ENVOY_ADMIN_PORT}"

    async def rejected() -> bool:
        sidecar = (await lab.sidecars()).get(member.sidecar_id)
        return sidecar is not None and name in sidecar["resources"]["listeners"]["rejected"]

    await eventually("the listener to be rejected", rejected)
    await answers(member.host, allowing.api_ip, PORT, "api-1")
    await answers(allowing.web.host, "240.9.0.16", PORT, "rejects-1")
    log = (lab.folder / "gossamer.log").read_text()
    assert log.count(f"rejected listeners '{name}'") == 1
    assert "Address already in use" in log or "cannot bind" in log


async def test_a_second_transparent_sidecar_on_a_host_is_refused_rather_than_sharing_its_connections(
    allowing: Mesh,
) -> None:
    lab = allowing.lab
    first = await lab.member("first", virtual_ip="240.9.0.17")
    await lab.served(first)
    second = await lab.member("second", virtual_ip="240.9.0.18", start=False, on=first.host)
    await lab.start_sidecar(second, admin_port=ENVOY_ADMIN_PORT + 1)
    name = "outbound_listener:127.0.0.1:15001"

    async def rejected() -> bool:
        sidecar = (await lab.sidecars()).get(second.sidecar_id, {})
        return bool(sidecar) and name in sidecar["resources"]["listeners"]["rejected"]

    await eventually("the second outbound listener to be rejected", rejected)
    await answers(first.host, allowing.api_ip, PORT, "api-1")
    await lab.deregister(second)


async def test_a_sidecar_presents_the_certificate_of_its_service(denying: Mesh) -> None:
    lab = denying.lab
    await native(lab, "identity", "240.9.0.50", leaf_of="identity")
    await lab.consul.intention("web", "identity", "allow")
    roots = (await lab.consul.client.read("/v1/connect/ca/roots")).data
    expected = f"spiffe://{roots['TrustDomain']}/ns/default/dc/dc1/svc/web"

    async def greeted() -> str:
        return (await who_answers(denying.web.host, "240.9.0.50", PORT) or "").partition(" ")[0]

    assert await eventually("the identity of web", greeted, until=bool) == expected


async def test_a_server_with_another_services_certificate_is_not_used(denying: Mesh) -> None:
    lab = denying.lab
    await native(lab, "impostor", "240.9.0.51", leaf_of="api")
    await lab.consul.intention("web", "impostor", "allow")

    async def refused_for_its_identity() -> bool:
        assert await who_answers(denying.web.host, "240.9.0.51", PORT) is None
        return await lab.stat(denying.web, r"cluster\.impostor\.default.*\.ssl\.fail_verify_san") > 0

    await eventually("the handshake to fail for the name in the certificate", refused_for_its_identity)


async def write_leaf(lab: Lab, service: str) -> dict[str, str]:
    """Write the certificate, key and roots of a service to files."""
    leaf = (await lab.consul.client.read(f"/v1/agent/connect/ca/leaf/{service}")).data
    roots = (await lab.consul.client.read("/v1/connect/ca/roots")).data
    texts = {
        "certificate": leaf["CertPEM"],
        "key": leaf["PrivateKeyPEM"],
        "roots": "".join(root["RootCert"] for root in roots["Roots"]),
    }
    paths = {}
    for kind, text in texts.items():
        path = lab.folder / f"{service}-{kind}.pem"
        path.write_text(text)
        paths[kind] = str(path)
    return paths


async def dial_with_leaf(lab: Lab, host: Host, service: str, address: str) -> str | None:
    """Return who answers at a public listener for a client that has the certificate of ``service``."""
    files = await write_leaf(lab, service)
    context = ssl.create_default_context(cafile=files["roots"])
    context.check_hostname = False  # identities of the mesh are URIs
    context.load_cert_chain(files["certificate"], files["key"])
    made = host.socket()
    await asyncio.get_running_loop().sock_connect(made, (address, PUBLIC_PORT))
    reader, writer = await asyncio.open_connection(sock=made, ssl=context, server_hostname="mesh")
    try:
        # The RBAC filter decides on the first byte: an Envoy that lets nobody in says so only then.
        writer.write(b"hello\n")
        async with asyncio.timeout(10):
            return (await reader.readline()).decode().strip() or None
    except (ConnectionError, ssl.SSLError):
        return None
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def native(lab: Lab, service: str, virtual_ip: str, leaf_of: str) -> None:
    """Start an application that speaks mutual TLS itself, with the certificate of ``leaf_of``."""
    host = lab.host(service)
    files = await write_leaf(lab, leaf_of)
    server = [sys.executable, "-m", "tests.integration.identity_server", str(PUBLIC_PORT)]
    await lab.run(service, host, *server, files["certificate"], files["key"], files["roots"])
    tagged = {"virtual": {"Address": virtual_ip, "Port": PORT}}
    registration = {
        "ID": f"{service}-1", "Service": service, "Address": host.address, "Port": PUBLIC_PORT,
        "TaggedAddresses": tagged, "Connect": {"Native": True},
    }  # fmt: skip

    async def listening() -> bool:
        made = host.socket()
        try:
            await asyncio.get_running_loop().sock_connect(made, (host.address, PUBLIC_PORT))
        finally:
            made.close()
        return True

    await eventually(f"{service} to listen", listening)
    await lab.consul.register(f"node-{service}", host.address, registration)
