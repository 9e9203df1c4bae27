"""Another datacenter, directly and through mesh gateways, and prepared queries: as explicit upstreams and by failover.

Two Consul servers, federated. What is called in dc2 is an application that speaks mutual TLS itself, with a certificate
of dc2's; the mesh gateway is an Envoy with a configuration of the test's own, which goes by the SNI.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.helpers import answers, dialing
from xds.lab import binaries
from xds.lab.application import dial, who_answers
from xds.lab.commands import PUBLIC_PORT
from xds.lab.consul import LabConsul
from xds.lab.mesh import Lab, Member, get
from xds.lab.network import Host
from xds.lab.processes import eventually

THERE, QUERY = 9001, 9003
GATEWAYS = {"dc1": 8442, "dc2": 8443}


@dataclass
class Federated:
    """web in dc1; api in both, in dc1 as a member, in dc2 speaking TLS itself."""

    lab: Lab
    second: LabConsul
    web: Member
    api: Member
    gateway: Host

    async def who(self, port: int) -> str | None:
        """Return whose certificate web sees at one of its local ports."""
        return await who_answers(self.web.host, "127.0.0.1", port)


@pytest.fixture(scope="module")
async def federated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federated]:
    folder = tmp_path_factory.mktemp("dc2")
    async with Lab() as lab:
        second = LabConsul(lab.host("consul-dc2"), folder, acl=False, second_of=lab.consul)
        try:
            await second.start()

            async def federated_by_now() -> bool:
                reply = await lab.consul.client.read("/v1/catalog/services", datacenter="dc2")
                return "consul" in reply.data

            await eventually("the datacenters to know each other", federated_by_now)
            api_there = await _native(lab, second, folder)
            gateway = await _gateways(lab, second, api_there)
            upstreams = [
                {"DestinationName": "api", "LocalBindPort": THERE, "Datacenter": "dc2"},
                {"DestinationName": "nearest", "DestinationType": "prepared_query", "LocalBindPort": QUERY},
            ]
            query = {"Name": "nearest", "Service": {"Service": "api", "Failover": {"Datacenters": ["dc2"]}}}
            await lab.consul.put("/v1/query", query, method="POST")
            api = await lab.member("api", virtual_ip="240.0.3.1")
            web = await lab.member("web", proxy={"Upstreams": upstreams})
            await lab.served(web, api)
            yield Federated(lab, second, web, api, gateway)
        finally:
            await second.close()
            shutil.rmtree(folder, ignore_errors=True)


async def _native(lab: Lab, second: LabConsul, folder: Path) -> Host:
    host = lab.host("api-dc2")
    leaf = (await second.client.read("/v1/agent/connect/ca/leaf/api")).data
    roots = (await second.client.read("/v1/connect/ca/roots")).data["Roots"]
    files = {"cert": leaf["CertPEM"], "key": leaf["PrivateKeyPEM"], "roots": "".join(r["RootCert"] for r in roots)}
    for name, text in files.items():
        (folder / name).write_text(text)
    server = [sys.executable, "-m", "tests.integration.identity_server", str(PUBLIC_PORT)]
    await lab.run("api-dc2", host, *server, *(str(folder / name) for name in ("cert", "key", "roots")))
    registered = {
        "ID": "api-9", "Service": "api", "Address": host.address, "Port": PUBLIC_PORT, "Connect": {"Native": True},
    }  # fmt: skip
    await second.register("node-api-dc2", host.address, registered)
    return host


async def _gateways(lab: Lab, second: LabConsul, api: Host) -> Host:
    """Start a mesh gateway for each datacenter: one Envoy with a port for each, which counts them separately."""
    host = lab.host("gateways")
    address = {"socket_address": {"address": api.address, "port_value": PUBLIC_PORT}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    cluster = {"name": "api", "load_assignment": {"cluster_name": "api", "endpoints": endpoints}}
    trust_domain = await _trust_domain(lab)
    listeners = [_way_in(host, port, name, trust_domain) for name, port in GATEWAYS.items()]
    config = lab.folder / "mesh-gateway.json"
    admin = {"address": {"socket_address": {"address": host.address, "port_value": 19000}}}
    content: dict[str, Any] = {"admin": admin, "static_resources": {"listeners": listeners, "clusters": [cluster]}}
    config.write_text(json.dumps(content))
    command = [binaries.envoy(), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"]
    await lab.run("mesh-gateway", host, *command)
    registered = {"Kind": "mesh-gateway", "ID": "gateway", "Service": "way-in"}
    wan = {"TaggedAddresses": {"wan": {"Address": host.address, "Port": GATEWAYS["dc2"]}}}
    # Who dials it where it should not finds nobody.
    await second.register("node-gateway-dc2", host.address, {**registered, **wan, "Address": "192.0.2.1", "Port": 1})
    nearby = {**registered, "Address": host.address, "Port": GATEWAYS["dc1"]}
    await lab.consul.register("node-gateway-dc1", host.address, nearby)
    return host


def _way_in(host: Host, port: int, name: str, trust_domain: str) -> dict[str, Any]:
    prefix = "type.googleapis.com/envoy.extensions.filters"
    proxy = {"@type": f"{prefix}.network.tcp_proxy.v3.TcpProxy", "stat_prefix": name, "cluster": "api"}
    inspector = {"@type": f"{prefix}.listener.tls_inspector.v3.TlsInspector"}
    return {
        "name": name,
        "address": {"socket_address": {"address": host.address, "port_value": port}},
        "listener_filters": [{"name": "envoy.filters.listener.tls_inspector", "typed_config": inspector}],
        "filter_chains": [
            {
                "filter_chain_match": {"server_names": [f"*.dc2.internal.{trust_domain}"]},
                "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}],
            }
        ],
    }


async def _trust_domain(lab: Lab) -> str:
    return str((await lab.consul.client.read("/v1/connect/ca/roots")).data["TrustDomain"])


async def test_an_upstream_in_another_datacenter_is_called_directly(federated: Federated) -> None:
    seen = await eventually("an answer", lambda: federated.who(THERE))
    assert "/dc/dc1/svc/web " in str(seen), "what api in dc2 saw is web of dc1"
    assert [await _through(federated, gateway) for gateway in GATEWAYS] == [0, 0]


async def _through(federated: Federated, gateway: str) -> int:
    text = str((await get(federated.gateway, 19000, f"/stats?filter=^tcp.{gateway}.downstream_cx_total"))[1])
    return int(text.rpartition(":")[2] or 0)


@pytest.mark.parametrize(("mode", "gateway"), [("remote", "dc2"), ("local", "dc1")])
async def test_upstreams_elsewhere_are_called_through_mesh_gateways(
    federated: Federated, mode: str, gateway: str
) -> None:
    federated.web.registered["Proxy"]["Upstreams"][0]["MeshGateway"] = {"Mode": mode}
    await federated.lab.register(federated.web)

    async def counted() -> int:
        return await _through(federated, gateway) if "/dc/dc1/svc/web " in str(await federated.who(THERE)) else 0

    await eventually("the gateway to see it", counted)


async def test_a_service_fails_over_to_another_datacenter_by_its_virtual_ip(federated: Federated) -> None:
    resolver = {"Kind": "service-resolver", "Name": "api", "Failover": {"*": {"Datacenters": ["dc2"]}}}
    lab, api, web = federated.lab, federated.api, federated.web
    await answers(web.host, "240.0.3.1", 80, "api-1")
    await lab.catalog.entry(resolver)
    await lab.catalog.check(api.node, api.host.address, api.sidecar_id, "critical")

    async def seen() -> str:
        async with await dial(web.host, "240.0.3.1", 80) as connection:
            return connection.greeting

    await eventually("dc2 to answer", seen, until=lambda found: "/dc/dc1/svc/web " in found)
    await lab.catalog.check(api.node, api.host.address, api.sidecar_id, "passing")
    await answers(web.host, "240.0.3.1", 80, "api-1")
    await lab.catalog.remove_entry("service-resolver", "api")


async def test_failover_comes_and_goes_under_traffic_and_no_dial_is_refused(federated: Federated) -> None:
    resolver = {"Kind": "service-resolver", "Name": "api", "Failover": {"*": {"Datacenters": ["dc2"]}}}
    lab, web = federated.lab, federated.web

    async def fails_over() -> bool:
        clusters = (await lab.sidecars())[web.sidecar_id]["resources"]["clusters"]["acknowledged"]
        return "failover-target~1~vip:240.0.3.1" in clusters

    await answers(web.host, "240.0.3.1", 80, "api-1")
    async with dialing(web.host, "240.0.3.1", 80) as seen:
        for _ in range(5):
            await lab.catalog.entry(resolver)
            await eventually("the failover", fails_over)
            await lab.catalog.remove_entry("service-resolver", "api")
            await eventually("no failover", fails_over, until=lambda found: not found)
    assert set(seen) == {"api-1"}, seen


async def test_a_prepared_query_is_polled(federated: Federated) -> None:
    assert await eventually("an answer", lambda: federated.who(QUERY)) == "api-1"
    sidecar = (await federated.lab.sidecars())[federated.web.sidecar_id]
    assert "upstream" not in json.dumps(sidecar["set_aside"])
