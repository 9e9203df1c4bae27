"""Consul's JSON into facts. Whatever can't be followed becomes a sentence for the operator, never an exception."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from xds.mesh.facts import (
    Action,
    ConfigEntries,
    DiscoveryChain,
    ExplicitUpstream,
    ExposedPath,
    Health,
    Instance,
    Intention,
    Leaf,
    ProxyMode,
    ProxySettings,
    Roots,
    ServiceInstances,
    Sidecar,
    is_ip,
    usable_name,
)

CONNECT_PROXY = "connect-proxy"
TERMINATING_GATEWAY = "terminating-gateway"
DEFAULT = "default"
DEFAULT_CONNECT_TIMEOUT_MS = 5000
LARGEST = 2**31 - 1
"""The largest number that is taken from a configuration; Envoy's fields hold no more."""

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6}


def milliseconds(text: str) -> int | None:
    """A Go duration (``1m30s``) in milliseconds, ``None`` if it is none."""
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    total = sum(float(number) * _MILLISECONDS[unit] for number, unit in parts)
    return round(min(total, LARGEST))


def roots(data: Any) -> Roots:
    """``/v1/connect/ca/roots``."""
    found = sorted(data["Roots"] or (), key=lambda root: (not root.get("Active"), root["ID"]))
    return Roots(data["TrustDomain"], tuple(root["RootCert"] for root in found))


def leaf(data: Any) -> Leaf:
    """``/v1/agent/connect/ca/leaf/:service``. The chain holds the cross-signed intermediate after a rotation."""
    return Leaf(
        service=data["Service"],
        certificate_chain=data["CertPEM"],
        private_key=data["PrivateKeyPEM"],
        serial_number=data.get("SerialNumber", ""),
    )


def intentions(data: Any) -> tuple[Intention, ...]:
    """``/v1/connect/intentions``: those between services of this cluster and its default namespace."""
    found = []
    for entry in data or ():
        if entry.get("SourcePeer") or entry.get("SourceSamenessGroup"):
            continue  # They speak of services elsewhere, and match none of ours (Consul, config_entry_intention.go).
        spaces = ("SourceNS", "DestinationNS", "SourcePartition", "DestinationPartition")
        if {entry.get(space) or DEFAULT for space in spaces} - {DEFAULT, "*"}:
            continue
        found.append(Intention(entry["SourceName"], entry["DestinationName"], _action(entry)))
    return tuple(sorted(found, key=lambda i: (i.destination, i.source)))


def _action(entry: Any) -> Action:
    if entry.get("Permissions") or entry.get("JWT"):
        return Action.PERMISSIONS  # Both need the HTTP request, which nobody sees on a TCP connection.
    return Action.ALLOW if entry.get("Action") == "allow" else Action.DENY


def chain(service: str, data: Any) -> DiscoveryChain:
    """``/v1/discovery-chain/:service``. On a TCP service only its resolver counts."""
    compiled = data["Chain"]
    virtual_ips = (*(compiled.get("AutoVirtualIPs") or ()), *(compiled.get("ManualVirtualIPs") or ()))
    node = (compiled.get("Nodes") or {}).get(compiled.get("StartNode", ""), {})
    if node.get("Type") != "resolver":
        kind = node.get("Type") or "missing"
        return DiscoveryChain(
            service, virtual_ips, refusal=f"its discovery chain starts with a {kind}, which is not served yet"
        )
    resolver = node.get("Resolver") or {}
    target = (compiled.get("Targets") or {}).get(resolver.get("Target", ""), {})
    refusal = None
    if target.get("Service") != service:
        refusal = f"its discovery chain redirects to {target.get('Service')!r}, which is not served yet"
    elif target.get("ServiceSubset"):
        refusal = f"its discovery chain resolves to the subset {target['ServiceSubset']!r}, which is not served yet"
    elif target.get("Peer") or target.get("Datacenter") != compiled.get("Datacenter"):
        refusal = "its discovery chain leads to another datacenter or peer, which is not served yet"
    timeout = milliseconds(target.get("ConnectTimeout") or resolver.get("ConnectTimeout") or "")
    timeout = min(timeout, LARGEST) if timeout else None
    problems = ("failover in its discovery chain is not served yet",) if resolver.get("Failover") else ()
    return DiscoveryChain(service, virtual_ips, timeout or DEFAULT_CONNECT_TIMEOUT_MS, refusal, problems)


def service_instances(service: str, data: Any) -> ServiceInstances:
    """``/v1/health/connect/:service``."""
    found = [_instance(service, entry) for entry in data or ()]
    return ServiceInstances(service, tuple(sorted(found, key=lambda i: (i.node, i.service_id))))


def _instance(service: str, entry: Any) -> Instance:
    node, registered = entry["Node"], entry["Service"]
    tagged = registered.get("TaggedAddresses") or {}
    if registered.get("Kind") == TERMINATING_GATEWAY:
        tags = [f"consul-virtual:{service}"]
    else:
        tags = ["consul-virtual", "virtual"]
    virtual_ips = tuple(dict.fromkeys(tagged[tag]["Address"] for tag in tags if tag in tagged))
    weights = registered.get("Weights") or {}
    return Instance(
        service_id=registered["ID"],
        node=node["Node"],
        address=registered.get("Address") or node["Address"],
        port=registered.get("Port") or 0,
        health=_health(entry.get("Checks") or ()),
        weight_passing=weights.get("Passing", 1),
        weight_warning=weights.get("Warning", 1),
        virtual_ips=virtual_ips,
        create_index=registered.get("CreateIndex") or 0,
        sidecar=sidecar(node["Node"], registered) if registered.get("Kind") == CONNECT_PROXY else None,
    )


def _health(checks: Any) -> Health:
    statuses = {check.get("Status") for check in checks}
    if statuses <= {"passing"}:
        return Health.PASSING
    return Health.WARNING if statuses <= {"passing", "warning"} else Health.CRITICAL


def sidecar(node: str, registered: Any) -> Sidecar:
    """The proxy part of a registration (a service of kind ``connect-proxy``)."""
    proxy = registered.get("Proxy") or {}
    problems: list[str] = []
    upstreams = tuple(
        _explicit_upstream(upstream)
        for upstream in proxy.get("Upstreams") or ()
        if not upstream.get("CentrallyConfigured")
    )
    return Sidecar(
        service_id=registered["ID"],
        node=node,
        service=proxy.get("DestinationServiceName") or "",
        address=registered.get("Address") or "",
        port=registered.get("Port") or 0,
        local_service_address=proxy.get("LocalServiceAddress") or "127.0.0.1",
        local_service_port=proxy.get("LocalServicePort") or 0,
        local_service_socket_path=proxy.get("LocalServiceSocketPath") or "",
        settings=proxy_settings(proxy, proxy.get("Config") or {}, problems.append),
        upstreams=upstreams,
        problems=tuple(problems),
    )


def _explicit_upstream(upstream: Any) -> ExplicitUpstream:
    name = upstream.get("DestinationName") or ""
    config = upstream.get("Config") or {}
    problems: list[str] = []
    port = upstream.get("LocalBindPort") or 0
    timeout = _integer(config, "connect_timeout_ms", problems.append)
    if upstream.get("DestinationType") not in (None, "", "service"):
        problems.append(f"destination type {upstream['DestinationType']!r} is not served yet")
    if upstream.get("Datacenter") or upstream.get("DestinationPeer"):
        problems.append("upstreams in another datacenter or peer are not served yet")
    address = upstream.get("LocalBindAddress") or "127.0.0.1"
    if not usable_name(name):
        problems.append(f"{name!r} can't be asked for by name")
    if not is_ip(address):
        problems.append(f"LocalBindAddress {address!r} is not an IP address")
    if upstream.get("LocalBindSocketPath"):
        problems.append("LocalBindSocketPath is not served yet")
    elif not 0 < port < 65536:
        problems.append(f"LocalBindPort {port} is not between 1 and 65535")
    return ExplicitUpstream(
        name=name,
        datacenter=upstream.get("Datacenter") or "",
        local_bind_address=address,
        local_bind_port=port,
        connect_timeout_ms=timeout if timeout and timeout > 0 else None,
        refusal="; ".join(problems) or None,
    )


def proxy_settings(
    source: Mapping[str, Any], config: Mapping[str, Any], problem: Callable[[str], None]
) -> ProxySettings:
    """What a registration's ``Proxy``, the service-defaults or the proxy-defaults say about a sidecar.

    Args:
        source: holds ``Mode`` and ``TransparentProxy`` and, in the service-defaults, limits and timeouts.
        config: the opaque ``Config`` map.
        problem: told what can't be followed.
    """
    transparent = source.get("TransparentProxy") or {}

    def positive(value: int | None) -> int | None:
        return value if value and value > 0 else None

    return ProxySettings(
        mode=_mode(source.get("Mode"), "Mode", problem),
        fallback_mode=_mode(config.get("mode"), 'Config["mode"]', problem),
        outbound_listener_port=_port(transparent, "OutboundListenerPort", problem),
        bind_address=str(config["bind_address"]) if config.get("bind_address") else None,
        bind_port=_port(config, "bind_port", problem),
        local_connect_timeout_ms=positive(
            _integer(config, "local_connect_timeout_ms", problem) or _integer(source, "LocalConnectTimeoutMs", problem)
        ),
        max_inbound_connections=positive(
            _integer(config, "max_inbound_connections", problem) or _integer(source, "MaxInboundConnections", problem)
        ),
        dialed_directly=True if transparent.get("DialedDirectly") else None,
        exposed_paths=_exposed_paths(source.get("Expose") or {}, problem) or None,
    )


def _exposed_paths(expose: Mapping[str, Any], problem: Callable[[str], None]) -> tuple[ExposedPath, ...]:
    if expose.get("Checks"):
        problem("Expose.Checks is not served yet: name the paths of the checks in Expose.Paths")
    found = []
    for path in expose.get("Paths") or ():
        text, protocol = path.get("Path") or "", path.get("Protocol") or "http"
        ports = _port(path, "ListenerPort", problem), _port(path, "LocalPathPort", problem)
        if not text.startswith("/"):
            problem(f"the exposed path {text!r} does not begin with a slash; it is left out")
        elif protocol != "http":
            problem(f"the exposed path {text!r} wants protocol {protocol!r}, which is not served yet; it is left out")
        elif ports[0] is None or ports[1] is None:
            problem(f"the exposed path {text!r} needs a ListenerPort and a LocalPathPort; it is left out")
        else:
            found.append(ExposedPath(text, ports[0], ports[1]))
    return tuple(found)


def _mode(value: Any, where: str, problem: Callable[[str], None]) -> ProxyMode | None:
    if value in (None, ""):
        return None
    try:
        return ProxyMode(value)
    except ValueError:
        problem(f"{where} is {value!r}: expected 'transparent' or 'direct'; taken as not given")
        return None


def _integer(source: Mapping[str, Any], key: str, problem: Callable[[str], None]) -> int | None:
    value = source.get(key)
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number <= LARGEST:
        problem(f"{key} is {value!r}: expected a number from 0 to {LARGEST}; taken as not given")
        return None
    return number


def _port(source: Mapping[str, Any], key: str, problem: Callable[[str], None]) -> int | None:
    port = _integer(source, key, problem)
    if port is None or port == 0:
        return None
    if not 0 < port < 65536:
        problem(f"{key} is {port}: expected 1 to 65535; taken as not given")
        return None
    return port


def config_entries(data: Any) -> ConfigEntries:
    """``/v1/config/:kind``, of any kinds: what shapes sidecars."""
    proxy_defaults, service_defaults, destinations_only = ProxySettings(), {}, False
    problems: list[str] = []
    for entry in data or ():
        kind, name = entry.get("Kind"), entry.get("Name")

        def problem(text: str, where: str = f"{kind}/{name}") -> None:
            problems.append(f"{where}: {text}")

        if kind == "proxy-defaults" and name == "global":
            proxy_defaults = proxy_settings(entry, entry.get("Config") or {}, problem)
        elif kind == "service-defaults":
            service_defaults[name] = proxy_settings(entry, {}, problem)
        elif kind == "mesh":
            destinations_only = bool((entry.get("TransparentProxy") or {}).get("MeshDestinationsOnly"))
    return ConfigEntries(proxy_defaults, service_defaults, destinations_only, tuple(problems))


def agent_default_allow(data: Any) -> bool:
    """``/v1/agent/self``: what holds where no intention matches.

    Raises:
        KeyError: the answer doesn't say.
    """
    debug = data["DebugConfig"]
    policy = debug.get("DefaultIntentionPolicy")
    if policy:
        return bool(policy == "allow")
    resolver = debug.get("ACLResolverSettings") or {}
    enabled = debug["ACLsEnabled"] if "ACLsEnabled" in debug else resolver["ACLsEnabled"]
    if not enabled:
        return True
    policy = debug.get("ACLDefaultPolicy") or resolver.get("ACLDefaultPolicy")
    if policy is None:
        raise KeyError("ACLDefaultPolicy")
    return bool(policy == "allow")
