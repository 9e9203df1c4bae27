"""Decodes ``/v1/health/connect/:service``: the instances of a service, and the sidecars among them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

import orjson

from xds.mesh.addresses import is_ip
from xds.mesh.config_entries import ProxySettings, UpstreamSettings
from xds.mesh.facts import ANY_PORT, ExplicitUpstream, Health, Instance, ServiceInstances, Sidecar, VirtualAddress
from xds.mesh.names import CONNECT_PROXY, usable_name
from xds.sources.decode.config_entries import proxy_settings, upstream_settings
from xds.sources.decode.shapes import as_fields, fields, items, number, pairs, text, texts
from xds.sources.decode.values import Fields

TERMINATING_GATEWAY = "terminating-gateway"
MAINTENANCE_CHECKS = ("_node_maintenance", "_service_maintenance:")
_WHERE = attrgetter("node", "service_id")


CLAIMED = frozenset[str]()
"""No tags assign virtual IPs: Consul before 1.11 keeps every tag as it was registered."""
BY_CONSUL = frozenset(("consul-virtual",))
"""Tags that Consul's servers overwrite, from 1.11 on (``agent/consul/state/catalog.go``)."""
BY_FILE = frozenset(("consul-virtual", "virtual"))
"""Tags in a mesh file, which has one author."""


def service_instances(
    service: str, data: Any, *, elsewhere: bool = False, assigning: frozenset[str] = CLAIMED
) -> ServiceInstances:
    """Decode ``/v1/health/connect/:service``.

    Args:
        service: whose instances they are.
        data: the answer.
        elsewhere: whether they are in another datacenter, where WAN addresses are dialed.
        assigning: the tags whose addresses are assigned rather than claimed.
    """
    found, problems = [], []
    for at, entry in enumerate(items(data, "instances")):
        try:
            found.append(_instance(service, entry, elsewhere, assigning))
        except UNREADABLE as error:
            problems.append(f"instance {_named(entry, at)} is not understood, so it is left out: {error}")
    return ServiceInstances(service, tuple(sorted(found, key=_WHERE)), tuple(problems))


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)
"""Errors of decoding an answer that is not as expected."""


def _named(entry: Any, at: int) -> str:
    registered = entry.get("Service") if isinstance(entry, dict) else None
    service_id = registered.get("ID") if isinstance(registered, dict) else None
    return repr(service_id) if isinstance(service_id, str) else f"number {at}"


def _instance(service: str, entry: Any, elsewhere: bool, assigning: frozenset[str] = CLAIMED) -> Instance:
    node, registered = fields(entry, "Node"), fields(entry, "Service")
    kind, tagged = registered.get("Kind"), registered.get("TaggedAddresses")
    weights = fields(registered, "Weights")
    node_address, service_address = text(node, "Address", ""), text(registered, "Address", "")
    address, port = service_address or node_address, number(registered, "Port")
    if elsewhere:
        wan, node_wan = fields(fields(registered, "TaggedAddresses"), "wan"), fields(node, "TaggedAddresses")
        address = text(wan, "Address", "") or service_address or text(node_wan, "wan", "") or node_address
        port = number(wan, "Port") or port
    return Instance(
        service_id=text(registered, "ID"),
        node=text(node, "Node"),
        address=address,
        port=port,
        health=_health(entry.get("Checks") or ()),
        weight_passing=number(weights, "Passing", 1),
        weight_warning=number(weights, "Warning", 1),
        virtual_ips=_virtual_ips(service, kind, as_fields(tagged, "TaggedAddresses"), assigning) if tagged else (),
        create_index=number(registered, "CreateIndex"),
        sidecar=sidecar(text(node, "Node"), registered) if kind == CONNECT_PROXY else None,
        name=text(registered, "Service", ""),
        service_address=service_address,
        tags=texts(registered, "Tags"),
        meta=pairs(registered, "Meta"),
        node_address=node_address,
        node_meta=pairs(node, "Meta"),
        is_gateway=kind == TERMINATING_GATEWAY,
    )


def _virtual_ips(service: str, kind: Any, tagged: Any, assigning: frozenset[str]) -> tuple[VirtualAddress, ...]:
    by_server = "consul-virtual" in assigning
    if kind == TERMINATING_GATEWAY:
        tag = f"consul-virtual:{service}"
        return (VirtualAddress(_ip(tagged, tag), assigned=by_server),) if tag in tagged else ()
    addresses = []
    if "consul-virtual" in tagged:
        addresses.append(VirtualAddress(_ip(tagged, "consul-virtual"), assigned=by_server))
    if "virtual" in tagged:
        # The port of "consul-virtual" is the sidecar's own and has no meaning.
        given = tagged["virtual"]
        addresses.append(
            VirtualAddress(given["Address"], given.get("Port") or ANY_PORT, assigned="virtual" in assigning)
        )
    return tuple(dict.fromkeys(addresses)) if len(addresses) > 1 else tuple(addresses)


def _ip(tagged: Mapping[str, Any], tag: str) -> str:
    return text(fields(tagged, tag), "Address")


def _health(checks: Any) -> Health:
    if not checks:
        return Health.PASSING
    # Consul represents maintenance mode as a critical check of its own (api/health.go, HealthMaint).
    maintained = [str(check.get("CheckID")).startswith(MAINTENANCE_CHECKS) for check in checks]
    statuses = {check.get("Status") for check, apart in zip(checks, maintained, strict=True) if not apart}
    if not statuses <= {"passing", "warning"}:
        return Health.CRITICAL
    if any(maintained):
        return Health.MAINTENANCE
    return Health.PASSING if statuses <= {"passing"} else Health.WARNING


def sidecar(node: str, registered: Any) -> Sidecar:
    """Decode the proxy part of a registration (a service of kind ``connect-proxy``)."""
    proxy = fields(registered, "Proxy")
    problems: list[str] = []
    named = [as_fields(each, "Upstreams") for each in items(proxy.get("Upstreams"), "Upstreams")]
    upstreams = [_explicit_upstream(each, problems) for each in named if not each.get("CentrallyConfigured")]
    return Sidecar(
        service_id=text(registered, "ID"),
        node=node,
        service=text(proxy, "DestinationServiceName", ""),
        address=text(registered, "Address", ""),
        port=number(registered, "Port"),
        local_service_address=text(proxy, "LocalServiceAddress", "") or "127.0.0.1",
        local_service_port=number(proxy, "LocalServicePort"),
        local_service_socket_path=text(proxy, "LocalServiceSocketPath", ""),
        settings=_settings(proxy, problems),
        upstreams=tuple(upstreams),
        problems=tuple(problems),
    )


LONGEST_SOCKET_PATH = 107
"""Bytes of the path of a Unix socket (Linux, ``sockaddr_un``)."""
ITS_OWN = frozenset(
    ("DestinationServiceName", "DestinationServiceID", "LocalServiceAddress", "LocalServicePort", "Upstreams")
)
"""Fields that differ between sidecars of one kind and are no settings."""


def _settings(proxy: Any, problems: list[str]) -> ProxySettings:
    given = {key: value for key, value in proxy.items() if key not in ITS_OWN}
    try:
        settings, more = _settings_of(orjson.dumps(given))
    except TypeError:  # a number beyond 64 bits
        settings, more = _read_settings(given)
    problems.extend(more)
    return settings


@functools.lru_cache(maxsize=4096)
def _settings_of(given: bytes) -> tuple[ProxySettings, tuple[str, ...]]:
    """Return `_read_settings`, cached: most sidecars of a mesh have the same settings."""
    return _read_settings(orjson.loads(given))


def _read_settings(proxy: Any) -> tuple[ProxySettings, tuple[str, ...]]:
    """Return the settings in a ``Proxy``, and its problems."""
    problems = list[str]()
    return proxy_settings(proxy, fields(proxy, "Config"), problems.append), tuple(problems)


def _explicit_upstream(upstream: Any, minor: list[str]) -> ExplicitUpstream:
    """Decode an upstream of a registration. Its refusal keeps it from being served; ``minor`` problems do not."""
    name = text(upstream, "DestinationName", "")
    problems: list[str] = []
    port, kind = number(upstream, "LocalBindPort"), text(upstream, "DestinationType", "") or "service"
    if kind not in ("service", "prepared_query"):
        problems.append(f"DestinationType {kind!r}: expected 'service' or 'prepared_query'")
    if upstream.get("DestinationPeer"):
        problems.append(f"peer {upstream['DestinationPeer']!r}: Consul's HTTP API does not give a peer's trust bundle")
    address = text(upstream, "LocalBindAddress", "") or "127.0.0.1"
    socket_path = text(upstream, "LocalBindSocketPath", "")
    if not usable_name(name):
        problems.append(f"{name!r} can't be asked for by name")
    if not is_ip(address):
        problems.append(f"LocalBindAddress {address!r} is not an IP address")
    mode = 0
    if port and socket_path:
        problems.append("give either LocalBindPort or LocalBindSocketPath")
    elif socket_path:
        try:
            mode = int(text(upstream, "LocalBindSocketMode", "") or "0", 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            problems.append(f"LocalBindSocketMode {upstream['LocalBindSocketMode']!r} is not a mode such as 0600")
        if len(socket_path.encode()) > LONGEST_SOCKET_PATH or "\0" in socket_path:
            problems.append(f"LocalBindSocketPath: expected a path of at most {LONGEST_SOCKET_PATH} bytes")
    elif not 0 < port < 65536:
        problems.append(f"LocalBindPort {port} is not between 1 and 65535")
    config = Fields(upstream.get("Config"), "Config", lambda what: minor.append(f"upstream {name!r}: {what}"))
    return ExplicitUpstream(
        name=name,
        datacenter=text(upstream, "Datacenter", ""),
        local_bind_address=address,
        local_bind_port=port,
        local_bind_socket_path=socket_path,
        local_bind_socket_mode=mode,
        settings=_with_gateway(upstream_settings(config), upstream),
        prepared_query=kind == "prepared_query",
        refusal="; ".join(problems) or None,
    )


def _with_gateway(settings: UpstreamSettings, upstream: Any) -> UpstreamSettings:
    """Apply the upstream's own ``MeshGateway``, which takes precedence (Consul, ``agent/configentry/resolve.go``)."""
    mode = fields(upstream, "MeshGateway").get("Mode")
    return replace(settings, mesh_gateway=mode) if mode in ("none", "local", "remote") else settings


def query_result(query: str, data: Any) -> ServiceInstances:
    """Decode ``/v1/query/:query/execute?connect=true``."""
    found = service_instances(query, data.get("Nodes"), elsewhere=bool(data.get("Failovers")))
    where = text(data, "Datacenter", "")
    return replace(found, instances=tuple(replace(each, datacenter=where) for each in found.instances))


def gateways(datacenter: str, data: Any, *, elsewhere: bool) -> ServiceInstances:
    """Decode ``/v1/health/service/:gateway`` of the mesh gateways of a datacenter."""
    return service_instances(f"mesh gateways of {datacenter}", data, elsewhere=elsewhere)
