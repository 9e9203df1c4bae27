"""``/v1/health/connect/:service``: the instances of a service, and the sidecars among them."""

from __future__ import annotations

import functools
from dataclasses import replace
from operator import attrgetter
from typing import Any

import orjson

from xds.mesh.addresses import is_ip
from xds.mesh.facts import ANY_PORT, ExplicitUpstream, Health, Instance, ServiceInstances, Sidecar, VirtualAddress
from xds.mesh.names import usable_name
from xds.mesh.settings import ProxySettings, UpstreamSettings
from xds.sources.decode.settings import proxy_settings, upstream_settings
from xds.sources.decode.values import Fields

CONNECT_PROXY = "connect-proxy"
TERMINATING_GATEWAY = "terminating-gateway"
MAINTENANCE_CHECKS = ("_node_maintenance", "_service_maintenance:")
_WHERE = attrgetter("node", "service_id")


CLAIMED = frozenset[str]()
"""The tags that assign virtual IPs, where none do: Consul before 1.11 keeps every tag as somebody registered it."""
BY_CONSUL = frozenset(("consul-virtual",))
"""From Consul 1.11 on: its servers overwrite this one (``agent/consul/state/catalog.go``)."""
BY_FILE = frozenset(("consul-virtual", "virtual"))
"""In a mesh file, which has one author."""


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
    found = [_instance(service, entry, elsewhere, assigning) for entry in data or ()]
    return ServiceInstances(service, tuple(sorted(found, key=_WHERE)))


def _instance(service: str, entry: Any, elsewhere: bool, assigning: frozenset[str] = CLAIMED) -> Instance:
    node, registered = entry["Node"], entry["Service"]
    kind, tagged = registered.get("Kind"), registered.get("TaggedAddresses")
    weights = registered.get("Weights") or {}
    address, port = registered.get("Address") or node["Address"], registered.get("Port") or 0
    if elsewhere:
        tagged = tagged or {}
        wan, node_wan = tagged.get("wan") or {}, (node.get("TaggedAddresses") or {}).get("wan")
        address = wan.get("Address") or registered.get("Address") or node_wan or node["Address"]
        port = wan.get("Port") or port
    return Instance(
        service_id=registered["ID"],
        node=node["Node"],
        address=address,
        port=port,
        health=_health(entry.get("Checks") or ()),
        weight_passing=weights.get("Passing", 1),
        weight_warning=weights.get("Warning", 1),
        virtual_ips=_virtual_ips(service, kind, tagged, assigning) if tagged else (),
        create_index=registered.get("CreateIndex") or 0,
        sidecar=sidecar(node["Node"], registered) if kind == CONNECT_PROXY else None,
        name=registered.get("Service") or "",
        service_address=registered.get("Address") or "",
        tags=tuple(registered.get("Tags") or ()),
        meta=_pairs(registered.get("Meta")),
        node_address=node["Address"],
        node_meta=_pairs(node.get("Meta")),
        is_gateway=kind == TERMINATING_GATEWAY,
    )


def _virtual_ips(service: str, kind: Any, tagged: Any, assigning: frozenset[str]) -> tuple[VirtualAddress, ...]:
    by_server = "consul-virtual" in assigning
    if kind == TERMINATING_GATEWAY:
        tag = f"consul-virtual:{service}"
        return (VirtualAddress(tagged[tag]["Address"], assigned=by_server),) if tag in tagged else ()
    addresses = []
    if "consul-virtual" in tagged:
        addresses.append(VirtualAddress(tagged["consul-virtual"]["Address"], assigned=by_server))
    if "virtual" in tagged:
        # The port that comes with "consul-virtual" is the sidecar's own and says nothing.
        said = tagged["virtual"]
        addresses.append(VirtualAddress(said["Address"], said.get("Port") or ANY_PORT, assigned="virtual" in assigning))
    return tuple(dict.fromkeys(addresses)) if len(addresses) > 1 else tuple(addresses)


def _pairs(meta: Any) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(meta.items())) if meta else ()


def _health(checks: Any) -> Health:
    if not checks:
        return Health.PASSING
    # Consul keeps maintenance mode as a critical check of its own (api/health.go, HealthMaint).
    maintained = [str(check.get("CheckID")).startswith(MAINTENANCE_CHECKS) for check in checks]
    statuses = {check.get("Status") for check, apart in zip(checks, maintained, strict=True) if not apart}
    if not statuses <= {"passing", "warning"}:
        return Health.CRITICAL
    if any(maintained):
        return Health.MAINTENANCE
    return Health.PASSING if statuses <= {"passing"} else Health.WARNING


def sidecar(node: str, registered: Any) -> Sidecar:
    """The proxy part of a registration (a service of kind ``connect-proxy``)."""
    proxy = registered.get("Proxy") or {}
    problems: list[str] = []
    named = proxy.get("Upstreams") or ()
    upstreams = [_explicit_upstream(each, problems) for each in named if not each.get("CentrallyConfigured")]
    return Sidecar(
        service_id=registered["ID"],
        node=node,
        service=proxy.get("DestinationServiceName") or "",
        address=registered.get("Address") or "",
        port=registered.get("Port") or 0,
        local_service_address=proxy.get("LocalServiceAddress") or "127.0.0.1",
        local_service_port=proxy.get("LocalServicePort") or 0,
        local_service_socket_path=proxy.get("LocalServiceSocketPath") or "",
        settings=_settings(proxy, problems),
        upstreams=tuple(upstreams),
        problems=tuple(problems),
    )


ITS_OWN = frozenset(
    ("DestinationServiceName", "DestinationServiceID", "LocalServiceAddress", "LocalServicePort", "Upstreams")
)
"""What differs from sidecar to sidecar of one kind and makes no settings."""


def _settings(proxy: Any, problems: list[str]) -> ProxySettings:
    said = {key: value for key, value in proxy.items() if key not in ITS_OWN}
    try:
        settings, more = _settings_of(orjson.dumps(said))
    except TypeError:  # a number beyond 64 bits
        settings, more = _read_settings(said)
    problems.extend(more)
    return settings


@functools.lru_cache(maxsize=4096)
def _settings_of(said: bytes) -> tuple[ProxySettings, tuple[str, ...]]:
    """`_read_settings`, remembered: most sidecars of a mesh say the same."""
    return _read_settings(orjson.loads(said))


def _read_settings(proxy: Any) -> tuple[ProxySettings, tuple[str, ...]]:
    """The settings in a ``Proxy``, and what of it can't be followed."""
    problems = list[str]()
    return proxy_settings(proxy, proxy.get("Config") or {}, problems.append), tuple(problems)


def _explicit_upstream(upstream: Any, minor: list[str]) -> ExplicitUpstream:
    """An upstream of a registration; what keeps it from being served is its refusal, what does not is ``minor``."""
    name = upstream.get("DestinationName") or ""
    problems: list[str] = []
    port, kind = upstream.get("LocalBindPort") or 0, upstream.get("DestinationType") or "service"
    if kind not in ("service", "prepared_query"):
        problems.append(f"DestinationType {kind!r}: expected 'service' or 'prepared_query'")
    if upstream.get("DestinationPeer"):
        problems.append(f"peer {upstream['DestinationPeer']!r}: Consul's HTTP API does not give a peer's trust bundle")
    address, socket_path = upstream.get("LocalBindAddress") or "127.0.0.1", upstream.get("LocalBindSocketPath") or ""
    if not usable_name(name):
        problems.append(f"{name!r} can't be asked for by name")
    if not is_ip(address):
        problems.append(f"LocalBindAddress {address!r} is not an IP address")
    mode = 0
    if port and socket_path:
        problems.append("give either LocalBindPort or LocalBindSocketPath")
    elif socket_path:
        try:
            mode = int(upstream.get("LocalBindSocketMode") or "0", 8)
        except ValueError:
            problems.append(f"LocalBindSocketMode {upstream['LocalBindSocketMode']!r} is not a mode such as 0600")
    elif not 0 < port < 65536:
        problems.append(f"LocalBindPort {port} is not between 1 and 65535")
    config = Fields(upstream.get("Config"), "Config", lambda what: minor.append(f"upstream {name!r}: {what}"))
    return ExplicitUpstream(
        name=name,
        datacenter=upstream.get("Datacenter") or "",
        local_bind_address=address,
        local_bind_port=port,
        local_bind_socket_path=socket_path,
        local_bind_socket_mode=mode,
        settings=_with_gateway(upstream_settings(config), upstream),
        prepared_query=kind == "prepared_query",
        refusal="; ".join(problems) or None,
    )


def _with_gateway(settings: UpstreamSettings, upstream: Any) -> UpstreamSettings:
    """The upstream's own ``MeshGateway`` has the last word (Consul, ``agent/configentry/resolve.go``)."""
    mode = (upstream.get("MeshGateway") or {}).get("Mode")
    return replace(settings, mesh_gateway=mode) if mode in ("none", "local", "remote") else settings


def query_result(query: str, data: Any) -> ServiceInstances:
    """``/v1/query/:query/execute?connect=true``."""
    elsewhere = bool(data.get("Failovers"))
    found = [
        replace(_instance(query, entry, elsewhere), datacenter=data.get("Datacenter") or "")
        for entry in data.get("Nodes") or ()
    ]
    return ServiceInstances(query, tuple(sorted(found, key=lambda i: (i.node, i.service_id))))


def gateways(datacenter: str, data: Any, *, elsewhere: bool) -> ServiceInstances:
    """``/v1/health/service/:gateway``, of the mesh gateways of a datacenter."""
    return service_instances(f"mesh gateways of {datacenter}", data, elsewhere=elsewhere)
