"""Destinations outside the mesh, through a terminating gateway: by address, by TLS server name, by HTTP host.

The gateway is an Envoy with a configuration of the test's own: Gossamer serves sidecars. Its certificates are the
mesh's, one for each service that it speaks for.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.integration.helpers import answers
from tests.integration.requests import request, until
from xds.lab import binaries
from xds.lab.application import who_answers
from xds.lab.mesh import Lab, Member, get
from xds.lab.mesh_file import MeshFile
from xds.lab.network import Host
from xds.lab.processes import eventually
from xds.sources.authority import issue
from xds.sources.file.state import StateFolder

GATEWAY_PORT = 8443
BEHIND = {"bank": 9100, "page": 9101, "secure": 9102}
"""Ports of the outside host that the gateway leads to, by service."""


@dataclass
class Outside:
    """web, and a host outside with programs that are dialed directly or through the gateway."""

    lab: Lab
    web: Member
    host: Host
    gateway: Host


def gateway_config(outside: Host, folder: Path, services: dict[str, str]) -> dict[str, Any]:
    """Return a terminating gateway that leads connections by SNI to the service's port outside."""

    def chain(service: str, server_name: str) -> dict[str, Any]:
        files = {name: {"filename": str(folder / f"{service}.{name}")} for name in ("chain", "key")}
        certificate = {"certificate_chain": files["chain"], "private_key": files["key"]}
        common = {
            "tls_certificates": [certificate],
            "validation_context": {"trusted_ca": {"filename": str(folder / "roots")}},
            "alpn_protocols": ["http/1.1"],
        }
        prefix = "type.googleapis.com/envoy.extensions"
        tls = {
            "@type": f"{prefix}.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": common,
        }
        proxy = {"@type": f"{prefix}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": service, "cluster": service}
        return {
            "filter_chain_match": {"server_names": [server_name]},
            "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}],
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        }

    def cluster(service: str) -> dict[str, Any]:
        address = {"socket_address": {"address": outside.address, "port_value": BEHIND[service]}}
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        return {"name": service, "load_assignment": {"cluster_name": service, "endpoints": endpoints}}

    inspector = {"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}
    listener = {
        "name": "gateway",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": GATEWAY_PORT}},
        "listener_filters": [{"name": "envoy.filters.listener.tls_inspector", "typed_config": inspector}],
        "filter_chains": [chain(service, name) for service, name in services.items()],
    }
    return {
        "admin": {"address": {"socket_address": {"address": "0.0.0.0", "port_value": 19000}}},
        "static_resources": {"listeners": [listener], "clusters": [cluster(service) for service in services]},
    }


def destination(service: str, protocol: str, address: str, port: int) -> dict[str, Any]:
    return {
        "Kind": "service-defaults",
        "Name": service,
        "Protocol": protocol,
        "Destination": {"Addresses": [address], "Port": port},
    }


@pytest.fixture(scope="module")
async def outside() -> AsyncIterator[Outside]:
    async with Lab(mesh_file=True) as lab:
        assert isinstance(lab.catalog, MeshFile)
        host, gateway = lab.host("outside"), lab.host("gateway")
        for service, port in BEHIND.items():
            speaks = "http" if service == "page" else "tcp"
            await lab.application(f"{service}-through", host, port, host.address, speaks=speaks)
        await lab.application("bank-direct", host, 9000, host.address)
        await lab.application("other-direct", host, 9009, host.address)
        await lab.application("page-direct", host, 9001, host.address, speaks="http")
        entries = (
            destination("bank", "tcp", host.address, 9000),
            destination("page", "http", "page.example", 9001),
            destination("secure", "tcp", "secure.example", 9443),
            {"Kind": "terminating-gateway", "Name": "exit", "Services": [{"Name": name} for name in BEHIND]},
        )
        for entry in entries:
            await lab.catalog.entry(entry)
        registered = {"Kind": "terminating-gateway", "ID": "exit", "Service": "exit", "Port": GATEWAY_PORT}
        await lab.catalog.register("exit", gateway.address, {**registered, "Address": gateway.address})
        lab.catalog.give_token("exit")
        web = await lab.member("web")
        for service in BEHIND:
            await lab.catalog.intention("web", service, "allow")
        await lab.served(web)
        await _start_gateway(lab, gateway, host)
        yield Outside(lab, web, host, gateway)


async def _start_gateway(lab: Lab, gateway: Host, outside: Host) -> None:
    assert isinstance(lab.catalog, MeshFile)
    now = datetime.now(UTC)
    authority = StateFolder(lab.catalog.settings.state).authority(now)
    (lab.folder / "roots").write_text("".join(authority.trusted(now).certificates))
    addresses = {"bank": outside.address, "page": "page.example", "secure": "secure.example"}
    names = {}
    for service, address in addresses.items():
        leaf = issue(authority, service, "dc1", now, 0.5).leaf
        (lab.folder / f"{service}.chain").write_text(leaf.certificate_chain)
        (lab.folder / f"{service}.key").write_text(leaf.private_key)
        dashed = re.sub("[.:]", "-", address)
        names[service] = f"destination.{dashed}.{service}.default.dc1.internal.{authority.trust_domain}"
    config = lab.folder / "gateway.json"
    config.write_text(json.dumps(gateway_config(outside, lab.folder, names)))
    await lab.run(
        "gateway", gateway, binaries.envoy(), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"
    )

    async def ready() -> bool:
        return bool((await get(gateway, 19000, "/ready"))[0] == 200)

    await eventually("the gateway to be ready", ready)


async def test_a_destination_at_an_address_is_reached_through_the_gateway(outside: Outside) -> None:
    web, host = outside.web.host, outside.host
    await answers(web, host.address, 9000, "bank-through")
    await answers(web, host.address, 9009, "other-direct")
    await outside.lab.catalog.intention("web", "bank", "deny")
    await answers(web, host.address, 9000, "bank-direct")
    await outside.lab.catalog.intention("web", "bank", "allow")
    await answers(web, host.address, 9000, "bank-through")


async def test_a_destination_with_a_host_name_is_found_by_the_host_of_a_request(outside: Outside) -> None:
    web, url = outside.web.host, f"http://{outside.host.address}:9001/"
    for host in ("page.example", "page.example:9001"):
        await until(
            lambda host=host: request(web, url, headers={"host": host}),  # type: ignore[misc]
            "the gateway",
            lambda found: found.service == "page-through",
        )
    assert (await request(web, url, headers={"host": "other.example"})).service == "page-direct"
    assert await who_answers(web, outside.host.address, 9009) == "other-direct"


async def test_a_destination_with_a_host_name_is_found_by_the_server_name_of_tls(outside: Outside) -> None:
    """What comes out behind the gateway is the client's TLS, which nobody here answers; the gateway counts it."""

    async def counted() -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made = outside.web.host.socket()
        await asyncio.get_running_loop().sock_connect(made, (outside.host.address, 9443))
        with pytest.raises((ssl.SSLError, OSError)):
            await asyncio.open_connection(sock=made, ssl=context, server_hostname="secure.example")
        text = str((await get(outside.gateway, 19000, "/stats?filter=^tcp.secure.downstream_cx_total"))[1])
        return int(text.rpartition(":")[2] or 0)

    await eventually("the gateway to see it", counted)


async def test_passthrough_is_counted_by_address(outside: Outside) -> None:
    await answers(outside.web.host, outside.host.address, 9009, "other-direct")
    _, text = await get(outside.web.host, 19000, "/stats/prometheus")
    address = f"{outside.host.address}:9009"
    counted = [line for line in str(text).splitlines() if "cx_total" in line and f'"{address}"' in line]
    assert counted, [line for line in str(text).splitlines() if address in line][:5]
    assert int(counted[0].rpartition(" ")[2]) > 0
